"""Several texts as one stream: each row of a batch is of the source whose turn it is, in exact shares.

Whose turn it is follows from how many rows were drawn so far, not from chance: each row of a source has a time before
which it is too early for it and one after which it is too late, and the next row is of the source whose row is due
first. With one row at a time and these limits that is always in time (Baruah et al. 1996, "Proportionate Progress", for
one processor; Tijdeman 1980, "The chairman assignment problem"), so that after any number of rows each source has had
its share to less than one row. Random draws would be off by the square root of the rows.

A source whose `epochs` are over drops out, and the others share its weight in the proportion of their own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import lcm
from typing import Any, Self

import numpy as np

from tessera.data.batch import Batch
from tessera.data.shuffle import Purpose, random_words
from tessera.data.stream import Row, Stream, check_identity
from tessera.errors import InputError, SettingError


def whole_shares(weights: Sequence[float]) -> list[int]:
    """The weights as whole numbers in the same proportion, each weight taken as it is written: 0.1 is a tenth.

    >>> whole_shares([0.7, 0.3])
    [7, 3]
    """
    exact = [Fraction(repr(weight)) for weight in weights]
    scale = lcm(*(weight.denominator for weight in exact))
    return [int(weight * scale) for weight in exact]


def whose_turn(shares: Sequence[int], drawn: Sequence[int]) -> int:
    """The source of the next row, from how many rows each has had; one with the share 0 has none.

    >>> drawn = [0, 0]
    >>> for _ in range(10):
    ...     drawn[whose_turn([7, 3], drawn)] += 1
    >>> drawn
    [7, 3]
    """
    n_next, total = sum(drawn) + 1, sum(shares)
    due = [
        (-(-(n_drawn + 1) * total // share), source)
        for source, (share, n_drawn) in enumerate(zip(shares, drawn, strict=True))
        if n_drawn * total < share * n_next  # else it is ahead of its share
    ]
    return min(due)[1]


def shared_out(weights: Sequence[float], limits: Sequence[int | None], n: int) -> list[float]:
    """How many of `n` rows each source gives, to less than a row for each source that is exhausted on the way.

    >>> shared_out([0.5, 0.3, 0.2], [100, None, None], 300)
    [100.0, 120.0, 80.0]
    """
    drawn = [0.0] * len(weights)
    left = list(range(len(weights)))
    while left and (rows := n - sum(drawn)) > 0.5:
        total = sum(weights[i] for i in left)
        rooms = {i: limit - drawn[i] for i in left if (limit := limits[i]) is not None}
        rows = min([rows, *(room * total / weights[i] for i, room in rooms.items())])
        for i in left:
            drawn[i] += rows * weights[i] / total
        left = [i for i in left if i not in rooms or rows * weights[i] / total < rooms[i] - 1e-6]
    return drawn


@dataclass(frozen=True)
class Source:
    """A part of a mixture: its rows in their own order, its share of the rows drawn, and how often it may be read."""

    name: str
    stream: Stream
    weight: float = 1.0
    epochs: int | None = None

    @property
    def limit(self) -> int | None:
        """The rows that it may give; None where there is no end."""
        return None if self.epochs is None else self.epochs * self.stream.n_rows


def source_seed(seed: int, number: int) -> int:
    """A seed for the source of this number, so that sources of one size are not read in one order."""
    return int(random_words(1, seed=seed, purpose=Purpose.SOURCE, counter=number)[0])


class Mixture:
    """Batches of exactly `batch_size` rows, drawn from the sources by their weights.

    The cursor is how many rows each source has given, and how many it had given when the shares last changed. A batch
    goes across the ends of epochs, which come at another row for each source. When all sources are exhausted, what is
    left is a shorter batch, and the next is an `InputError`.
    """

    def __init__(self, *, sources: Sequence[Source], batch_size: int) -> None:
        if batch_size < 1:
            raise SettingError("batch_size", batch_size, "a whole number from 1")
        _check(sources)
        self.sources = {source.name: source for source in sources}
        self.batch_size = batch_size
        self.drawn = [0] * len(sources)
        self._since = [0] * len(sources)
        self._shares: list[int] = []
        self._share_out()

    @property
    def n_rows(self) -> int | None:
        """All the rows that there will ever be; None where a source has no end."""
        limits = [source.limit for source in self.sources.values()]
        return None if None in limits else sum(limits)  # type: ignore[arg-type]

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        return self.read(self.draw())

    def draw(self) -> list[Row]:
        """The rows of the next batch; the cursor is behind them then."""
        if not any(self._shares):
            raise InputError(f"the mixture is exhausted: each source was read as often as its epochs say ({self})")
        before, turns = list(self.drawn), self._turns()
        sources = list(self.sources.values())
        rows = [
            iter(source.stream.rows(n, self.drawn[i] - n))
            for i, (source, n) in enumerate(zip(sources, before, strict=True))
        ]
        drawn = ((sources[turn].name, next(rows[turn])) for turn in turns)
        return [Row(row.pieces, row.epoch, name) for name, row in drawn]

    def _turns(self) -> list[int]:
        """The source of each row of the next batch; the cursor is behind them then."""
        limits = [source.limit for source in self.sources.values()]
        turns: list[int] = []
        while len(turns) < self.batch_size and any(self._shares):
            since = [n - before for n, before in zip(self.drawn, self._since, strict=True)]
            turns.append(turn := whose_turn(self._shares, since))
            self.drawn[turn] += 1
            if self.drawn[turn] == limits[turn]:
                self._since = list(self.drawn)
                self._share_out()
        return turns

    def read(self, rows: Sequence[Row]) -> Batch:
        """The tokens of rows, each from its own source."""
        parts: list[Batch] = []
        order: list[int] = []
        for name in dict.fromkeys(row.source for row in rows):
            own = [i for i, row in enumerate(rows) if row.source == name]
            parts.append(self.sources[name].stream.read([rows[i] for i in own]))
            order += own
        back = np.argsort(order)
        documents = [part.documents_BT for part in parts if part.documents_BT is not None]
        return Batch(
            np.concatenate([part.inputs_BT for part in parts])[back],
            np.concatenate([part.targets_BT for part in parts])[back],
            np.concatenate(documents)[back] if documents else None,
        )

    def state(self) -> dict[str, Any]:
        """The cursor, as JSON-able data."""
        return {**self._identity(), "drawn": list(self.drawn), "since": list(self._since)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on exactly where the mixture that gave `state` stood."""
        check_identity(self._identity(), state)
        self.drawn, self._since = list(state["drawn"]), list(state["since"])
        self._share_out()

    def _share_out(self) -> None:
        """Give the weight to those sources that have rows left."""
        sources = list(self.sources.values())
        shares = whole_shares([source.weight for source in sources])
        is_left = [source.limit is None or n < source.limit for source, n in zip(sources, self.drawn, strict=True)]
        self._shares = [share * left for share, left in zip(shares, is_left, strict=True)]

    def _identity(self) -> dict[str, Any]:
        """What has to be equal for a cursor to mean the same rows; short, as each step's cursor is kept."""
        sources = list(self.sources.values())
        return {
            "kind": "mixture of " + sources[0].stream.kind,
            "context": sources[0].stream.context,
            "seeds": [source.stream.seed for source in sources],
            "sources": [
                [source.name, source.weight, source.epochs, len(source.stream.shard), source.stream.n_rows]
                for source in sources
            ],
        }

    def __str__(self) -> str:
        return ", ".join(
            f"{source.name}: {n:,} rows in {n / source.stream.n_rows:.2f} epochs"
            for source, n in zip(self.sources.values(), self.drawn, strict=True)
        )


def _check(sources: Sequence[Source]) -> None:
    if not sources:
        raise SettingError("sources", [], "one or more")
    for number, source in enumerate(sources):
        if not 0 < source.weight < float("inf"):
            raise SettingError(f"mixture.{number}.weight", source.weight, "a number above 0")
        if source.epochs is not None and source.epochs < 1:
            raise SettingError(f"mixture.{number}.epochs", source.epochs, "a whole number from 1, or none")
        if source.name in [other.name for other in sources[:number]]:
            raise SettingError(f"mixture.{number}.name", source.name, "a name that no other source has")
        first = sources[0].stream
        if (source.stream.kind, source.stream.context) != (first.kind, first.context):
            raise SettingError(f"mixture.{number}", source.stream.kind, f"rows like the others': {first.kind}")
        if (source.stream.separate_at is None) != (first.separate_at is None):
            raise SettingError(f"mixture.{number}", source.name, "documents kept apart in all sources, or in none")
