"""The filters against transformers and brute force; their properties; the fast rows against the plain ones."""

import math

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.errors import SettingError
from tessera.generate import filters as F
from tessera.generate import sampling as S
from tessera.generate.logits import log_softmax
from tessera.generate.rows import candidates
from tessera.generate.sampling import Sampling

LOGITS_BV = 3 * np.random.default_rng(0).standard_normal((16, 50), dtype=np.float32)
PREVIOUS_BT = np.random.default_rng(1).integers(0, 50, (16, 9))

THEIRS = {
    "temperature": (lambda x: F.temperature(x, 0.7), transformers.TemperatureLogitsWarper(0.7)),
    "top-k": (lambda x: F.top_k(x, 5), transformers.TopKLogitsWarper(5)),
    "top-k of all": (lambda x: F.top_k(x, 99), transformers.TopKLogitsWarper(50)),
    "top-p": (lambda x: F.top_p(x, 0.9), transformers.TopPLogitsWarper(0.9)),
    "top-p of one": (lambda x: F.top_p(x, 1e-6), transformers.TopPLogitsWarper(1e-6)),
    "min-p": (lambda x: F.min_p(x, 0.05), transformers.MinPLogitsWarper(0.05)),
    "typical": (lambda x: F.typical(x, 0.8), transformers.TypicalLogitsWarper(0.8)),
    "typical of one": (lambda x: F.typical(x, 1e-6), transformers.TypicalLogitsWarper(1e-6)),
}


@pytest.mark.parametrize("case", THEIRS)
def test_equals_transformers(case):
    ours, theirs = THEIRS[case]
    before_BV = LOGITS_BV.copy()
    found_BV = ours(LOGITS_BV)
    assert found_BV.dtype == np.float32
    expected_BV = theirs(None, torch.from_numpy(before_BV).clone()).softmax(-1)
    torch.testing.assert_close(torch.from_numpy(found_BV).softmax(-1), expected_BV)
    np.testing.assert_array_equal(LOGITS_BV, before_BV, "the logits were changed in place")


def test_the_filters_together_equal_transformers_in_the_documented_order():
    sampling = Sampling(
        temperature=1.7,
        top_k=20,
        top_p=0.95,
        min_p=0.1,
        typical=0.9,
        repetition_penalty=1.5,
        no_repeat_ngram=2,
        logit_bias={3: 2.0, 7: -1.0},
    )
    expected_BV, previous_BT = torch.from_numpy(LOGITS_BV).clone(), torch.from_numpy(PREVIOUS_BT)
    for processor in (
        transformers.SequenceBiasLogitsProcessor({(3,): 2.0, (7,): -1.0}),
        transformers.RepetitionPenaltyLogitsProcessor(1.5),
        transformers.NoRepeatNGramLogitsProcessor(2),
        transformers.TemperatureLogitsWarper(1.7),
        transformers.TopKLogitsWarper(20),
        transformers.TopPLogitsWarper(0.95),
        transformers.MinPLogitsWarper(0.1),
        transformers.TypicalLogitsWarper(0.9),
    ):
        expected_BV = processor(previous_BT, expected_BV)
    found_BV = torch.from_numpy(S.filtered(LOGITS_BV, sampling, PREVIOUS_BT)).softmax(-1)
    torch.testing.assert_close(found_BV, expected_BV.softmax(-1))
    assert 1 < (found_BV > 0).sum(-1).float().mean() < 20


def kept(logits_V: np.ndarray) -> list[int]:
    return np.flatnonzero(np.isfinite(logits_V)).tolist()


def softmax(logits_V: np.ndarray) -> np.ndarray:
    return np.exp(log_softmax(logits_V))


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
    row_V = np.array(logits, np.float64)
    assert kept(F.top_k(row_V, k)) == sorted(order[:k])
    assert kept(F.top_p(row_V, p)) == sorted(nucleus)
    least = math.log(p) + max(logits)
    assert kept(F.min_p(row_V, p)) == [id for id, logit in enumerate(logits) if logit >= least]


