"""Examples -> batches: ids, of each whether it is learned, and how several of them share a batch.

What is not learned is read but not predicted: its targets are IGNORE. Nothing after the last learned token has any
effect on the loss (a token does not see what follows it), so a row ends there. A row may hold several examples: then
each is a document of its own, which sees itself only. Which examples share a row is said by an `arrange`, a function of
their lengths; `alone` gives each its own row, padded.

B batch, T time.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np

from tessera.data.batch import IGNORE, Batch
from tessera.data.packing import grouped, pack
from tessera.data.shuffle import Purpose, permutation
from tessera.errors import InputError, SettingError

TooLong = Literal["error", "cut", "skip"]
Unlearned = Literal["error", "skip"]
Arrange = Callable[[Sequence[int], int], Sequence[Sequence[int]]]
"""(the length of each example, the most that a row holds) -> for each row the numbers of its examples."""
NAMED = 3


@dataclass(frozen=True)
class Example:
    """The ids of a text, of each whether it is learned, and where the text comes from."""

    ids: np.ndarray
    learned: np.ndarray
    where: str

    @classmethod
    def of(cls, ids: Sequence[int], learned: Sequence[bool], where: str) -> "Example":
        return cls(np.asarray(ids, dtype=np.int32), np.asarray(learned, dtype=bool), where)

    @property
    def n_learned(self) -> int:
        """How many tokens are predicted and learned: the first one of all cannot be."""
        return int(self.learned[1:].sum())

    @property
    def kept(self) -> "Example":
        """The same without what follows its last learned token."""
        places = np.flatnonzero(self.learned)
        return self.first(int(places[-1]) + 1) if len(places) else self

    def first(self, n_tokens: int) -> "Example":
        return replace(self, ids=self.ids[:n_tokens], learned=self.learned[:n_tokens])


@dataclass
class Fitting:
    """What did not fit, counted, with the first few places."""

    n_examples: int = 0
    n_learned: int = 0
    cut: list[str] = field(default_factory=list)
    n_tokens_cut: int = 0
    too_long: list[str] = field(default_factory=list)
    unlearned: list[str] = field(default_factory=list)

    def leave_out(self, *group: Example) -> None:
        """Count a group that had been counted as learned from as one in which there is nothing to learn."""
        self.n_examples -= 1
        self.n_learned -= sum(example.n_learned for example in group)
        self.unlearned.append(group[0].where)

    def describe(self) -> list[str]:
        """A line for each thing that a person should know."""
        lines = [f"{self.n_examples:,} examples, {self.n_learned:,} learned tokens"]
        if self.cut:
            lines.append(f"{len(self.cut):,} were cut by {self.n_tokens_cut:,} tokens to fit: {_named(self.cut)}")
        if self.too_long:
            lines.append(f"{len(self.too_long):,} too long, left out: {_named(self.too_long)}")
        if self.unlearned:
            lines.append(f"{len(self.unlearned):,} with nothing to learn, left out: {_named(self.unlearned)}")
        return lines


def _named(places: Sequence[str]) -> str:
    return ", ".join(places[:NAMED]) + (", ..." if len(places) > NAMED else "")


def fit_groups(
    groups: Iterable[Sequence[Example]], *, max_tokens: int, too_long: TooLong = "error", unlearned: Unlearned = "error"
) -> tuple[list[int], list[tuple[Example, ...]], Fitting]:
    """The groups of examples (a pair of answers, or one alone) that can be learned from, with their numbers.

    An example may have `max_tokens`; a longer one is an error, is cut, or its group is left out. So it is with one in
    which nothing is learned, which cutting may bring about. Nothing is done without being counted.
    """
    if max_tokens < 2:
        raise SettingError("max_tokens", max_tokens, "2 or more")
    for name, value, known in (("too_long", too_long, TooLong), ("unlearned", unlearned, Unlearned)):
        if value not in get_args(known):
            raise SettingError(name, value, f"one of {', '.join(get_args(known))}")
    kept, numbers, told = [], [], Fitting()
    for number, group in enumerate(groups):
        shorter = _shorter([example.kept for example in group], max_tokens, too_long, told)
        if shorter and _is_learned(shorter, max_tokens, unlearned, told):
            numbers.append(number)
            kept.append(tuple(shorter))
            told.n_learned += sum(example.n_learned for example in shorter)
    if not kept:
        raise InputError(f"there is nothing to learn from: {'; '.join(told.describe())}")
    told.n_examples = len(kept)
    return numbers, kept, told


def _shorter(group: list[Example], most: int, too_long: TooLong, told: Fitting) -> list[Example]:
    """The group, if need be cut; empty if it is left out."""
    where, longest = group[0].where, max(len(example.ids) for example in group)
    if longest <= most:
        return group
    if too_long == "error":
        raise InputError(f"{where}: {longest} tokens, where {most} fit (too_long = cut or skip, or a longer context)")
    if too_long == "skip":
        told.too_long.append(where)
        return []
    told.cut.append(where)
    told.n_tokens_cut += sum(max(len(example.ids) - most, 0) for example in group)
    return [example.first(most).kept for example in group]


def _is_learned(group: list[Example], most: int, unlearned: Unlearned, told: Fitting) -> bool:
    if all(example.n_learned for example in group):
        return True
    where = group[0].where
    if unlearned == "error":
        raise InputError(f"{where}: nothing of its first {most} tokens is learned (unlearned = skip leaves it out)")
    told.unlearned.append(where)
    return False


def fit(
    examples: Iterable[Example], *, max_tokens: int, too_long: TooLong = "error", unlearned: Unlearned = "error"
) -> tuple[list[Example], Fitting]:
    """`fit_groups` of examples that stand alone."""
    groups = ((example,) for example in examples)
    _, kept, told = fit_groups(groups, max_tokens=max_tokens, too_long=too_long, unlearned=unlearned)
    return [example for (example,) in kept], told


def rows_of(rows: Sequence[Sequence[Example]], *, whole: bool = False) -> Batch:
    """A batch whose row number b holds the examples `rows[b]` one after the other, padded to the longest row.

    An example gives one input less than it has tokens, as nothing follows its last; `whole` has them all, for what is
    read at the last token. Documents are numbered where a row holds several examples. Torch tensors.
    """
    more = 1 if whole else 0
    width = max(sum(len(example.ids) - 1 + more for example in row) for row in rows)
    inputs_BT = np.zeros((len(rows), width), dtype=np.int64)
    targets_BT = np.full((len(rows), width), IGNORE, dtype=np.int64)
    documents_BT = np.zeros((len(rows), width), dtype=np.int64)
    for b, row in enumerate(rows):
        start = 0
        for number, example in enumerate(row):
            n_targets = len(example.ids) - 1
            inputs_BT[b, start : start + n_targets + more] = example.ids[: n_targets + more]
            targets_BT[b, start : start + n_targets] = np.where(example.learned[1:], example.ids[1:], IGNORE)
            documents_BT[b, start : start + n_targets + more] = number
            start += n_targets + more
        documents_BT[b, start:] = len(row)  # the padding, which nobody sees
    together = any(len(row) > 1 for row in rows)
    batch = Batch(inputs_BT, targets_BT, documents_BT if together else None)
    return batch.to("cpu")  # the objectives that read examples are all torch's


def fingerprint(groups: Iterable[Sequence[Example]]) -> str:
    """The sha256 of what is learned, which a data cursor and what is kept with the data belong to."""
    digest = hashlib.sha256()
    for group in groups:
        for example in group:
            digest.update(len(example.ids).to_bytes(8, "little"))
            digest.update(np.ascontiguousarray(example.ids, dtype="<i4").tobytes())
            digest.update(np.packbits(example.learned).tobytes())
        digest.update(b"|")
    return digest.hexdigest()


def alone(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Each example in a row of its own."""
    return [[number] for number in range(len(lengths))]


