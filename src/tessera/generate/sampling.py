"""Which token comes next: the one order in which the settings act.

    guidance -> logit bias -> repetition -> presence and frequency -> no-repeat n-gram -> end tokens -> constraint
    -> temperature -> top-k -> top-p -> min-p -> typical -> a draw

What changes single logits comes first, then the temperature, then the filters, each of which sets what it drops to
-inf and judges what the one before it left; the draw is from what remains, scaled to a sum of 1. Where logits are equal
the lower id comes first. docs/sampling.md says where transformers and llama.cpp do the same.

Rows are independent: each has its own generator and is worked on alone, so that its numbers do not depend on the batch
that it is in. `Chooser` (chooser.py) holds what one answer needs for this; the functions here are pure.
"""

import secrets
from collections.abc import Collection, Sequence
from hashlib import blake2b

import numpy as np

from tessera.generate.logits import (
    Ids,
    banned,
    biased,
    check_logits,
    in_float32,
    occurrence_penalty,
    repeated_ngrams,
    repetition_penalty,
)
from tessera.generate.rows import Candidates, candidates
from tessera.generate.settings import Guidance, Mirostat, Sampling

__all__ = [
    "Guidance",
    "Mirostat",
    "Sampling",
    "draw",
    "filtered",
    "prompt_seeds",
    "row_generators",
    "sample",
    "uniform",
]


def edited(
    logits_V: np.ndarray, sampling: Sampling, previous: Ids | None = None, n_prompt: int = 0, ends: Collection[int] = ()
) -> np.ndarray:
    """The first half of the order, bias to end tokens. `previous` is the prompt, `n_prompt` long, and the answer.

    The repetition penalty and the n-grams see all of it, presence and frequency the answer alone. `ends` may not be
    drawn before `min_tokens`.
    """
    if sampling.logit_bias:
        logits_V = biased(logits_V, sampling.logit_bias)
    previous = () if previous is None else previous
    if sampling.repetition_penalty != 1.0:
        logits_V = repetition_penalty(logits_V, previous, sampling.repetition_penalty)
    if sampling.presence_penalty or sampling.frequency_penalty:
        presence, frequency = sampling.presence_penalty, sampling.frequency_penalty
        logits_V = occurrence_penalty(logits_V, previous[n_prompt:], presence, frequency)
    if sampling.no_repeat_ngram is not None:
        logits_V = banned(logits_V, repeated_ngrams(previous, sampling.no_repeat_ngram))
    if ends and (sampling.ignore_eos or len(previous) - n_prompt < sampling.min_tokens):
        logits_V = banned(logits_V, list(ends))
    return logits_V


def filtered(
    logits_BV: np.ndarray, sampling: Sampling, previous_BT: np.ndarray | None = None, *, n_prompt: int = 0
) -> np.ndarray:
    """The logits that are drawn from, of rows with the same settings, -inf where nothing is; softmax gives the
    probabilities. `previous_BT` is what the penalties look at."""
    edited_BV = _edited_rows(logits_BV, sampling, previous_BT, n_prompt)
    check_logits(edited_BV)
    if sampling.temperature == 0.0:
        sampling = Sampling(top_k=1)
    return np.stack([candidates(row_V, sampling).row() for row_V in edited_BV])


def sample(
    logits_BV: np.ndarray,
    sampling: Sampling,
    generators: Sequence[np.random.Generator],
    previous_BT: np.ndarray | None = None,
    *,
    n_prompt: int = 0,
) -> np.ndarray:
    """The next id of each row. `generators` has one for each row; `previous_BT` is what the penalties look at."""
    edited_BV = _edited_rows(logits_BV, sampling, previous_BT, n_prompt)
    check_logits(edited_BV)
    if sampling.temperature == 0.0:
        return edited_BV.argmax(axis=-1)
    rows = zip(edited_BV, generators, strict=True)
    return np.array([candidates(row_V, sampling).pick(uniform(generator)) for row_V, generator in rows])


def _edited_rows(
    logits_BV: np.ndarray, sampling: Sampling, previous_BT: np.ndarray | None, n_prompt: int
) -> np.ndarray:
    logits_BV = in_float32(logits_BV)
    check_logits(logits_BV)
    if not sampling.logit_bias and not sampling.looks_back:
        return logits_BV
    before = [()] * len(logits_BV) if previous_BT is None else previous_BT
    rows = zip(logits_BV, before, strict=True)
    return np.stack([edited(row_V, sampling, previous, n_prompt) for row_V, previous in rows])


def draw(logits_BV: np.ndarray, generators: Sequence[np.random.Generator]) -> np.ndarray:
    """One id a row from softmax(logits): the first whose cumulative probability exceeds one uniform number.

    One number is taken from a row's generator a draw, whatever the vocabulary.
    """
    rows = zip(logits_BV, generators, strict=True)
    return np.array([Candidates(row_V).pick(uniform(generator)) for row_V, generator in rows])


def uniform(generator: np.random.Generator) -> float:
    """The next number of a row's stream, from 0 to below 1."""
    return generator.random()


def row_generators(seed: int | None, n: int) -> list[np.random.Generator]:
    """A random stream for each of n rows. Stream i depends on `seed` and i alone, so more rows change none of them.

    Seed None is a new random seed; the global generators are neither read nor moved. A stream is that of Philox 4x64
    (Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3"), whose key is the row's seed.
    """
    return [np.random.Generator(np.random.Philox(key=row_seed)) for row_seed in _seeds("", seed, n)]


def prompt_seeds(seed: int | None, n: int) -> list[int]:
    """A seed for each of n prompts, of which the rows of each are made; number i depends on `seed` and i alone."""
    return _seeds("prompt:", seed, n)


def _seeds(what: str, seed: int | None, n: int) -> list[int]:
    seed = secrets.randbits(63) if seed is None else seed
    keys = (f"{what}{seed}:{number}".encode() for number in range(n))
    return [int.from_bytes(blake2b(key, digest_size=8).digest(), "big") >> 1 for key in keys]
