"""Mixtures: exact shares at any moment, a cursor that is all there is to know, and each row once an epoch."""

import json
from collections import Counter
from fractions import Fraction
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.data.batch import IGNORE, Batch
from tessera.data.batches import BATCHES, EpochWindows
from tessera.data.mixture import Mixture, Source, source_seed, whole_shares, whose_turn
from tessera.data.shards import Shard
from tessera.data.stream import Row
from tessera.errors import InputError, SettingError
from tessera.train.loader import Prefetched

END = 0
WEIGHTS = st.lists(st.floats(0.001, 1000).map(lambda x: float(f"{x:.3g}")), min_size=1, max_size=7)


def text(n: int, base: int) -> Shard:
    """Tokens that say where they are from: base, base + 1, ..., with an end token at every seventh place."""
    tokens = np.arange(base, base + n)
    tokens[6::7] = END
    return Shard(tokens=tokens.astype(np.uint16))


def mixture(
    kind: str = "epoch", *, batch_size: int = 3, seed: int = 5, sizes: Any = ((50, 0.7, None), (33, 0.3, None))
) -> Mixture:
    sources = [
        Source(
            name=f"s{i}",
            stream=BATCHES[kind](
                shard=text(n, 1000 * (i + 1)), context=8, batch_size=1, seed=source_seed(seed, i), separate_at=END
            ),
            weight=weight,
            epochs=epochs,
        )
        for i, (n, weight, epochs) in enumerate(sizes)
    ]
    return Mixture(sources=sources, batch_size=batch_size)


def same(left: Batch, right: Batch) -> bool:
    pairs = zip(
        (left.inputs_BT, left.targets_BT, left.documents_BT),
        (right.inputs_BT, right.targets_BT, right.documents_BT),
        strict=True,
    )
    return all(np.array_equal(a, b) for a, b in pairs if a is not None and b is not None)


@settings(max_examples=150, deadline=None)
@given(weights=WEIGHTS, n=st.integers(1, 400))
def test_each_source_has_its_share_to_less_than_one_row_at_any_moment(weights: list[float], n: int) -> None:
    shares, drawn = whole_shares(weights), [0] * len(weights)
    exact = [Fraction(str(weight)) / sum(Fraction(str(each)) for each in weights) for weight in weights]
    for rows in range(1, n + 1):
        drawn[whose_turn(shares, drawn)] += 1
        assert all(abs(have - share * rows) < 1 for have, share in zip(drawn, exact, strict=True))


def test_the_largest_deficit_first_would_not_keep_the_shares() -> None:
    """Why the rows have times that they are due: with many sources the obvious rule falls behind by more than a row."""
    shares = [1] * 1 + [60] * 20 + [997] * 3
    total, greedy, due = sum(shares), [0] * 24, [0] * 24
    worst = {"greedy": Fraction(0), "due": Fraction(0)}
    for rows in range(1, total + 1):
        deficits = [share * rows - total * n for share, n in zip(shares, greedy, strict=True)]
        greedy[deficits.index(max(deficits))] += 1
        due[whose_turn(shares, due)] += 1
        for name, drawn in (("greedy", greedy), ("due", due)):
            off = max(abs(Fraction(share * rows, total) - n) for share, n in zip(shares, drawn, strict=True))
            worst[name] = max(worst[name], off)
    assert worst["due"] < 1 < worst["greedy"]


