import json
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.config import build
from tessera.data.batches import BATCHES, IGNORE, EpochWindows, RandomWindows, validation_batches
from tessera.data.shards import Shard
from tessera.errors import InputError, SettingError


def shard_of(n: int) -> Shard:
    """Token i is i: a token tells its own place."""
    return Shard(tokens=np.arange(n, dtype=np.uint16))


def targets(batches) -> Counter:
    return Counter(int(t) for batch in batches for t in batch.targets_BT.flatten() if t != IGNORE)


def check(batch):
    """int64, and every target is the token after its input."""
    assert batch.inputs_BT.dtype == batch.targets_BT.dtype == np.int64
    real = batch.targets_BT != IGNORE
    assert (batch.targets_BT[real] == batch.inputs_BT[real] + 1).all()
    assert (batch.inputs_BT[:, 1:][real[:, 1:]] == batch.targets_BT[:, :-1][real[:, 1:]]).all()
    assert batch.n_targets == int(real.sum())
    assert real.any(axis=1).all()


def same(left, right) -> bool:
    return np.array_equal(left.inputs_BT, right.inputs_BT) and np.array_equal(left.targets_BT, right.targets_BT)


sizes = {"context": st.integers(1, 9), "batch_size": st.integers(1, 5), "extra": st.integers(1, 60)}


@settings(max_examples=60)
@given(**sizes, stride=st.integers(1, 9), seed=st.integers(0, 2**64 - 1))
def test_an_epoch_has_every_token_as_a_target(context, batch_size, extra, stride, seed):
    n = context + extra
    stream = EpochWindows(
        shard=shard_of(n), context=context, batch_size=batch_size, seed=seed, stride=min(stride, context)
    )
    for epoch in range(3):
        assert stream.epoch == epoch
        batches = list(islice(stream, stream.steps_per_epoch))
        for batch in batches:
            check(batch)
        seen = targets(batches)
        assert set(seen) == set(range(1, n))
        starts = [int(row[0]) for batch in batches for row in batch.inputs_BT]
        assert sorted(starts) == [i * stream.stride for i in range(stream.n_rows)]
        if stream.stride == context:
            assert set(seen.values()) == {1}
    assert (stream.epoch, stream.position) == (3, 0)


@settings(max_examples=60)
@given(**sizes, seed=st.integers(0, 99), before=st.integers(0, 40), name=st.sampled_from(sorted(BATCHES)))
def test_a_restored_stream_goes_on_exactly(context, batch_size, extra, seed, before, name):
    def new():
        shard = shard_of(context + extra)
        return build(BATCHES, name, shard=shard, context=context, batch_size=batch_size, seed=seed, separate_at=3)

    stream, other = new(), new()
    for _ in range(before):
        next(stream)
    other.restore(json.loads(json.dumps(stream.state())))
    for _ in range(12):
        assert same(next(stream), next(other))
    assert stream.state() == other.state()


@settings(max_examples=60)
@given(context=st.integers(1, 12), batch_size=st.integers(1, 5), n=st.integers(2, 60), share=st.floats(0, 0.99))
def test_validation_predicts_each_token_once_and_in_order(context, batch_size, n, share):
    overlap = int(share * context)
    batches = list(validation_batches(shard_of(n), context, batch_size, overlap=overlap))
    for batch in batches:
        real = batch.targets_BT != IGNORE
        assert (batch.targets_BT[real] == batch.inputs_BT[real] + 1).all()
        if not overlap:
            check(batch)
        assert batch.inputs_BT.shape[0] <= batch_size
    order = [int(t) for batch in batches for t in batch.targets_BT.flatten() if t != IGNORE]
    assert order == list(range(1, n))
    assert sum(batch.n_targets for batch in batches) == n - 1
    rows = [row for batch in batches for row in batch.targets_BT]
    known = [int((row == IGNORE).argmin()) for row in rows[1:]]  # read before the first one that is predicted
    assert all(each == min(overlap, min(context, n - 1) - 1) for each in known)


