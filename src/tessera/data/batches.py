"""Shards -> batches: rows of consecutive tokens, and the same rows one token later as targets.

Three ways to cut a long row of tokens into short ones; in what order they come is told in `stream`. The targets after
the end of the data are IGNORE, which the loss leaves out.

B batch, T time (the context).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tessera.data.batch import IGNORE, Batch, windows
from tessera.data.packing import grouped, pack
from tessera.data.shards import Shard
from tessera.data.shuffle import Purpose, random_words
from tessera.data.stream import Epochs, Row, Stream, check_sizes
from tessera.errors import InputError, SettingError


class RandomWindows(Stream):
    """Windows at uniformly random places, without end: draw `step` is a function of (seed, step).

    As many of them as the text is long, in windows, count as an epoch.
    """

    kind = "random"

    def __init__(
        self, *, shard: Shard, context: int, batch_size: int, seed: int = 0, separate_at: int | None = None
    ) -> None:
        super().__init__(shard=shard, context=context, batch_size=batch_size, seed=seed, separate_at=separate_at)
        self.n_rows = -(-(len(shard) - 1) // context)
        self.step = 0

    def draw(self) -> list[Row]:
        drawn = self._places(self.batch_size, self.step)
        self.step += 1
        return drawn

    def rows(self, first: int, n: int) -> list[Row]:
        """Row `number` is draw `number` of one row."""
        return [row for number in range(first, first + n) for row in self._places(1, number, number // self.n_rows)]

    def _places(self, n: int, counter: int, epoch: int = 0) -> list[Row]:
        words = random_words(n, seed=self.seed, purpose=Purpose.RANDOM_WINDOWS, counter=counter)
        starts = words % np.uint64(len(self.shard) - self.context)
        return [Row(((start + 1, start + self.context + 1),), epoch) for start in starts.tolist()]

    def n_targets(self, n: int) -> int:
        return n * self.context

    def read(self, rows: Sequence[Row]) -> Batch:
        return _read_windows(rows, self)

    def state(self) -> dict[str, Any]:
        return {**self._identity(), "step": self.step}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._check_identity(state)
        self.step = int(state["step"])


class EpochWindows(Epochs):
    """Each window once an epoch.

    Windows begin every `stride` tokens (`context` unless given, so that each token after the first is a target exactly
    once an epoch; less gives overlapping windows). The last window may reach past the end: it is padded with IGNORE.
    """

    kind = "epoch"

    def __init__(
        self,
        *,
        shard: Shard,
        context: int,
        batch_size: int,
        seed: int = 0,
        stride: int | None = None,
        separate_at: int | None = None,
    ) -> None:
        super().__init__(shard=shard, context=context, batch_size=batch_size, seed=seed, separate_at=separate_at)
        self.stride = context if stride is None else stride
        if not 1 <= self.stride <= context:
            raise SettingError("stride", stride, f"from 1 to the context ({context}), as a longer one skips tokens")
        self.n_rows = 1 + -(-(len(shard) - 1 - context) // self.stride)

    def _pieces(self, index: int) -> tuple[tuple[int, int], ...]:
        start = index * self.stride
        return ((start + 1, min(start + self.context + 1, len(self.shard))),)

    def _lengths(self) -> np.ndarray:
        starts = self.stride * np.arange(self.n_rows)
        return np.minimum(self.context, len(self.shard) - 1 - starts)

    def read(self, rows: Sequence[Row]) -> Batch:
        return _read_windows(rows, self)

    def _identity(self) -> dict[str, Any]:
        return {**super()._identity(), "stride": self.stride}


def _read_windows(rows: Sequence[Row], stream: Stream) -> Batch:
    starts_B = np.array([row.pieces[0][0] - 1 for row in rows], dtype=np.int64)
    return windows(stream.shard.tokens, starts_B, stream.context, stream.separate_at)


class Packed(Epochs):
    """Rows of whole documents, each document once an epoch and none seen by another.

    A document is what ends with the token `separate_at`. Its first token is predicted from an end token alone, as it is
    when a text is generated from nothing. One longer than the context is cut into pieces, of which the last is packed
    like a short document (`packing`). What is left over at a row's end is padding, a document of its own without
    targets.
    """

    kind = "packed"

    def __init__(
        self, *, shard: Shard, context: int, batch_size: int, seed: int = 0, separate_at: int | None = None
    ) -> None:
        if separate_at is None:
            raise SettingError("separate_at", None, "the id of the token that ends a document, to tell them by")
        super().__init__(shard=shard, context=context, batch_size=batch_size, seed=seed, separate_at=separate_at)
        self.end_id = separate_at
        ends = document_ends(shard.tokens, separate_at)
        begins = np.append(0, ends[:-1])
        n_pieces = -(-(ends - begins) // context)
        which = np.arange(n_pieces.sum()) - np.repeat(np.cumsum(n_pieces) - n_pieces, n_pieces)  # of its document
        self._begins = np.repeat(begins, n_pieces) + which * context
        self._ends = np.minimum(self._begins + context, np.repeat(ends, n_pieces))
        self._items, self._row_begins = grouped(pack(self._ends - self._begins, context))
        self.n_rows = len(self._row_begins) - 1
        self.n_documents = len(ends)

    @property
    def padding(self) -> float:
        """The share of an epoch's places that hold no text."""
        return 1 - len(self.shard) / (self.n_rows * self.context)

    def _pieces(self, index: int) -> tuple[tuple[int, int], ...]:
        items = self._items[self._row_begins[index] : self._row_begins[index + 1]]
        return tuple(zip(self._begins[items].tolist(), self._ends[items].tolist(), strict=True))

    def _lengths(self) -> np.ndarray:
        return np.add.reduceat((self._ends - self._begins)[self._items], self._row_begins[:-1])

    def read(self, rows: Sequence[Row]) -> Batch:
        shape = (len(rows), self.context)
        inputs_BT = np.full(shape, self.end_id, dtype=np.int64)
        targets_BT = np.full(shape, IGNORE, dtype=np.int64)
        documents_BT = np.zeros(shape, dtype=np.int64)
        for i, row in enumerate(rows):
            at = 0
            for begin, end in row.pieces:
                after = at + end - begin
                targets_BT[i, at:after] = self.shard.tokens[begin:end]
                first = max(begin, 1)  # nothing stands before the very first token: the end token that is there stays
                inputs_BT[i, at + first - begin : after] = self.shard.tokens[first - 1 : end - 1]
                at = after
                documents_BT[i, at:] += 1
        return Batch(inputs_BT, targets_BT, documents_BT)

    def _identity(self) -> dict[str, Any]:
        return {**super()._identity(), "n_rows": self.n_rows}