def test_half_of_two_equal_tokens_is_one_of_them():
    assert kept(F.top_p(np.array([0.0, 1.0, 1.0, -9.0]), 0.4)) == [1]
    assert kept(F.top_p(np.zeros(4), 0.5)) == [0, 1]


ROWS = st.lists(
    st.floats(-8, 8, width=32) | st.integers(-3, 3).map(float) | st.just(-math.inf), min_size=1, max_size=40
)
SHARES = st.floats(0.01, 1.0)


@settings(max_examples=200, deadline=None)
@given(
    row=ROWS.filter(lambda row: max(row) > -math.inf),
    temperature=st.sampled_from([0.3, 1.0, 2.0]),
    k=st.none() | st.integers(1, 45),
    p=st.none() | SHARES,
    least=st.none() | SHARES,
    share=st.none() | SHARES,
)
def test_the_fast_row_keeps_what_the_formulas_keep(row, temperature, k, p, least, share):
    """The fast way against its plain twin, in float64, where no rounding lies between the two."""
    sampling = Sampling(temperature=temperature, top_k=k, top_p=p, min_p=least, typical=share)
    row_V = np.array(row, np.float64)
    found_V = candidates(row_V, sampling).row()
    expected_V = F.shaped_plainly(row_V, sampling)
    assert kept(found_V) == kept(expected_V)
    np.testing.assert_allclose(softmax(found_V), softmax(expected_V), rtol=1e-9)


def test_the_fast_row_of_a_large_vocabulary_keeps_what_the_formulas_keep():
    generator = np.random.default_rng(0)
    for scale in (0.3, 1.0, 4.0):
        row_V = np.float32(scale) * generator.standard_normal(20_000, dtype=np.float32)
        for sampling in (
            Sampling(top_p=0.5),
            Sampling(top_p=0.99),
            Sampling(top_k=300, typical=0.7),
            Sampling(typical=0.9),
        ):
            found_V = candidates(row_V, sampling).row()
            expected_V = F.shaped_plainly(row_V, sampling)
            # float32 may end the sum a token earlier or later
            assert abs(len(kept(found_V)) - len(kept(expected_V))) <= 2
            assert len(set(kept(found_V)) ^ set(kept(expected_V))) <= 2


@settings(max_examples=100, deadline=None)
@given(row=ROWS.filter(lambda row: max(row) > -math.inf), low=SHARES, high=SHARES, k=st.integers(1, 40))
def test_sizes_and_what_is_in_what(row, low, high, k):
    row_V = np.array(row, np.float64)
    low, high = sorted((low, high))
    possible = set(kept(row_V))
    probs_V = softmax(row_V)
    assert len(set(kept(F.top_k(row_V, k))) & possible) == min(k, len(possible))
    for a_filter in (F.top_p, F.typical):
        few, many = set(kept(a_filter(row_V, low))), set(kept(a_filter(row_V, high)))
        assert few and few <= many <= possible, "a larger share keeps all that a smaller one keeps"
        assert probs_V[sorted(many)].sum() >= high - 1e-9
    assert set(kept(F.min_p(row_V, high))) <= set(kept(F.min_p(row_V, low))), "a larger share drops more"
    assert int(row_V.argmax()) in kept(F.min_p(row_V, high))
    hot, cold = (softmax(F.temperature(row_V, t)).max() for t in (2.0, 0.5))
    assert cold >= hot - 1e-12


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: F.temperature(x, 0.0),
        lambda x: F.top_k(x, 0),
        lambda x: F.top_p(x, 0.0),
        lambda x: F.min_p(x, 2.0),
        lambda x: F.typical(x, 1.1),
    ],
)
def test_the_functions_check_too(wrong):
    with pytest.raises(SettingError):
        wrong(LOGITS_BV)