def test_random_windows_reach_every_place_evenly():
    stream = RandomWindows(shard=shard_of(14), context=4, batch_size=100, seed=3)
    starts = Counter(int(row[0]) for batch in islice(stream, 100) for row in batch.inputs_BT)
    assert set(starts) == set(range(10))
    assert sum((count - 1000) ** 2 / 1000 for count in starts.values()) < 27.9  # chi-square, 9 degrees: p = 0.001


@pytest.mark.parametrize("name", sorted(BATCHES))
def test_seeds_and_epochs_give_other_orders(name):
    def first(seed, skip=0):
        stream = build(BATCHES, name, shard=shard_of(1000), context=4, batch_size=250, seed=seed, separate_at=0)
        return next(islice(stream, skip, None)).inputs_BT[:, 0].tolist()

    assert first(1) == first(1)
    assert first(1) != first(2)
    assert first(1) != first(1, skip=1)  # with 250 windows in an epoch of one step, the next epoch


@pytest.mark.parametrize("name", sorted(BATCHES))
def test_data_shorter_than_a_window_is_refused(name):
    build(BATCHES, name, shard=shard_of(9), context=8, batch_size=1, seed=0, separate_at=8)
    with pytest.raises(InputError, match="context longer than the data: context 8 needs 9 tokens, the data has 8"):
        build(BATCHES, name, shard=shard_of(8), context=8, batch_size=1, seed=0, separate_at=7)


@pytest.mark.parametrize(
    ("setting", "value"), [("context", 0), ("batch_size", 0), ("seed", -1), ("stride", 0), ("stride", 5)]
)
def test_impossible_settings_are_refused(setting, value):
    arguments = {"context": 4, "batch_size": 2, "seed": 0, setting: value}
    with pytest.raises(SettingError, match=f"{setting} = {value}"):
        EpochWindows(shard=shard_of(50), **arguments)


@pytest.mark.parametrize("change", [{"seed": 2}, {"context": 5}, {"shard": shard_of(51)}, {"stride": 3}])
def test_a_cursor_of_other_batches_is_refused(change):
    arguments = {"shard": shard_of(50), "context": 4, "batch_size": 2, "seed": 1}
    state = EpochWindows(**arguments).state()
    with pytest.raises(InputError, match="belongs to other batches"):
        EpochWindows(**(arguments | change)).restore(state)
    with pytest.raises(InputError, match="kind was 'epoch'"):
        RandomWindows(**arguments).restore(state)


def test_a_resumed_run_may_change_its_batch_size():
    small = EpochWindows(shard=shard_of(41), context=4, batch_size=2, seed=1)
    big = EpochWindows(shard=shard_of(41), context=4, batch_size=4, seed=1)
    next(small)
    big.restore(small.state())
    assert np.array_equal(next(big).inputs_BT, np.concatenate([next(small).inputs_BT, next(small).inputs_BT]))


def test_one_held_out_token_is_too_few():
    with pytest.raises(InputError, match="1 tokens are held out"):
        validation_batches(shard_of(1), 4, 2)


@pytest.mark.parametrize("kind", ["random", "epoch"])
def test_an_end_token_begins_another_document(kind: str) -> None:
    tokens = np.array([5, 6, 0, 7, 0, 0, 8, 9, 5, 0], dtype=np.uint16)
    stream = build(BATCHES, kind, shard=Shard(tokens=tokens), context=6, batch_size=3, separate_at=0)
    for batch in islice(stream, 4):
        for inputs, documents in zip(batch.inputs_BT.tolist(), batch.documents_BT.tolist(), strict=True):
            assert documents == [inputs[: i + 1].count(0) for i in range(6)]
    whole = next(validation_batches(Shard(tokens=tokens), 20, 1, separate_at=0))
    assert whole.documents_BT.tolist() == [[0, 0, 1, 1, 2, 3, 3, 3, 3]]
    assert whole.to("cpu").documents_BT is not None
    assert next(validation_batches(Shard(tokens=tokens), 20, 1)).documents_BT is None
