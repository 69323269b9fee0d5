"""Penalties, biases, bans, guidance and log-probabilities against transformers and by hand."""

import math

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from tessera.errors import InputError, SettingError
from tessera.generate import logits as L

LOGITS_BV = 3 * np.random.default_rng(0).standard_normal((16, 50), dtype=np.float32)
PREVIOUS_BT = np.random.default_rng(1).integers(0, 6, (16, 30))

THEIRS = {
    "repetition": (
        lambda row, ids: L.repetition_penalty(row, ids, 1.3),
        transformers.RepetitionPenaltyLogitsProcessor(1.3),
    ),
    "no-repeat 1-gram": (
        lambda row, ids: L.banned(row, L.repeated_ngrams(ids, 1)),
        transformers.NoRepeatNGramLogitsProcessor(1),
    ),
    "no-repeat 3-gram": (
        lambda row, ids: L.banned(row, L.repeated_ngrams(ids, 3)),
        transformers.NoRepeatNGramLogitsProcessor(3),
    ),
    "no-repeat, too long": (
        lambda row, ids: L.banned(row, L.repeated_ngrams(ids, 31)),
        transformers.NoRepeatNGramLogitsProcessor(31),
    ),
    "bias": (
        lambda row, ids: L.biased(row, {3: 2.5, 49: -100.0}),
        transformers.SequenceBiasLogitsProcessor({(3,): 2.5, (49,): -100.0}),
    ),
    "end tokens": (
        lambda row, ids: L.banned(row, [7, 9]),
        transformers.MinNewTokensLengthLogitsProcessor(20, 11, [7, 9]),
    ),
}


@pytest.mark.parametrize("case", THEIRS)
def test_equals_transformers(case):
    ours, theirs = THEIRS[case]
    before_BV = LOGITS_BV.copy()
    expected_BV = theirs(torch.from_numpy(PREVIOUS_BT), torch.from_numpy(before_BV).clone())
    found = [ours(row_V, ids.tolist()) for row_V, ids in zip(LOGITS_BV, PREVIOUS_BT, strict=True)]
    assert all(row_V.dtype == np.float32 for row_V in found)
    torch.testing.assert_close(torch.from_numpy(np.stack(found)), expected_BV)
    np.testing.assert_array_equal(LOGITS_BV, before_BV, "the logits were changed in place")


def test_the_3_grams_ban_something():
    assert sum(len(L.repeated_ngrams(ids.tolist(), 3)) for ids in PREVIOUS_BT) > 5


@given(ids=st.lists(st.integers(0, 3), max_size=20), n=st.integers(1, 5), next_id=st.integers(0, 3))
def test_an_ngram_is_banned_if_it_has_occurred(ids, n, next_id):
    runs = [tuple((*ids, next_id)[i : i + n]) for i in range(len(ids) + 2 - n)]
    repeats = len(ids) + 1 >= n and runs[-1] in runs[:-1]
    assert (next_id in L.repeated_ngrams(ids, n)) == repeats


def test_penalties_by_hand():
    logits_V = np.array([2.0, -2.0, 1.0, 0.0])
    assert L.repetition_penalty(logits_V, [0, 1, 1, 3], 2.0).tolist() == [1.0, -4.0, 1.0, 0.0]
    assert L.occurrence_penalty(logits_V, [0, 1, 1], 0.5, 0.25).tolist() == [1.25, -3.0, 1.0, 0.0]
    assert L.occurrence_penalty(logits_V, [], 0.5, 0.25).tolist() == logits_V.tolist()
    with pytest.raises(SettingError, match="repetition_penalty"):
        L.repetition_penalty(logits_V, [0], -1.0)


def test_ids_of_another_vocabulary():
    logits_V = np.zeros(4)
    assert L.banned(logits_V, [9, 1]).tolist() == [0.0, -math.inf, 0.0, 0.0]
    with pytest.raises(InputError, match="token id 4, outside of the vocabulary of 4"):
        L.biased(logits_V, {4: 1.0})


def test_guidance_is_the_formula_of_transformers():
    scores_BV = L.guided(LOGITS_BV[:8], LOGITS_BV[8:], 1.7)
    processor = transformers.ClassifierFreeGuidanceLogitsProcessor(1.7)
    both_BV = torch.from_numpy(LOGITS_BV).log_softmax(-1)
    expected_BV = processor(torch.from_numpy(PREVIOUS_BT[:8]), both_BV)
    torch.testing.assert_close(torch.from_numpy(scores_BV), expected_BV)
    plain_BV = torch.from_numpy(L.guided(LOGITS_BV[:8], LOGITS_BV[8:], 1.0))
    torch.testing.assert_close(plain_BV, both_BV[:8])


def test_guidance_leaves_the_impossible_impossible():
    own_V, negative_V = np.array([0.0, -math.inf, 1.0]), np.array([0.0, -math.inf, 2.0])
    assert np.isneginf(L.guided(own_V, negative_V, 2.0)).tolist() == [False, True, False]
    with_one_only_V = L.guided(np.array([0.0, 1.0]), np.array([0.0, -math.inf]), 2.0)
    assert np.isfinite(with_one_only_V).all()


def test_log_probabilities():
    logits_V = np.array([1.0, 3.0, 3.0, 0.0, -math.inf], np.float32)
    logprob, top = L.log_probabilities(logits_V, 0, 3)
    expected_V = torch.from_numpy(logits_V).double().log_softmax(-1)
    assert logprob == pytest.approx(expected_V[0].item(), abs=1e-6)
    assert [id for id, _ in top] == [1, 2, 0], "equal ones in the order of their ids"
    assert [value for _, value in top] == pytest.approx(expected_V[[1, 2, 0]].tolist(), abs=1e-6)
    assert L.log_probabilities(logits_V, 1, 0)[1] == []
    assert len(L.log_probabilities(logits_V, 1, 99)[1]) == 5