def document_ends(tokens: np.ndarray, end_id: int, *, chunk: int = 1 << 24) -> np.ndarray:
    """The place behind each document's end token, and the end of the tokens."""
    found = [
        np.flatnonzero(tokens[start : start + chunk] == end_id) + start + 1 for start in range(0, len(tokens), chunk)
    ]
    ends = np.concatenate(found) if found else np.empty(0, dtype=np.int64)
    return ends if len(ends) and ends[-1] == len(tokens) else np.append(ends, len(tokens))


def validation_batches(
    shard: Shard, context: int, batch_size: int, *, separate_at: int | None = None, overlap: int = 0
) -> Iterator[Batch]:
    """All of the shard in order, each token after the first as a target exactly once.

    Each window but the first begins with `overlap` tokens that the one before it has predicted: they are only read, so
    that no token but those of the first window is predicted from less than them. Data shorter than the context will do:
    the one window is then as wide as the data.
    """
    check_sizes(context, batch_size)
    if not 0 <= overlap < context:
        raise SettingError("overlap", overlap, f"from 0 to less than the context, {context}")
    if len(shard) < 2:
        raise InputError(f"{len(shard)} tokens are held out: a loss needs 2 or more")
    n_targets = len(shard) - 1
    context = min(context, n_targets)
    overlap = min(overlap, context - 1)
    starts = np.append(0, np.arange(context, n_targets, context - overlap) - overlap)

    def batch(number: int) -> Batch:
        made = windows(shard.tokens, starts[number : number + batch_size], context, separate_at)
        made.targets_BT[1 if number == 0 else 0 :, :overlap] = IGNORE
        return made

    return (batch(number) for number in range(0, len(starts), batch_size))


BATCHES: dict[str, type[Stream]] = {"random": RandomWindows, "epoch": EpochWindows, "packed": Packed}
