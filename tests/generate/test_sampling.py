"""Sampling against transformers' logits processors, brute force, and the distribution that is promised."""

import math

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.config import Settings, check
from tessera.errors import InputError, SettingError
from tessera.generate import sampling as S
from tessera.generate.sampling import Sampling

LOGITS_BV = 3 * torch.randn(16, 50, generator=torch.Generator().manual_seed(0))
PREVIOUS_BT = torch.randint(0, 50, (16, 9), generator=torch.Generator().manual_seed(1))

THEIRS = {
    "temperature": (lambda x: S.temperature(x, 0.7), transformers.TemperatureLogitsWarper(0.7)),
    "top-k": (lambda x: S.top_k(x, 5), transformers.TopKLogitsWarper(5)),
    "top-k of all": (lambda x: S.top_k(x, 99), transformers.TopKLogitsWarper(50)),
    "top-p": (lambda x: S.top_p(x, 0.9), transformers.TopPLogitsWarper(0.9)),
    "top-p of one": (lambda x: S.top_p(x, 1e-6), transformers.TopPLogitsWarper(1e-6)),
    "min-p": (lambda x: S.min_p(x, 0.05), transformers.MinPLogitsWarper(0.05)),
    "penalty": (
        lambda x: S.repetition_penalty(x, PREVIOUS_BT, 1.3),
        transformers.RepetitionPenaltyLogitsProcessor(1.3),
    ),
}


@pytest.mark.parametrize("case", THEIRS)
def test_equals_transformers(case):
    ours, theirs = THEIRS[case]
    logits_BV = LOGITS_BV.clone()
    torch.testing.assert_close(ours(logits_BV).softmax(-1), theirs(PREVIOUS_BT, logits_BV.clone()).softmax(-1))
    assert torch.equal(logits_BV, LOGITS_BV), "the logits were changed in place"


def test_the_filters_together_equal_transformers_in_the_documented_order():
    sampling = Sampling(temperature=1.7, top_k=20, top_p=0.8, min_p=0.2, repetition_penalty=1.5)
    expected_BV = LOGITS_BV.clone()
    for processor in (
        transformers.RepetitionPenaltyLogitsProcessor(1.5),
        transformers.TemperatureLogitsWarper(1.7),
        transformers.TopKLogitsWarper(20),
        transformers.TopPLogitsWarper(0.8),
        transformers.MinPLogitsWarper(0.2),
    ):
        expected_BV = processor(PREVIOUS_BT, expected_BV)
    found_BV = S.filtered(LOGITS_BV, sampling, PREVIOUS_BT).softmax(-1)
    torch.testing.assert_close(found_BV, expected_BV.softmax(-1))
    assert 1 < (found_BV > 0).sum(-1).float().mean() < 20


def kept(logits_V: torch.Tensor) -> list[int]:
    return torch.isfinite(logits_V).nonzero().flatten().tolist()


@settings(max_examples=100, deadline=None)
@given(
    logits=st.lists(st.integers(-6, 6), min_size=1, max_size=12),
    k=st.integers(1, 14),
    p=st.sampled_from([0.05, 0.31, 0.5, 0.77, 0.93, 1.0]),
)
def test_keeps_what_brute_force_keeps_with_ties_to_the_lower_id(logits, k, p):
    """Whole numbers as logits, so that most of the rows have ties."""
    order = sorted(range(len(logits)), key=lambda id: (-logits[id], id))
    total = math.fsum(math.exp(logit) for logit in logits)
    nucleus, before = [], 0.0
    for id in order:
        if before < p or p == 1.0:
            nucleus.append(id)
        before += math.exp(logits[id]) / total
    row_V = torch.tensor(logits, dtype=torch.float64)
    assert kept(S.top_k(row_V, k)) == sorted(order[:k])
    assert kept(S.top_p(row_V, p)) == sorted(nucleus)
    least = math.log(p) + max(logits)
    assert kept(S.min_p(row_V, p)) == [id for id, logit in enumerate(logits) if logit >= least]


def test_half_of_two_equal_tokens_is_one_of_them():
    assert kept(S.top_p(torch.tensor([0.0, 1.0, 1.0, -9.0]), 0.4)) == [1]
    assert kept(S.top_p(torch.zeros(4), 0.5)) == [0, 1]


def test_repetition_penalty_by_hand():
    logits_BV = torch.tensor([[2.0, -2.0, 1.0, 0.0]])
    found_BV = S.repetition_penalty(logits_BV, torch.tensor([[0, 1, 1, 3]]), 2.0)
    assert found_BV.tolist() == [[1.0, -4.0, 1.0, 0.0]]


CHI_SQUARE = {
    "plain": {},
    "cold": {"temperature": 0.5},
    "hot": {"temperature": 2.0, "top_k": 5},
    "nucleus": {"top_p": 0.7},
    "min-p": {"min_p": 0.1, "repetition_penalty": 1.2},
}