def reference(kind: str, sizes: Any, seed: int, n: int) -> list[tuple[str, tuple[tuple[int, int], ...]]]:
    """The slow way: all rows of all epochs written out, source by source, then dealt out by the times they are due."""
    rows: list[list[tuple[tuple[int, int], ...]]] = []
    for i, (size, _, epochs) in enumerate(sizes):
        stream = BATCHES[kind](
            shard=text(size, 1000 * (i + 1)), context=8, batch_size=1, seed=source_seed(seed, i), separate_at=END
        )
        n_epochs = 1 + n // stream.n_rows if epochs is None else epochs
        rows.append([stream.draw()[0].pieces for _ in range(n_epochs * stream.n_rows)])
    weights = [Fraction(str(weight)) for _, weight, _ in sizes]
    dealt: list[tuple[str, tuple[tuple[int, int], ...]]] = []
    taken, since, begun = [0] * len(sizes), [0] * len(sizes), 0
    live = list(range(len(sizes)))
    while len(dealt) < n and live:
        total = sum(weights[i] for i in live)
        slot = len(dealt) - begun
        may = [i for i in live if Fraction(taken[i] - since[i]) * total / weights[i] < slot + 1]
        turn = min(may, key=lambda i: (-(-(taken[i] - since[i] + 1) * total // weights[i]), i))
        dealt.append((f"s{turn}", rows[turn][taken[turn]]))
        taken[turn] += 1
        if sizes[turn][2] is not None and taken[turn] == len(rows[turn]):
            live.remove(turn)
            since, begun = list(taken), len(dealt)
    return dealt


SIZES = st.lists(
    st.tuples(st.integers(9, 60), st.sampled_from([0.1, 0.25, 0.5, 1.0, 3.0]), st.sampled_from([None, 1, 2, 3])),
    min_size=1,
    max_size=4,
)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(sorted(BATCHES)),
    sizes=SIZES,
    seed=st.integers(0, 99),
    batches=st.lists(st.integers(1, 9), max_size=14),
)
def test_the_rows_are_those_of_the_slow_way_whatever_the_batches(
    kind: str, sizes: Any, seed: int, batches: list[int]
) -> None:
    """Batches of changing sizes, each by a new mixture that knows nothing but the last one's cursor."""
    expected = reference(kind, sizes, seed, sum(batches))
    drawn: list[Row] = []
    state = json.dumps(mixture(kind, seed=seed, sizes=sizes).state())
    for size in batches:
        stream = mixture(kind, seed=seed, sizes=sizes, batch_size=1)
        stream.restore(json.loads(state))
        stream.batch_size = size
        if len(drawn) == stream.n_rows:
            with pytest.raises(InputError, match="the mixture is exhausted"):
                next(stream)
            break
        drawn += (rows := stream.draw())
        assert len(rows) == min(size, len(expected) - len(drawn) + len(rows))
        state = json.dumps(stream.state())
    assert [(row.source, row.pieces) for row in drawn] == expected[: len(drawn)]
    assert len(drawn) in (len(expected), sum(batches))


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["epoch", "packed"]),
    sizes=st.lists(
        st.tuples(st.integers(9, 110), st.sampled_from([0.1, 0.3, 0.7, 2.0]), st.sampled_from([None, 1, 2])),
        min_size=1,
        max_size=4,
    ),
    seed=st.integers(0, 99),
    cuts=st.lists(st.integers(1, 9), min_size=1, max_size=40),
)
def test_each_row_is_there_once_an_epoch_over_any_cuts(kind: str, sizes: Any, seed: int, cuts: list[int]) -> None:
    """And each token of a source is predicted once in a whole epoch of it."""
    rows: dict[str, list[Row]] = {}
    stream = mixture(kind, sizes=sizes, seed=seed)
    for n in cuts:
        again = mixture(kind, sizes=sizes, seed=seed, batch_size=n)
        again.restore(json.loads(json.dumps(stream.state())))
        stream = again
        if sum(map(len, rows.values())) == stream.n_rows:
            break
        for row in stream.draw():
            rows.setdefault(row.source, []).append(row)
    for name, seen in rows.items():
        source = stream.sources[name]
        n = source.stream.n_rows
        assert len(seen) <= (source.limit or len(seen))
        for start in range(0, len(seen), n):
            epoch = seen[start : start + n]
            assert {row.epoch for row in epoch} == {start // n}
            places = Counter(place for row in epoch for begin, end in row.pieces for place in range(begin, end))
            whole = Counter(range(1 if kind == "epoch" else 0, len(source.stream.shard)))
            assert places <= whole
            assert len(epoch) < n or places == whole


@pytest.mark.parametrize("kind", sorted(BATCHES))
def test_a_batch_holds_the_tokens_of_its_rows(kind: str) -> None:
    stream, other = mixture(kind, batch_size=7), mixture(kind, batch_size=7)
    for batch in islice(stream, 9):
        rows = other.draw()
        assert batch.inputs_BT.shape == (7, 8)
        for i, row in enumerate(rows):
            shard = stream.sources[row.source].stream.shard
            wanted = [int(token) for begin, end in row.pieces for token in shard.tokens[begin:end]]
            targets = batch.targets_BT[i].tolist()
            assert targets == wanted + [IGNORE] * (8 - len(wanted))
            assert batch.documents_BT is not None
    assert stream.state() == other.state()
    assert {row.source for row in other.draw()} == {"s0", "s1"}


def test_a_source_that_is_exhausted_leaves_its_weight_to_the_others() -> None:
    sizes = ((50, 0.5, 1), (500, 0.3, None), (500, 0.2, None))  # 7 rows of the first
    stream = mixture(sizes=sizes, batch_size=1)
    names = [stream.draw()[0].source for _ in range(114)]
    last = len(names) - names[::-1].index("s0")
    assert last in (13, 14)
    assert Counter(names)["s0"] == 7
    after = Counter(names[last : last + 100])
    assert after["s1"] == 60
    assert after["s2"] == 40


def test_what_is_left_at_the_very_end_is_a_shorter_batch_and_then_an_error() -> None:
    stream = mixture(sizes=((50, 1.0, 1), (33, 1.0, 2)), batch_size=4)  # 7 + 2 * 4 rows
    assert stream.n_rows == 15
    assert [len(stream.draw()) for _ in range(4)] == [4, 4, 4, 3]
    with pytest.raises(InputError, match=r"exhausted.*s0: 7 rows in 1.00 epochs, s1: 8 rows in 2.00 epochs"):
        next(stream)
    assert mixture(sizes=((50, 1.0, 1), (33, 1.0, None))).n_rows is None


@pytest.mark.parametrize("kind", sorted(BATCHES))
def test_made_ahead_and_in_other_sizes_it_is_the_same(kind: str) -> None:
    plain, ahead = mixture(kind), Prefetched(mixture(kind), depth=3)
    for size in (2, 5, 5, 1, 8):
        plain.batch_size = ahead.batch_size = size
        for _ in range(3):
            assert same(next(plain), next(ahead))
            assert plain.state() == ahead.state()
    resumed = Prefetched(mixture(kind, batch_size=8))
    resumed.restore(ahead.state())
    assert same(next(resumed), next(plain))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"seed": 6}, "seeds was"),
        ({"kind": "random"}, "kind was 'mixture of epoch'"),
        ({"sizes": ((50, 0.6, None), (33, 0.3, None))}, r"sources was \[\['s0', 0.7"),
        ({"sizes": ((50, 0.7, None), (33, 0.3, 2))}, "sources was"),
        ({"sizes": ((50, 0.7, None), (34, 0.3, None))}, "sources was"),
        ({"sizes": ((50, 0.7, None),)}, "seeds was"),
    ],
)
def test_a_cursor_of_another_mixture_is_refused(change: dict[str, Any], what: str) -> None:
    with pytest.raises(InputError, match=f"belongs to other batches: {what}"):
        mixture(**change).restore(mixture().state())


def test_bad_sources_are_refused() -> None:
    def stream(context: int = 4, **settings: Any) -> EpochWindows:
        return EpochWindows(shard=text(20, 5), context=context, batch_size=1, **settings)

    good = Source("a", stream())
    for sources, message in [
        ([], "sources = "),
        ([Source("a", stream(), weight=0.0)], r"mixture.0.weight = 0.0: expected a number above 0"),
        ([Source("a", stream(), weight=float("inf"))], r"mixture.0.weight = inf"),
        ([Source("a", stream(), epochs=0)], r"mixture.0.epochs = 0: expected a whole number from 1"),
        ([good, good], r"mixture.1.name = 'a': expected a name that no other source has"),
        ([good, Source("b", stream(context=5))], r"mixture.1 = "),
        ([good, Source("b", stream(separate_at=0))], r"mixture.1 = 'b': expected documents kept apart in all"),
    ]:
        with pytest.raises(SettingError, match=message):
            Mixture(sources=sources, batch_size=2)
    with pytest.raises(SettingError, match="batch_size = 0"):
        Mixture(sources=[good], batch_size=0)