def packed(lengths: Sequence[int], room: int) -> list[list[int]]:
    """As few rows as best-fit decreasing makes (`tessera.data.packing`); no example is cut.

    >>> packed([3, 5, 2, 4], 7)
    [[1, 2], [0, 3]]
    """
    items, begins = grouped(pack(np.maximum(np.asarray(lengths, dtype=np.int64), 1), room))
    return [items[first:last].tolist() for first, last in pairwise(begins)]


class Shuffled:
    """The numbers 0 .. n - 1 in batches, each once an epoch in an order that (seed, epoch) decides, without end.

    An epoch's last batch may be short. `identity` is what the data is, so that no other data takes its cursor.
    """

    kind = "shuffled"

    def __init__(self, n: int, *, batch_size: int, seed: int, identity: str) -> None:
        if batch_size < 1:
            raise SettingError("batch_size", batch_size, "a whole number from 1")
        self.n, self.batch_size, self.seed, self.identity = n, batch_size, seed, identity
        self.epoch = self.position = 0

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.n // self.batch_size)

    def draw(self) -> list[int]:
        order = permutation(self.n, seed=self.seed, purpose=Purpose.EPOCH, counter=self.epoch)
        drawn = order[self.position : self.position + self.batch_size].tolist()
        self.position += len(drawn)
        if self.position == self.n:
            self.epoch, self.position = self.epoch + 1, 0
        return drawn

    def state(self) -> dict[str, Any]:
        """The cursor, as JSON-able data."""
        own = {"kind": self.kind, "seed": self.seed, "data": self.identity}
        return {**own, "epoch": self.epoch, "position": self.position}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on exactly where the one that gave `state` stood."""
        if (state.get("kind"), state.get("seed"), state.get("data")) != (self.kind, self.seed, self.identity):
            raise InputError("the data cursor belongs to other batches")
        self.epoch, self.position = int(state["epoch"]), int(state["position"])


class ExampleRows(Shuffled):
    """Batches of examples for `NextToken`, `SFT` and `Distillation`."""

    kind = "examples"

    def __init__(
        self,
        examples: Sequence[Example],
        *,
        batch_size: int,
        context: int,
        seed: int = 0,
        arrange: Arrange = alone,
    ) -> None:
        if not examples:
            raise InputError("there is no example to learn from")
        for example in examples:
            if len(example.ids) - 1 > context:
                raise InputError(f"{example.where}: {len(example.ids)} tokens do not fit a context of {context}")
            if not example.n_learned:
                raise InputError(f"{example.where}: nothing of it is learned")
        self.examples = list(examples)
        self.rows = [list(row) for row in arrange([len(example.ids) - 1 for example in examples], context)]
        identity = fingerprint([self.examples[i] for i in row] for row in self.rows)
        super().__init__(len(self.rows), batch_size=batch_size, seed=seed, identity=identity)

    def __next__(self) -> Batch:
        return rows_of([[self.examples[i] for i in self.rows[row]] for row in self.draw()])

    def in_order(self) -> list[Batch]:
        """All of it once, for a held-out loss."""
        starts = range(0, self.n, self.batch_size)
        rows = [[self.examples[i] for i in row] for row in self.rows]
        return [rows_of(rows[start : start + self.batch_size]) for start in starts]


ARRANGEMENTS: dict[str, Arrange] = {"alone": alone, "packed": packed}
