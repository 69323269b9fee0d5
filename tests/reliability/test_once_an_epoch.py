"""Wherever it is cut, and however often: each sample is seen exactly once an epoch, from every kind of stream.

A cut keeps what was read up to a checkpoint and loses what was read after it, as a kill does; the next part is another
stream, with batches of another size, that knows nothing but the saved cursor.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.data.batches import IGNORE, EpochWindows, Packed
from tessera.data.mixture import Mixture, Source, source_seed
from tessera.data.shards import Shard
from tessera.train.loader import Prefetched

CONTEXT, END = 6, 0
N_TOKENS, N_OTHER = 61, 40
OTHER = 100
"""The first token of the second text; every token of both but END is there once, so a target says where it is from."""


def text(n: int, first: int, documents: Sequence[int]) -> Shard:
    """Tokens that are all different, and an END after each of the documents."""
    tokens = np.arange(first, first + n, dtype=np.uint16)
    tokens[[end - 1 for end in np.cumsum(documents)]] = END
    return Shard(tokens)


FIRST = text(N_TOKENS, 1, (5, 3, 14, 20, 19))
SECOND = text(N_OTHER, OTHER, (12, 28))


def stream(kind: type[Any], seed: int) -> Any:
    return kind(shard=FIRST, context=CONTEXT, batch_size=1, seed=seed, separate_at=END)


def mixture(kind: type[Any], seed: int) -> Mixture:
    texts = (("first", FIRST, 0.7), ("second", SECOND, 0.3))
    return Mixture(
        sources=[
            Source(
                name,
                kind(shard=shard, context=CONTEXT, batch_size=1, seed=source_seed(seed, number), separate_at=END),
                weight=weight,
            )
            for number, (name, shard, weight) in enumerate(texts)
        ],
        batch_size=1,
    )


STREAMS: dict[str, Callable[[int], Any]] = {
    "epoch": partial(stream, EpochWindows),
    "packed": partial(stream, Packed),
    "mixture of epochs": partial(mixture, EpochWindows),
    "mixture of packed": partial(mixture, Packed),
}
parts = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 3), st.integers(1, 5)), min_size=1, max_size=10)


def rows(batch: Any) -> list[tuple[int, ...]]:
    """What each row predicts; IGNORE and END apart, which are there more than once."""
    return [tuple(token for token in row if token not in (IGNORE, END)) for row in batch.targets_BT.tolist()]


@pytest.mark.parametrize("name", STREAMS)
@settings(max_examples=40, deadline=None)
@given(parts=parts, seed=st.integers(0, 50), prefetch=st.booleans())
def test_over_any_cuts(name: str, parts: list[tuple[int, int, int]], seed: int, prefetch: bool) -> None:
    seen: list[tuple[int, ...]] = []
    saved = json.dumps(STREAMS[name](seed).state())
    for kept, lost, size in parts:
        source: Any = STREAMS[name](seed)
        if prefetch:
            source = Prefetched(source)
        source.restore(json.loads(saved))
        source.batch_size = size
        for _ in range(kept):
            seen += rows(next(source))
        saved = json.dumps(source.state())
        for _ in range(lost):
            next(source)
    check_each_once_an_epoch(seen)
    whole = STREAMS[name](seed)
    expected: list[tuple[int, ...]] = []
    while len(expected) < len(seen):
        expected += rows(next(whole))
    assert seen == expected


def check_each_once_an_epoch(seen: list[tuple[int, ...]]) -> None:
    """Of each text the tokens in the order seen: no token for the n-th time before all for the (n - 1)-th."""
    for first, shard in ((1, FIRST), (OTHER, SECOND)):
        own = {int(token) for token in shard.tokens if token != END}
        counts = Counter[int]()
        for row in seen:
            if not row or (row[0] >= OTHER) != (first == OTHER):
                continue
            counts.update(row)
            assert set(counts) <= own
            missing = {token for token in own if counts[token] < max(counts.values()) - 1}
            assert missing <= {first}  # the first token of a text in windows is predicted by nothing
