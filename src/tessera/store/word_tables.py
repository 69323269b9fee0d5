"""A word model in one SQLite file: settings, vocabulary, layers, and embeddings and head with a row for each word.

Each parameter has Adam's two means beside its numbers, so that learning goes on from the file as if it had never
stopped. A save is one transaction: whatever ends the process, and whenever, the file holds the save before it or the
new one. SQLite has no checksums, so every row of numbers has its sha256, and the save has a seal, the sha256 over all
of them, the settings and the words: a bit that is not what was written is an error on opening.
"""

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from tessera.errors import DamagedError, InputError
from tessera.store.files import to_json
from tessera.store.migrations import Migration, migrate
from tessera.store.sqlite import Database

APPLICATION_ID = 0x54455357  # "TESW"
TABLES = {"embedding.weight": "embeddings", "head.weight": "head"}
"""The parameters with a row for each word, and the tables that hold them."""
CACHE_KIB = 64 << 10


class Numbers(NamedTuple):
    """A parameter, and Adam's means of its gradient and of the square of it: three arrays of one shape and type."""

    data: np.ndarray
    m: np.ndarray
    v: np.ndarray


@dataclass
class Save:
    """All that a word model is. `words` are in the order of their ids; `numbers` is by the parameters' names."""

    settings: dict[str, Any]
    words: list[str]
    numbers: dict[str, Numbers]


def _first_tables(connection: sqlite3.Connection) -> None:
    """`layers.layer` is NULL for what belongs to no layer, as the last norm."""
    of_a_word = """(
        id INTEGER PRIMARY KEY REFERENCES vocabulary (id), data BLOB NOT NULL, m BLOB NOT NULL, v BLOB NOT NULL,
        sha256 TEXT NOT NULL)"""
    for statement in (
        f"PRAGMA application_id = {APPLICATION_ID}",
        "CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
        "CREATE TABLE vocabulary (id INTEGER PRIMARY KEY, word TEXT NOT NULL UNIQUE)",
        """CREATE TABLE layers (
            name TEXT PRIMARY KEY, layer INTEGER, dtype TEXT NOT NULL, shape TEXT NOT NULL, data BLOB NOT NULL,
            m BLOB NOT NULL, v BLOB NOT NULL, sha256 TEXT NOT NULL)""",
        f"CREATE TABLE embeddings {of_a_word}",
        f"CREATE TABLE head {of_a_word}",
        "CREATE TABLE saves (id INTEGER PRIMARY KEY, written TEXT NOT NULL, seal TEXT NOT NULL)",
    ):
        connection.execute(statement)


MIGRATIONS: list[Migration] = [_first_tables]


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")  # a save touches every row: they stay in memory for it
    migrate(connection, path, MIGRATIONS)


