"""Checkpoints inside `run.db`: a whole run, weights and all, in one file.

A step's tensors are rows, their bytes are blobs (in parts, as SQLite holds at most 1e9 bytes in one), and everything
that a save changes is one transaction: the new step with the metrics up to it, and the old ones that go. SQLite has no
checksums, so every tensor has its sha256, and the step has one over the list of them.
"""

import hashlib
import json
import sqlite3
from collections.abc import Mapping, Set
from typing import Any

from tessera.config import EngineName
from tessera.errors import DamagedError
from tessera.store.checkpoints import CheckpointStore
from tessera.store.files import to_json
from tessera.store.tensors import check_tensors, dtype_name, tensor_bytes, tensor_from_bytes

PART_BYTES = 256 << 20


class SqliteCheckpoints(CheckpointStore):
    """The store "sqlite"."""

    def __str__(self) -> str:
        return str(self.index.database.path)

    def write(
        self,
        step: int,
        tensors: Mapping[str, Any],
        meta: Mapping[str, Any],
        *,
        keep: int = 1,
        protect: Set[int] = frozenset(),
    ) -> None:
        self._check_write(step, keep)
        check_tensors(tensors)
        state = to_json(dict(meta))
        with self.index.database.transaction() as connection:
            self.index.add(step)
            connection.execute("DELETE FROM tensors WHERE step = ?", (step,))
            listed = [_insert(connection, step, name, tensors[name]) for name in sorted(tensors)]
            connection.execute(
                "UPDATE checkpoints SET meta = ?, sha256 = ? WHERE step = ?",
                (state, _digest(step, state, listed), step),
            )
            for old in self._expendable(step, self.steps(), keep, protect):
                self.index.remove(old)
        self.index.database.copy_log()

    def steps(self) -> list[int]:
        return sorted(self.index.steps())

    def _read(self, step: int, prefix: str | None, engine: EngineName) -> tuple[dict[str, Any], dict[str, Any]]:
        with self.index.database.snapshot() as connection:
            found = connection.execute("SELECT meta, sha256 FROM checkpoints WHERE step = ?", (step,)).fetchone()
            if found is None:
                raise KeyError(step)
            state, digest = found
            listed = [
                list(row)
                for row in connection.execute(
                    "SELECT name, dtype, shape, size, sha256 FROM tensors WHERE step = ? ORDER BY name", (step,)
                )
            ]
            if digest != _digest(step, state, listed):
                raise self._damaged(step, "its list of tensors is not what was written")
            wanted = [row for row in listed if prefix is None or row[0].startswith(prefix + ".")]
            tensors = {row[0]: self._tensor(connection, step, row, engine) for row in wanted}
        return tensors, json.loads(state)

    def _tensor(self, connection: sqlite3.Connection, step: int, row: list[Any], engine: EngineName) -> Any:
        name, dtype, shape, size, sha256 = row
        data = bytearray()
        for (part,) in connection.execute(
            "SELECT data FROM tensor_parts WHERE step = ? AND name = ? ORDER BY part", (step, name)
        ):
            data += part
        if len(data) != size:
            raise self._damaged(step, f"tensor {name!r}: {len(data)} bytes where {size} were written")
        if hashlib.sha256(data).hexdigest() != sha256:
            raise self._damaged(step, f"tensor {name!r}: its sha256 is not that of what was written")
        return tensor_from_bytes(data, dtype, json.loads(shape), engine=engine)

    def _damaged(self, step: int, why: str) -> DamagedError:
        return DamagedError(self.index.database.path, f"step {step}, {why}")


def _insert(connection: sqlite3.Connection, step: int, name: str, tensor: Any) -> list[Any]:
    """Store one tensor; returns its row in the list that the step's digest is made over."""
    data = tensor_bytes(tensor)
    shape = json.dumps(list(tensor.shape))
    row = [name, dtype_name(tensor), shape, len(data), hashlib.sha256(data).hexdigest()]
    connection.execute(
        "INSERT INTO tensors (step, name, dtype, shape, size, sha256) VALUES (?, ?, ?, ?, ?, ?)", (step, *row)
    )
    for part, start in enumerate(range(0, len(data), PART_BYTES)):
        connection.execute(
            "INSERT INTO tensor_parts (step, name, part, data) VALUES (?, ?, ?, ?)",
            (step, name, part, data[start : start + PART_BYTES]),
        )
    return row


def _digest(step: int, state: str, listed: list[list[Any]]) -> str:
    return hashlib.sha256(to_json([step, state, listed]).encode()).hexdigest()
