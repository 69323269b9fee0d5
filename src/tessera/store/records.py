"""What a run writes down while it goes on: metrics, what it read, samples, evaluations, events, facts, ancestors."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tessera.store.checkpoints import Index, now
from tessera.store.files import to_json
from tessera.store.sqlite import Database


@dataclass(frozen=True)
class Sample:
    """What the model said at a step."""

    step: int
    prompt: str
    text: str


@dataclass(frozen=True)
class Evaluation:
    """A measurement at a step, and whatever belongs to it."""

    step: int
    name: str
    value: float
    detail: dict[str, Any]


@dataclass(frozen=True)
class Event:
    """Something that went wrong before the update of a step was made, and what was done about it."""

    step: int
    kind: str
    action: str
    detail: str
    cursor: dict[str, Any] | None = None
    """Where in the data: the cursor after the batches of the step."""
    written: str = ""
    drawn: dict[str, Any] | None = None
    """The batches themselves: the `cursor` before them, and the `rows` of each, as a `Draw` has them."""


@dataclass(frozen=True)
class Draw:
    """What a step read: where in the data its first micro-batch began, and how many rows each of them has."""

    step: int
    cursor: dict[str, Any]
    rows: list[int]


@dataclass(frozen=True)
class Ancestor:
    """A run whose weights this one started from, and the checkpoint that it took (None: its newest)."""

    id: str
    path: Path
    step: int | None


class Records:
    """The tables of a run that grow. Values are exact: what is read is the double that was written."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @property
    def info(self) -> dict[str, Any]:
        """Seed, versions, commit, and what else was noted about the run."""
        return {key: json.loads(value) for key, value in self._database.query("SELECT key, value FROM info")}

    def set_info(self, key: str, value: Any) -> None:
        """Note a JSON value under a name, in place of an earlier one."""
        with self._database.transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO info (key, value) VALUES (?, ?)", (key, to_json(value)))

    def log_metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Note a step's figures. They are on the disk within about a second, and before a checkpoint of that step."""
        for name, value in values.items():
            self._database.append(
                "INSERT OR REPLACE INTO metrics (name, step, value) VALUES (?, ?, ?)", (name, step, _to_column(value))
            )

    def metrics(self, name: str) -> list[tuple[int, float]]:
        """(step, value) in the order of the steps; empty where nothing of that name was noted."""
        rows = self._database.query("SELECT step, value FROM metrics WHERE name = ? ORDER BY step", (name,))
        return [(step, _from_column(value)) for step, value in rows]

    def metric_names(self) -> list[str]:
        """The names that `metrics` knows."""
        return [name for (name,) in self._database.query("SELECT DISTINCT name FROM metrics ORDER BY name")]

    def latest(self) -> dict[str, tuple[int, float]]:
        """Each metric's last (step, value)."""
        rows = self._database.query(
            """SELECT m.name, m.step, m.value FROM metrics m
               JOIN (SELECT name, max(step) AS step FROM metrics GROUP BY name) last USING (name, step)"""
        )
        return {name: (step, _from_column(value)) for name, step, value in rows}

    def log_draw(self, step: int, cursor: Mapping[str, Any], rows: Sequence[int]) -> None:
        """Note what a step read; on the disk when its metrics are."""
        row = (step, to_json(dict(cursor)), to_json(list(rows)))
        self._database.append("INSERT OR REPLACE INTO draws (step, cursor, rows) VALUES (?, ?, ?)", row)

    def draw(self, step: int | None = None) -> Draw | None:
        """What `step` read, or the last one that was noted; None where nothing was."""
        if not self._has("draws"):
            return None
        where, given = ("WHERE step = ?", (step,)) if step is not None else ("", ())
        rows = self._database.query(f"SELECT step, cursor, rows FROM draws {where} ORDER BY step DESC LIMIT 1", given)
        return Draw(rows[0][0], json.loads(rows[0][1]), json.loads(rows[0][2])) if rows else None

    def rows_drawn(self, step: int) -> int:
        """How many rows the steps up to `step` read."""
        rows = self._database.query("SELECT rows FROM draws WHERE step <= ?", (step,))
        return sum(sum(json.loads(text)) for (text,) in rows)

    def add_sample(self, step: int, prompt: str, text: str) -> None:
        """Note what the model said."""
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT INTO samples (step, prompt, text) VALUES (?, ?, ?)", (step, _storable(prompt), _storable(text))
            )

    def samples(self) -> list[Sample]:
        """All samples, in the order in which they were made."""
        return [Sample(*row) for row in self._database.query("SELECT step, prompt, text FROM samples ORDER BY id")]

    def add_evaluation(self, step: int, name: str, value: float, detail: Mapping[str, Any] | None = None) -> None:
        """Note a measurement, in place of an earlier one of the same step and name."""
        row = (step, name, _to_column(value), to_json(dict(detail or {})))
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM evaluations WHERE step = ? AND name = ?", (step, name))
            connection.execute("INSERT INTO evaluations (step, name, value, detail) VALUES (?, ?, ?, ?)", row)

    def evaluations(self) -> list[Evaluation]:
        """All measurements, in the order in which they were made."""
        rows = self._database.query("SELECT step, name, value, detail FROM evaluations ORDER BY id")
        return [Evaluation(step, name, _from_column(value), json.loads(detail)) for step, name, value, detail in rows]

    def add_event(
        self,
        step: int,
        kind: str,
        *,
        action: str,
        detail: str,
        cursor: Mapping[str, Any] | None = None,
        drawn: tuple[Mapping[str, Any], Sequence[int]] | None = None,
    ) -> None:
        """Note an event; it is on the disk when this returns. `drawn` is what `log_draw` takes, of its batches.

        A run that was killed and goes on meets the same event again: it is noted once.
        """
        where = to_json(None if cursor is None else dict(cursor))
        row = (step, kind, action, detail, where)
        batches = None if drawn is None else to_json({"cursor": dict(drawn[0]), "rows": list(drawn[1])})
        with self._database.transaction() as connection:
            connection.execute(
                """INSERT INTO events (step, kind, action, detail, cursor, written, drawn) SELECT ?, ?, ?, ?, ?, ?, ?
                   WHERE NOT EXISTS (SELECT 1 FROM events
                   WHERE (step, kind, action, detail, cursor) = (?, ?, ?, ?, ?))""",
                (*row, now(), batches, *row),
            )

    def events(self) -> list[Event]:
        """All events, in the order in which they were noted: going back does not undo them."""
        if not self._has("events"):
            return []
        known = self._database.query("SELECT 1 FROM pragma_table_info('events') WHERE name = 'drawn'")
        drawn = "drawn" if known else "NULL"  # a run of before it was noted, on a disk that cannot be written
        columns = f"step, kind, action, detail, cursor, written, {drawn}"
        return [
            Event(step, kind, action, detail, json.loads(cursor), written, json.loads(batches) if batches else None)
            for step, kind, action, detail, cursor, written, batches in self._database.query(
                f"SELECT {columns} FROM events ORDER BY id"
            )
        ]

    def _has(self, table: str) -> bool:
        """False for a run of before there was this table, on a disk that cannot be written."""
        return bool(self._database.query("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)))

    def lineage(self) -> list[Ancestor]:
        """The runs that this one descends from, the nearest first."""
        rows = self._database.query("SELECT id, path, step FROM lineage ORDER BY generation")
        return [Ancestor(id, Path(path), step) for id, path, step in rows]

    def truncate_after(self, step: int) -> None:
        """Go back to `step`: forget the metrics, samples, evaluations and draws of later steps.

        Later checkpoints stay readable by their number, but no longer count as the newest, and are the first to go once
        the run has written a new one.
        """
        with self._database.transaction() as connection:
            for table in ("metrics", "samples", "evaluations", "draws"):
                connection.execute(f"DELETE FROM {table} WHERE step > ?", (step,))
            Index(self._database).abandon_after(step)


def _to_column(value: float) -> float | None:
    value = float(value)
    return None if math.isnan(value) else value  # SQLite would store NULL by itself; this says so


def _from_column(value: float | None) -> float:
    return math.nan if value is None else value


def _storable(text: str) -> str:
    """`text` with "?" for what UTF-8 cannot hold: half a surrogate pair."""
    return text.encode("utf-8", "replace").decode("utf-8")