class WordDatabase(Database):
    """The file of a word model.

    One process learns at a time: where another one has saved in between, `write` is an error and changes nothing.
    """

    what = "a word model"
    application_id = APPLICATION_ID
    migrate: ClassVar[Callable[[sqlite3.Connection, Path], None]] = staticmethod(_migrate)
    newest: int = 0
    """The number of the save that was read or written last; 0 before the first."""

    def write(self, save: Save) -> None:
        """Put `save` in the place of the one before it, in one transaction."""
        with self.transaction() as connection:
            if _newest(connection) != self.newest:
                raise InputError(f"{self.path}: another process has saved since it was opened here; open it again")
            settings = ((name, to_json(value)) for name, value in save.settings.items())
            _put(connection, "settings", ("name", "value"), settings)
            _put(connection, "vocabulary", ("id", "word"), enumerate(save.words))
            for name, numbers in save.numbers.items():
                if name in TABLES:
                    rows = (_stored(Numbers(*row)) for row in zip(*numbers, strict=True))
                    columns: Sequence[str] = ("id", "data", "m", "v", "sha256")
                    _put(connection, TABLES[name], columns, ((id, *row) for id, row in enumerate(rows)))
                else:
                    dtype, shape = _little(numbers.data).dtype.str, to_json(list(numbers.data.shape))
                    columns = ("name", "layer", "dtype", "shape", "data", "m", "v", "sha256")
                    row = (name, layer_of(name), dtype, shape, *_stored(numbers))
                    _put(connection, "layers", columns, [row])
            written = datetime.now(UTC).isoformat(timespec="seconds")
            row = (self.newest + 1, written, _seal(connection))
            connection.execute("INSERT INTO saves (id, written, seal) VALUES (?, ?, ?)", row)
        self.newest += 1
        self.copy_log()

    def read(self) -> Save:
        """The newest save, every bit of it proved; `DamagedError` where it is not what was written."""
        self.check()
        with self.snapshot() as connection:
            newest = _newest(connection)
            if newest == 0:
                raise DamagedError(self.path, "there is no save in it")
            (seal,) = connection.execute("SELECT seal FROM saves WHERE id = ?", (newest,)).fetchone()
            if seal != _seal(connection):
                raise DamagedError(self.path, f"save {newest}: its tables are not what was written")
            settings = {name: json.loads(value) for name, value in connection.execute("SELECT * FROM settings")}
            words = [word for _, word in connection.execute("SELECT id, word FROM vocabulary ORDER BY id")]
            numbers = dict(self._layers(connection))
            dtype, width = settings["dtype"], settings["model"]["d_model"]
            for name, table in TABLES.items():
                if rows := list(self._rows(connection, table, np.dtype(dtype), (width,))):
                    numbers[name] = Numbers(*map(np.stack, zip(*rows, strict=True)))
        self.newest = newest
        return Save(settings, words, numbers)

    def _layers(self, connection: sqlite3.Connection) -> Iterator[tuple[str, Numbers]]:
        for name, dtype, shape, *row in connection.execute("SELECT name, dtype, shape, data, m, v, sha256 FROM layers"):
            yield name, self._proved(name, row, np.dtype(dtype), tuple(json.loads(shape)))

    def _rows(
        self, connection: sqlite3.Connection, table: str, dtype: np.dtype, shape: tuple[int, ...]
    ) -> Iterator[Numbers]:
        for id, *row in connection.execute(f"SELECT id, data, m, v, sha256 FROM {table} ORDER BY id"):
            yield self._proved(f"{table}, row {id}", row, dtype, shape)

    def _proved(self, what: str, row: Sequence[Any], dtype: np.dtype, shape: tuple[int, ...]) -> Numbers:
        *blobs, sha256 = row
        if _sha256(blobs) != sha256:
            raise DamagedError(self.path, f"{what}: its sha256 is not that of what was written")
        return Numbers(*(np.frombuffer(blob, dtype).reshape(shape) for blob in blobs))


def layer_of(name: str) -> int | None:
    """The number of the layer that a parameter belongs to.

    >>> layer_of("blocks.2.attention.query.weight")
    2
    """
    first, *rest = name.split(".")
    return int(rest[0]) if first == "blocks" else None


def _newest(connection: sqlite3.Connection) -> int:
    return connection.execute("SELECT coalesce(max(id), 0) FROM saves").fetchone()[0]


def _put(connection: sqlite3.Connection, table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write rows; one that is there already, by its first column, is changed in place, as others refer to it."""
    changed = ", ".join(f"{column} = excluded.{column}" for column in columns[1:])
    marks = ", ".join("?" * len(columns))
    connection.executemany(
        f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks}) "
        f"ON CONFLICT ({columns[0]}) DO UPDATE SET {changed}",
        rows,
    )


def _stored(numbers: Numbers) -> list[Any]:
    """The three blobs and their sha256."""
    blobs = [_little(array).tobytes() for array in numbers]
    return [*blobs, _sha256(blobs)]


def _little(array: np.ndarray) -> np.ndarray:
    """With the lowest byte of each number first, as everywhere."""
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def _sha256(blobs: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for blob in blobs:
        digest.update(len(blob).to_bytes(8, "little") + blob)
    return digest.hexdigest()


def _seal(connection: sqlite3.Connection) -> str:
    """The sha256 over settings, words, and the sha256 of every row of numbers."""
    digest = hashlib.sha256()
    for statement in (
        "SELECT name, value FROM settings ORDER BY name",
        "SELECT id, word FROM vocabulary ORDER BY id",
        "SELECT name, layer, dtype, shape, sha256 FROM layers ORDER BY name",
        "SELECT id, sha256 FROM embeddings ORDER BY id",
        "SELECT id, sha256 FROM head ORDER BY id",
    ):
        digest.update(to_json([list(row) for row in connection.execute(statement)]).encode())
    return digest.hexdigest()