@pytest.mark.parametrize("case", CHI_SQUARE)
def test_draws_follow_the_formula(case):
    """Pearson's chi-square of 100,000 draws; a right sampler fails at this level once in ten thousand seeds."""
    n = 100_000
    logits_V = torch.tensor([2.0, 1.0, 0.5, 0.0, -0.5, -1.0, 1.5, -math.inf])
    sampling = Sampling(**CHI_SQUARE[case])
    previous_BT = torch.tensor([[0, 3]])
    (generator,) = S.row_generators(7, 1)
    ids = S.sample(logits_V.expand(n, -1), sampling, [generator] * n, previous_BT.expand(n, -1))
    probs_V = S.filtered(logits_V[None], sampling, previous_BT)[0].double().softmax(-1)
    counts_V = torch.bincount(ids, minlength=8)
    possible = probs_V > 0
    assert counts_V[~possible].sum() == 0
    expected = n * probs_V[possible]
    chi_square = ((counts_V[possible] - expected) ** 2 / expected).sum()
    degrees = torch.tensor(float(possible.sum() - 1))
    assert degrees > 0
    p_value = torch.special.gammaincc(degrees / 2, chi_square.float() / 2)
    assert p_value > 1e-4


def test_greedy_takes_the_lowest_of_equal_ids_and_no_random_number():
    logits_BV = torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 0.0]])
    assert S.sample(logits_BV, Sampling(temperature=0), []).tolist() == [1, 0]
    assert S.sample(logits_BV, Sampling(top_k=1, seed=3), S.row_generators(3, 2)).tolist() == [1, 0]
    penalised = S.sample(logits_BV, Sampling(temperature=0, repetition_penalty=9), [], torch.tensor([[1], [0]]))
    assert penalised.tolist() == [2, 1]


def test_no_temperature_is_too_small():
    assert S.sample(LOGITS_BV, Sampling(temperature=1e-300), S.row_generators(0, 16)).equal(LOGITS_BV.argmax(-1))


def test_a_draw_never_takes_an_impossible_token():
    class Highest:
        """Stands for the generator that gives the largest number below 1."""

    logits_BV = torch.tensor([[-math.inf, 0.0, 0.1, -math.inf]])
    original = torch.rand
    try:
        torch.rand = lambda *size, **options: torch.full(size, 1 - 2**-53, dtype=torch.float64)
        assert S.draw(logits_BV, [Highest()]).item() == 2
        torch.rand = lambda *size, **options: torch.zeros(size, dtype=torch.float64)
        assert S.draw(logits_BV, [Highest()]).item() == 1
    finally:
        torch.rand = original


def test_streams_depend_on_seed_and_row_alone():
    def numbers(seed: int | None, n: int) -> list[float]:
        return [torch.rand((), generator=generator).item() for generator in S.row_generators(seed, n)]

    state = torch.get_rng_state()
    assert numbers(5, 3) == numbers(5, 8)[:3]
    assert len(set(numbers(5, 8) + numbers(6, 8))) == 16
    assert numbers(None, 1) != numbers(None, 1)
    assert torch.equal(torch.get_rng_state(), state), "the global generator has moved"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_an_error(temperature, bad):
    logits_BV = torch.zeros(2, 4)
    logits_BV[1, 2] = bad
    with pytest.raises(InputError, match="not finite"):
        S.sample(logits_BV, Sampling(temperature=temperature), S.row_generators(0, 2))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nothing_left_to_choose_is_an_error(temperature):
    with pytest.raises(InputError, match="no token is left"):
        S.sample(torch.full((1, 4), -math.inf), Sampling(temperature=temperature), S.row_generators(0, 1))


def test_bfloat16_logits_are_judged_in_float32():
    logits_BV = LOGITS_BV.bfloat16()
    assert S.filtered(logits_BV, Sampling(top_p=0.9)).dtype == torch.float32


WRONG = [
    ("temperature", -0.1),
    ("temperature", math.nan),
    ("top_k", 0),
    ("top_k", 1.5),
    ("top_p", 0.0),
    ("top_p", 1.1),
    ("min_p", -0.1),
    ("repetition_penalty", 0.0),
    ("seed", -1),
    ("max_tokens", -1),
    ("stop", [""]),
    ("stop", 3),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_wrong_settings_are_named(name, value):
    class Outer(Settings):
        sampling: Sampling

    with pytest.raises(SettingError, match=f"^{name}"):
        Sampling(**{name: value})
    with pytest.raises(SettingError, match=rf"^sampling\.{name}"):
        check(Outer, {"sampling": {name: value}})


def test_an_unknown_setting_is_guessed():
    with pytest.raises(SettingError, match="did you mean 'temperature'"):
        Sampling(temprature=1.0)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: S.temperature(x, 0.0),
        lambda x: S.top_k(x, 0),
        lambda x: S.top_p(x, 0.0),
        lambda x: S.min_p(x, 2.0),
        lambda x: S.repetition_penalty(x, PREVIOUS_BT, -1.0),
    ],
)
def test_the_functions_check_too(wrong):
    with pytest.raises(SettingError):
        wrong(LOGITS_BV)


def test_stop_may_be_one_text():
    assert Sampling(stop="END").stop == ("END",)
    assert Sampling(stop=["a", "b"]).stop == ("a", "b")
