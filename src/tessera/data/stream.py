"""What all streams of batches are: an order of rows, and a cursor in it.

Which rows come next is a pure function of (seed, cursor), never of what was drawn before (`shuffle`), so a stream is
resumed exactly by two integers. To draw and to read are two things: `draw` moves the cursor and says which tokens come,
`read` fetches them. So what a run has read can be told afterwards, without reading it again.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from tessera.data.batch import Batch
from tessera.data.shards import Shard
from tessera.data.shuffle import Purpose, permutation, random_words
from tessera.errors import InputError, SettingError


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a batch: where the tokens to be predicted stand in the shard, from and up to; each is predicted from the
    token before it. Of windows that is one piece a row, of packed documents several."""

    pieces: tuple[tuple[int, int], ...]
    epoch: int = 0
    source: str = ""
    """Of a mixture."""


def check_sizes(context: int, batch_size: int) -> None:
    for name, value in (("context", context), ("batch_size", batch_size)):
        if value < 1:
            raise SettingError(name, value, "a whole number from 1")


class Stream(ABC):
    """Batches without end from one shard: the checks before the start, and a cursor that is refused by other data.

    `separate_at` is the id that separates documents, where they shall not see each other.
    """

    kind: str
    n_rows: int
    """In an epoch."""

    def __init__(
        self, *, shard: Shard, context: int, batch_size: int, seed: int = 0, separate_at: int | None = None
    ) -> None:
        check_sizes(context, batch_size)
        if len(shard) < context + 1:
            raise InputError(
                f"context longer than the data: context {context} needs {context + 1} tokens, the data has {len(shard)}"
            )
        random_words(0, seed=seed, purpose=Purpose.SPLIT)  # refuses a bad seed now, not at the first batch
        self.shard = shard
        self.context = context
        self.batch_size = batch_size
        self.seed = seed
        self.separate_at = separate_at

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        return self.read(self.draw())

    @abstractmethod
    def draw(self) -> list[Row]:
        """The rows of the next batch; the cursor is behind them then."""

    @abstractmethod
    def rows(self, first: int, n: int) -> list[Row]:
        """`n` rows from number `first` on, counted since the start, one epoch after another: a pure function."""

    @abstractmethod
    def read(self, rows: Sequence[Row]) -> Batch:
        """The tokens of rows."""

    @abstractmethod
    def n_targets(self, n: int) -> int:
        """How many tokens the first `n` rows predict."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """The cursor, as JSON-able data."""

    @abstractmethod
    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on exactly where the stream that gave `state` stood."""

    def _identity(self) -> dict[str, Any]:
        """What has to be equal for a cursor to mean the same rows; the batch size may change."""
        return {"kind": self.kind, "seed": self.seed, "context": self.context, "n_tokens": len(self.shard)}

    def _check_identity(self, state: Mapping[str, Any]) -> None:
        check_identity(self._identity(), state)


def check_identity(identity: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """An `InputError` that names what differs, if a cursor was not taken from batches of this identity."""
    for name, value in identity.items():
        if state.get(name) != value:
            raise InputError(
                f"the data cursor belongs to other batches: {name} was {state.get(name)!r} and is now {value!r}"
            )


class Epochs(Stream):
    """Each of `n_rows` rows once an epoch, in an order that (seed, epoch) decides, without end.

    The last batch of an epoch holds the rows that are left; no batch spans two epochs.
    """

    def __init__(
        self, *, shard: Shard, context: int, batch_size: int, seed: int = 0, separate_at: int | None = None
    ) -> None:
        super().__init__(shard=shard, context=context, batch_size=batch_size, seed=seed, separate_at=separate_at)
        self.epoch = 0
        self.position = 0
        self._order: tuple[int, np.ndarray] | None = None

    @abstractmethod
    def _pieces(self, index: int) -> tuple[tuple[int, int], ...]:
        """The pieces of the row of this number in the text."""

    @abstractmethod
    def _lengths(self) -> np.ndarray:
        """How many tokens each row predicts, in the order of the text."""

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.n_rows // self.batch_size)

    def draw(self) -> list[Row]:
        n = min(self.batch_size, self.n_rows - self.position)
        drawn = self.rows(self.epoch * self.n_rows + self.position, n)
        self.position += n
        if self.position == self.n_rows:
            self.epoch, self.position = self.epoch + 1, 0
        return drawn

    def rows(self, first: int, n: int) -> list[Row]:
        places = (divmod(number, self.n_rows) for number in range(first, first + n))
        return [Row(self._pieces(int(self._order_of(epoch)[position])), epoch) for epoch, position in places]

    def n_targets(self, n: int) -> int:
        epochs, position = divmod(n, self.n_rows)
        lengths = self._lengths()
        return int(epochs * lengths.sum() + lengths[self._order_of(epochs)[:position]].sum())

    def _order_of(self, epoch: int) -> np.ndarray:
        if self._order is None or self._order[0] != epoch:
            order = permutation(self.n_rows, seed=self.seed, purpose=Purpose.EPOCH, counter=epoch)
            self._order = (epoch, order)
        return self._order[1]

    def state(self) -> dict[str, Any]:
        return {**self._identity(), "epoch": self.epoch, "position": self.position}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._check_identity(state)
        self.epoch, self.position = int(state["epoch"]), int(state["position"])
