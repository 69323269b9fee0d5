"""Rows of short texts: each token after a text's first is a target once an epoch, and never another text's."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.data.batches import IGNORE, Batch
from tessera.data.rows import DocumentRows
from tessera.errors import InputError, SettingError

END = 99


def epoch(rows: DocumentRows) -> list[Batch]:
    return [next(rows) for _ in range(rows.steps_per_epoch)]


def pairs(batches: list[Batch]) -> Counter[tuple[int, int]]:
    """(token, the one after it) of each target."""
    found: Counter[tuple[int, int]] = Counter()
    for batch in batches:
        seen = batch.targets_BT != IGNORE
        found.update(zip(batch.inputs_BT[seen].tolist(), batch.targets_BT[seen].tolist(), strict=True))
    return found


def test_a_row_by_hand() -> None:
    rows = DocumentRows([[1, 2, 3], [4, 5]], context=4, batch_size=2, end_id=END)
    batch = next(rows)
    made = sorted(zip(batch.inputs_BT.tolist(), batch.targets_BT.tolist(), strict=True))
    assert made == [([1, 2, 3], [2, 3, END]), ([4, 5, 0], [5, END, IGNORE])]
    assert batch.n_targets == 5
    assert batch.inputs_BT.dtype == batch.targets_BT.dtype == np.int64


texts = st.lists(st.lists(st.integers(0, 50), max_size=12), min_size=1, max_size=6)


@given(texts, st.integers(1, 5), st.integers(1, 4), st.booleans())
def test_every_token_after_a_texts_first_is_a_target_once(
    texts: list[list[int]], context: int, batch_size: int, ends: bool
) -> None:
    closed = [[*text, END] if ends else text for text in texts if text]
    expected: Counter[tuple[int, int]] = Counter()
    for text in closed:
        expected.update(pairwise(text))
    if not expected:
        with pytest.raises(InputError, match="shorter than two tokens"):
            DocumentRows(texts, context=context, batch_size=batch_size, end_id=END if ends else None)
        return
    rows = DocumentRows(texts, context=context, batch_size=batch_size, end_id=END if ends else None, seed=3)
    for _ in range(2):
        batches = epoch(rows)
        assert pairs(batches) == expected
        assert all(batch.inputs_BT.shape[1] <= context for batch in batches)
        assert all(1 <= batch.inputs_BT.shape[0] <= batch_size for batch in batches)


def test_the_order_is_new_each_epoch_and_decided_by_the_seed() -> None:
    texts = [[i, i + 1] for i in range(0, 80, 2)]

    def order(seed: int) -> list[list[int]]:
        rows = DocumentRows(texts, context=4, batch_size=8, seed=seed)
        return [[token for batch in epoch(rows) for token in batch.inputs_BT[:, 0].tolist()] for _ in range(2)]

    first, second = order(seed=1)
    assert first != second
    assert sorted(first) == sorted(second) == list(range(0, 80, 2))
    assert order(seed=1) == [first, second]
    assert order(seed=2)[0] != first


@pytest.mark.parametrize("n_before", [0, 1, 3, 4, 9])
def test_the_cursor_goes_on_exactly_where_it_stood(n_before: int) -> None:
    def made() -> DocumentRows:
        return DocumentRows([[i, i + 1, i + 2] for i in range(10)], context=2, batch_size=3, seed=5)

    whole, resumed = made(), made()
    for _ in range(n_before):
        next(whole)
    resumed.restore(whole.state())
    for _ in range(6):
        a, b = next(whole), next(resumed)
        assert np.array_equal(a.inputs_BT, b.inputs_BT)
        assert np.array_equal(a.targets_BT, b.targets_BT)


def test_a_cursor_of_other_rows_is_refused() -> None:
    texts = [[1, 2, 3]]
    state = DocumentRows(texts, context=2, batch_size=1, seed=5).state()
    with pytest.raises(InputError, match="belongs to other batches"):
        DocumentRows(texts, context=2, batch_size=1, seed=6).restore(state)
    with pytest.raises(InputError, match="belongs to other batches"):
        DocumentRows(texts, context=2, batch_size=1, seed=5).restore({**state, "kind": "random"})


@pytest.mark.parametrize("name", ["context", "batch_size"])
def test_a_size_below_one_is_told(name: str) -> None:
    with pytest.raises(SettingError, match=f"{name} = 0: expected a whole number from 1"):
        DocumentRows([[1, 2, 3]], **{"context": 2, "batch_size": 1, name: 0})
