"""Sampling from a row of logits by NumPy: hand-worked rows, the distribution of the draws, and generation."""

import math

import numpy as np
import pytest

from tessera.errors import InputError, SettingError
from tessera.scratch.decoder import Decoder
from tessera.scratch.generate import generate
from tessera.scratch.sampling import choose, draw, greedy, softmax, temperature, top_k, top_p

ROW = np.log(np.array([0.1, 0.3, 0.05, 0.3, 0.25]))
OFF = -math.inf


def kept(row: np.ndarray) -> list[int]:
    return np.flatnonzero(row > OFF).tolist()


def test_filters_keep_what_they_say_and_the_lower_id_of_equals() -> None:
    assert greedy(ROW) == 1
    assert kept(top_k(ROW, 1)) == [1]
    assert kept(top_k(ROW, 3)) == [1, 3, 4]
    assert kept(top_k(ROW, 99)) == [0, 1, 2, 3, 4]
    # The tokens before it must add up to less than p: 0.3, 0.3, 0.25, 0.1, 0.05.
    for p, ids in ((0.01, [1]), (0.3001, [1, 3]), (0.62, [1, 3, 4]), (0.9, [0, 1, 3, 4]), (1.0, [0, 1, 2, 3, 4])):
        assert kept(top_p(ROW, p)) == ids
    np.testing.assert_allclose(softmax(top_k(ROW, 3)), [0, 0.3 / 0.85, 0, 0.3 / 0.85, 0.25 / 0.85], atol=1e-15)
    np.testing.assert_allclose(softmax(temperature(ROW, 0.5)), softmax(2 * ROW), atol=1e-15)
    assert kept(top_p(top_k(ROW, 2), 0.5)) == [1]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_smallest_temperature_is_greedy(dtype: type) -> None:
    row = temperature((ROW * 1e4).astype(dtype), 1e-300)
    assert softmax(row).tolist() == [0.0, 0.5, 0.0, 0.5, 0.0]


def test_draws_follow_the_probabilities() -> None:
    """Pearson's chi-square with 4 degrees of freedom: above 18.47 in one of a thousand correct programs; the seed is
    fixed."""
    rng, n = np.random.default_rng(7), 20_000
    counts = np.bincount([draw(ROW, rng) for _ in range(n)], minlength=5)
    expected = n * np.exp(ROW)
    assert float(((counts - expected) ** 2 / expected).sum()) < 18.47
    shaped = [choose(ROW, rng, heat=0.7, k=3, p=0.95) for _ in range(n // 4)]
    probabilities = softmax(temperature(ROW, 0.7)[[1, 3, 4]])
    counts = np.bincount(shaped, minlength=5)
    assert counts[[0, 2]].tolist() == [0, 0]
    expected = n / 4 * probabilities
    assert float(((counts[[1, 3, 4]] - expected) ** 2 / expected).sum()) < 13.82  # 2 degrees of freedom


def test_what_makes_no_sense_is_an_error() -> None:
    rng = np.random.default_rng(0)
    for function, value in ((temperature, 0.0), (top_k, 0), (top_p, 0.0), (top_p, 1.5)):
        with pytest.raises(SettingError):
            function(ROW, value)
    with pytest.raises(InputError, match="the largest logit is nan"):
        choose(np.array([0.0, math.nan]), rng)


def model() -> Decoder:
    made = Decoder(n_vocab=19, context=8, d_model=16, n_layers=2, n_heads=2, dtype=np.float64, seed=3)
    rng = np.random.default_rng(1)
    for parameter in made.parameters.values():
        parameter.data += 0.3 * rng.standard_normal(parameter.shape)  # so that the logits are far apart
    return made


def uncached(decoder: Decoder, ids: list[int], n: int, seed: int) -> list[int]:
    """The same, each token from a whole pass over what is in sight."""
    rng, sight, answer = np.random.default_rng(seed), ids[-decoder.context :], []
    for _ in range(n):
        sight = sight[-(decoder.context // 2) :] if len(sight) > decoder.context else sight
        answer.append(choose(decoder.logits(np.array([sight]))[0, -1], rng, heat=0.9, k=10, p=0.95))
        sight = [*sight, answer[-1]]
    return answer


@pytest.mark.parametrize("n_prompt", [1, 7, 8, 13])
def test_cached_generation_is_uncached_generation(n_prompt: int) -> None:
    decoder, prompt = model(), list(range(n_prompt))
    options = {"max_tokens": 30, "temperature": 0.9, "top_k": 10, "top_p": 0.95}
    answer = list(generate(decoder, prompt, rng=np.random.default_rng(5), **options))
    assert answer == uncached(decoder, prompt, 30, seed=5)
    assert len(set(answer)) > 5


def test_where_an_answer_ends_and_what_is_never_drawn() -> None:
    decoder = model()
    whole = list(generate(decoder, [1], max_tokens=20, temperature=0.0))
    end = whole[4]
    assert list(generate(decoder, [1], max_tokens=20, temperature=0.0, stop={end})) == whole[: whole.index(end)]
    assert whole[0] not in list(generate(decoder, [1], max_tokens=20, temperature=0.0, never=[whole[0]]))
    assert list(generate(decoder, [1], max_tokens=0)) == []
    with pytest.raises(InputError, match="the prompt is empty"):
        next(generate(decoder, []))
    with pytest.raises(SettingError, match="max_tokens = -1"):
        next(generate(decoder, [1], max_tokens=-1))
