"""Batches made ahead: the same ones, and a cursor that knows nothing of those that nobody has used."""

import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from tessera.data.batches import BATCHES, Batch, EpochWindows
from tessera.data.shards import Shard
from tessera.train.loader import Prefetched

SHARD = Shard(np.random.default_rng(0).integers(0, 50, 500).astype(np.uint16))


def source(kind: str) -> Any:
    return BATCHES[kind](shard=SHARD, context=8, batch_size=3, seed=4, separate_at=7)


def same(a: Batch, b: Batch) -> bool:
    return np.array_equal(a.inputs_BT, b.inputs_BT) and np.array_equal(a.targets_BT, b.targets_BT)


@pytest.mark.parametrize("kind", BATCHES)
@pytest.mark.parametrize("depth", [0, 1, 5])
def test_batches_and_cursors_are_those_of_the_source(kind: str, depth: int) -> None:
    plain, ahead = source(kind), Prefetched(source(kind), depth=depth)
    assert ahead.state() == plain.state()
    for _ in range(50):
        assert same(next(ahead), next(plain))
        assert ahead.state() == plain.state()


@pytest.mark.parametrize("kind", BATCHES)
def test_it_goes_back_and_on_from_any_cursor(kind: str) -> None:
    plain, ahead = source(kind), Prefetched(source(kind), depth=3)
    for cut in (0, 1, 7, 20, 21, 63):
        for _ in range(cut):
            next(ahead)
        cursor = ahead.state()
        other = source(kind)
        other.restore(cursor)
        rest = [next(ahead) for _ in range(5)]
        assert all(same(one, next(other)) for one in rest)
        ahead.restore(cursor)
        assert all(same(one, next(ahead)) for one in rest)
    del plain


def test_another_batch_size_counts_from_the_next_batch() -> None:
    plain, ahead = source("epoch"), Prefetched(source("epoch"), depth=4)
    for size in (3, 3, 1, 2, 2, 5):
        plain.batch_size = ahead.batch_size = size
        one = next(ahead)
        assert len(one.inputs_BT) == size == ahead.batch_size
        assert same(one, next(plain))
        assert ahead.state() == plain.state()


class Breaks(EpochWindows):
    """The third batch cannot be made."""

    def __next__(self) -> Batch:
        if self.position >= 6:
            raise OSError("the disk is gone")
        return super().__next__()


def test_an_error_comes_where_its_batch_would_have_been_used() -> None:
    ahead = Prefetched(Breaks(shard=SHARD, context=8, batch_size=3), depth=4)
    next(ahead), next(ahead)
    with pytest.raises(OSError, match="the disk is gone"):
        next(ahead)
    ahead.restore({**ahead.state(), "position": 3})
    next(ahead)


class Slow:
    """Takes a while for each batch, and counts."""

    def __init__(self) -> None:
        self.made = 0

    def __next__(self) -> int:
        time.sleep(0.02)
        self.made += 1
        return self.made

    def state(self) -> Mapping[str, Any]:
        return {"made": self.made}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.made = state["made"]


def test_it_makes_them_while_others_work_and_no_more_than_it_may() -> None:
    ahead = Prefetched(Slow(), depth=3)
    assert next(ahead) == 1
    time.sleep(0.3)
    assert ahead.source.made == 4  # type: ignore[attr-defined]
    start = time.perf_counter()
    assert [next(ahead) for _ in range(3)] == [2, 3, 4]
    assert time.perf_counter() - start < 0.02


def test_its_thread_ends_with_it() -> None:
    before = set(threading.enumerate())
    ahead = Prefetched(Slow(), depth=2)
    next(ahead)
    mine = [each for each in threading.enumerate() if each not in before and each.name.startswith("batches")]
    assert mine
    del ahead
    for thread in mine:
        thread.join(timeout=60)
        assert not thread.is_alive()
