"""Checkpoints: the contract, and the index that both stores keep in `run.db`.

A checkpoint is a step's named tensors and a dictionary. Once `write` returns it survives whatever happens to the
process; what `read` returns is what was written, bit for bit, or it is an error.
"""

import hashlib
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tessera.config import EngineName
from tessera.errors import DamagedError, InputError, SettingError
from tessera.store.sqlite import Database


@dataclass(frozen=True)
class Loaded:
    """A checkpoint that verified. `skipped` says of each newer one why it was passed over."""

    step: int
    tensors: Mapping[str, Any]
    meta: dict[str, Any]
    skipped: list[str] = field(default_factory=list)


class CheckpointStore(ABC):
    """Where the checkpoints of one run are.

    Tensor names are `group.rest`: "model.head.weight", "optimizer.0.m", "state.rng". `meta` is JSON with string keys.
    What is written are tensors of torch or NumPy arrays, the same bytes either way; who reads says which are wanted.
    """

    def __init__(self, database: Database, *, writable: bool) -> None:
        self.index = Index(database)
        self._writable = writable

    @abstractmethod
    def write(
        self,
        step: int,
        tensors: Mapping[str, Any],
        meta: Mapping[str, Any],
        *,
        keep: int = 1,
        protect: Set[int] = frozenset(),
    ) -> None:
        """Store a step, replacing one of that number; then remove what is older than the newest `keep`.

        Never removed: this one, the best, the steps in `protect`, and what this run did not make. An error leaves every
        earlier checkpoint as it was.
        """

    @abstractmethod
    def steps(self) -> list[int]:
        """The steps that there are, oldest first, damaged ones too."""

    @abstractmethod
    def _read(self, step: int, prefix: str | None, engine: EngineName) -> tuple[Mapping[str, Any], dict[str, Any]]:
        """One step's tensors and dictionary; `DamagedError` names what does not verify, `KeyError`: it is not there."""

    def read(self, step: int | None = None, *, prefix: str | None = None, engine: EngineName = "torch") -> Loaded:
        """The step asked for, or the newest that verifies. `prefix` ("model") loads that group of tensors only.

        They are torch's tensors or, for the engine "numpy", arrays, bfloat16 as float32. A step that
        `Run.truncate_after` left behind is read only when it is asked for.
        """
        if step is not None:
            try:
                return Loaded(step, *self._read(step, prefix, engine))
            except KeyError:
                known = ", ".join(map(str, self.steps())) or "none"
                raise InputError(f"{self} has no step {step} (steps: {known})") from None
        skipped: list[str] = []
        damage: DamagedError | InputError | None = None
        passed: set[int] = set()
        while (candidate := self._newest(passed)) is not None:
            passed.add(candidate)
            try:
                return Loaded(candidate, *self._read(candidate, prefix, engine), skipped=skipped)
            except KeyError:  # removed by a training in progress since we looked: newer ones are there by now
                continue
            except (DamagedError, InputError) as error:
                skipped.append(f"step {candidate}: {error}")
                damage = damage or error
        if damage is None:
            raise InputError(f"{self} has no checkpoint yet")
        raise DamagedError(str(self), f"no checkpoint verifies ({'; '.join(skipped)})") from damage

    def _newest(self, passed: Set[int]) -> int | None:
        behind = self.index.abandoned()
        return max((step for step in self.steps() if step not in behind and step not in passed), default=None)

    def mark_best(self, step: int) -> None:
        """Keep this step whatever comes later; the one before it is free to go."""
        if step not in self.steps():
            raise InputError(f"{self} has no step {step} to mark as the best")
        self.index.mark_best(step)

    def best(self) -> int | None:
        """The step that `mark_best` was last told of."""
        return self.index.best()

    def _check_write(self, step: int, keep: int) -> None:
        if not self._writable:
            raise InputError(f"{self} was opened for reading: Run.open(path, train=True) writes")
        if keep < 1:
            raise SettingError("keep", keep, "at least 1 checkpoint")
        if step < 0:
            raise SettingError("step", step, "0 or more")

    def _expendable(self, step: int, steps: list[int], keep: int, protect: Set[int]) -> list[int]:
        """The steps that may go now that `step` is stored: the newest `keep` of this line stay, and see `write`."""
        behind = self.index.abandoned() - {step}
        line = sorted(s for s in steps if s not in behind and s != step)
        newest = set(line[max(0, len(line) - keep + 1) :])
        stay = newest | {step} | set(protect) | ({self.index.best()} - {None})
        return [s for s in steps if s not in stay]


class Index:
    """The table of checkpoints: which are there, which is the best, which were left behind by going back.

    These flags decide which checkpoint counts, so each row is sealed with a sha256. Where a seal does not fit, nothing
    is guessed: a checkpoint can be asked for by its number, and going back to it seals the rows anew.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    def steps(self) -> set[int]:
        return {step for (step,) in self.database.query("SELECT step FROM checkpoints")}

    def add(self, step: int) -> None:
        """Note a step. One of the same number that had been left behind is no longer there, nor the best."""
        with self.database.transaction() as connection:
            connection.execute(
                """INSERT INTO checkpoints (step, written) VALUES (?, ?) ON CONFLICT (step) DO UPDATE SET
                   written = excluded.written, best = best AND NOT abandoned, abandoned = 0""",
                (step, now()),
            )
            _seal(connection, "WHERE step = ?", (step,))

    def remove(self, step: int) -> None:
        with self.database.transaction() as connection:
            connection.execute("DELETE FROM checkpoints WHERE step = ?", (step,))

    def mark_best(self, step: int) -> None:
        with self.database.transaction() as connection:
            connection.execute("UPDATE checkpoints SET best = (step = ?)", (step,))
            _seal(connection)

    def abandon_after(self, step: int) -> None:
        """Those of later steps are left behind; that of `step`, if it was, no more."""
        with self.database.transaction() as connection:
            connection.execute("UPDATE checkpoints SET abandoned = (step > ?) WHERE step >= ?", (step, step))
            _seal(connection)

    def best(self) -> int | None:
        return next((step for step, best, _ in self._flags() if best), None)

    def abandoned(self) -> set[int]:
        return {step for step, _, abandoned in self._flags() if abandoned}

    def _flags(self) -> list[tuple[int, int, int]]:
        """(step, best, abandoned) of each row, as it was written."""
        known = self.database.query("SELECT 1 FROM pragma_table_info('checkpoints') WHERE name = 'seal'")
        seal = "seal" if known else "NULL"  # a run of before there was one, on a disk that cannot be written
        rows = self.database.query(f"SELECT step, best, abandoned, {seal} FROM checkpoints")
        for *flags, found in rows:
            if found is not None and found != _digest(*flags):
                why = f"its index of checkpoints is not what was written at step {flags[0]}"
                raise DamagedError(self.database.path, f"{why}; name the checkpoint to use (--step)")
        return [(step, best, abandoned) for step, best, abandoned, _ in rows]


def _seal(connection: sqlite3.Connection, where: str = "", given: Sequence[Any] = ()) -> None:
    rows = connection.execute(f"SELECT step, best, abandoned FROM checkpoints {where}", given).fetchall()
    connection.executemany(
        "UPDATE checkpoints SET seal = ? WHERE step = ?", [(_digest(*flags), flags[0]) for flags in rows]
    )


def _digest(step: Any, best: Any, abandoned: Any) -> str:
    return hashlib.sha256(repr((step, best, abandoned)).encode()).hexdigest()


def now() -> str:
    """The time, as it is written in a run: UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
