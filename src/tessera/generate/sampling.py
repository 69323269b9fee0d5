"""Which token comes next: the one order in which the settings act.

    guidance -> logit bias -> repetition -> presence and frequency -> no-repeat n-gram -> end tokens -> constraint
    -> temperature -> top-k -> top-p -> min-p -> typical -> a draw

What changes single logits comes first, then the temperature, then the filters, each of which sets what it drops to
-inf and judges what the one before it left; the draw is from what remains, scaled to a sum of 1. Where logits are equal
the lower id comes first. docs/sampling.md says where transformers and llama.cpp do the same.

Rows are independent: each has its own generator, and on a CPU is worked on alone, so that its numbers do not depend on
the batch that it is in. `Chooser` (chooser.py) holds what one answer needs for this; the functions here are pure.
"""

import secrets
from collections.abc import Collection, Sequence
from hashlib import blake2b

import torch
from torch import Tensor

from tessera.generate.filters import greedy, min_p, temperature, top_k, top_p, typical
from tessera.generate.logits import (
    Ids,
    banned,
    biased,
    check_logits,
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
    logits_V: Tensor, sampling: Sampling, previous: Ids | None = None, n_prompt: int = 0, ends: Collection[int] = ()
) -> Tensor:
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


def shaped(logits_BV: Tensor, sampling: Sampling) -> Tensor:
    """The second half of the order: the temperature and the filters; softmax gives what is drawn from."""
    check_logits(logits_BV)
    if sampling.temperature == 0.0:
        return top_k(logits_BV, 1)
    if logits_BV.device.type == "cpu":
        rows = [torch.from_numpy(candidates(row, sampling).row()) for row in logits_BV.detach().numpy()]
        return torch.stack(rows)
    return shaped_together(logits_BV, sampling)


def shaped_together(logits_BV: Tensor, sampling: Sampling) -> Tensor:
    """`shaped` for all rows at once, and a temperature that is not 0."""
    if sampling.temperature != 1.0:
        logits_BV = temperature(logits_BV, sampling.temperature)
    if sampling.top_k is not None:
        logits_BV = top_k(logits_BV, sampling.top_k)
    if sampling.top_p is not None:
        logits_BV = top_p(logits_BV, sampling.top_p)
    if sampling.min_p is not None:
        logits_BV = min_p(logits_BV, sampling.min_p)
    if sampling.typical is not None:
        logits_BV = typical(logits_BV, sampling.typical)
    return logits_BV


def filtered(logits_BV: Tensor, sampling: Sampling, previous_BT: Tensor | None = None, *, n_prompt: int = 0) -> Tensor:
    """The logits that are drawn from, of rows with the same settings: `edited`, then `shaped`."""
    return shaped(_edited_rows(logits_BV, sampling, previous_BT, n_prompt), sampling)


def sample(
    logits_BV: Tensor,
    sampling: Sampling,
    generators: Sequence[torch.Generator],
    previous_BT: Tensor | None = None,
    *,
    n_prompt: int = 0,
) -> Tensor:
    """The next id of each row. `generators` has one for each row; `previous_BT` is what the penalties look at."""
    return pick(_edited_rows(logits_BV, sampling, previous_BT, n_prompt), sampling, generators)


def pick(logits_BV: Tensor, sampling: Sampling, generators: Sequence[torch.Generator]) -> Tensor:
    """The next id of each row of logits that are `edited`: `shaped`, and a draw."""
    check_logits(logits_BV)
    on_cpu = logits_BV.device.type == "cpu"
    if sampling.temperature == 0.0:
        return torch.from_numpy(logits_BV.detach().numpy().argmax(axis=-1)) if on_cpu else greedy(logits_BV)
    if on_cpu:
        rows = zip(logits_BV.detach().numpy(), generators, strict=True)
        return torch.tensor([candidates(row, sampling).pick(uniform(generator)) for row, generator in rows])
    return draw(shaped_together(logits_BV, sampling), generators)


def _edited_rows(logits_BV: Tensor, sampling: Sampling, previous_BT: Tensor | None, n_prompt: int) -> Tensor:
    logits_BV = in_float32(logits_BV)
    check_logits(logits_BV)
    if not sampling.logit_bias and not sampling.looks_back:
        return logits_BV
    before = [()] * len(logits_BV) if previous_BT is None else previous_BT.cpu().numpy()
    rows = zip(logits_BV, before, strict=True)
    return torch.stack([edited(row_V, sampling, previous, n_prompt) for row_V, previous in rows])


def in_float32(logits_BV: Tensor) -> Tensor:
    """In float32 at least, in which sampling is done."""
    return logits_BV.to(torch.promote_types(logits_BV.dtype, torch.float32))


def draw(logits_BV: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """One id a row from softmax(logits): the first whose cumulative probability exceeds one uniform number.

    One number is taken from a row's generator a draw, whatever the vocabulary and the device.
    """
    uniforms = [uniform(generator) for generator in generators]
    if logits_BV.device.type == "cpu":
        rows = zip(logits_BV.detach().numpy(), uniforms, strict=True)
        return torch.tensor([Candidates(row).pick(uniform) for row, uniform in rows])
    return drawn_together(logits_BV, uniforms)


def drawn_together(logits_BV: Tensor, uniforms: Sequence[float]) -> Tensor:
    """`draw` for all rows at once."""
    uniform_B1 = torch.tensor(uniforms, dtype=torch.float64, device=logits_BV.device)[:, None]
    cumulative_BV = (logits_BV - logits_BV.amax(dim=-1, keepdim=True)).double().exp_().cumsum(dim=-1)
    total_B1 = cumulative_BV[..., -1:]
    target_B1 = torch.minimum(uniform_B1 * total_B1, torch.nextafter(total_B1, torch.zeros_like(total_B1)))
    return torch.searchsorted(cumulative_BV, target_B1, right=True).squeeze(-1)


def uniform(generator: torch.Generator) -> float:
    """The next number of a row's stream, from 0 to below 1."""
    return float(torch.rand((), generator=generator, dtype=torch.float64))


def row_generators(seed: int | None, n: int) -> list[torch.Generator]:
    """A random stream for each of n rows. Stream i depends on `seed` and i alone, so more rows change none of them.

    Seed None is a new random seed; the global generators are neither read nor moved.
    """
    return [torch.Generator().manual_seed(row_seed) for row_seed in _seeds("", seed, n)]


def prompt_seeds(seed: int | None, n: int) -> list[int]:
    """A seed for each of n prompts, of which the rows of each are made; number i depends on `seed` and i alone."""
    return _seeds("prompt:", seed, n)


def _seeds(what: str, seed: int | None, n: int) -> list[int]:
    seed = secrets.randbits(63) if seed is None else seed
    keys = (f"{what}{seed}:{number}".encode() for number in range(n))
    return [int.from_bytes(blake2b(key, digest_size=8).digest(), "big") >> 1 for key in keys]
