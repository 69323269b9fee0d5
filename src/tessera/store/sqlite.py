"""The database of a run: one SQLite file that many may read while one trains.

Write-ahead logging lets readers go on while a transaction is written; `synchronous = FULL` makes a finished
transaction survive a power cut (sqlite.org/wal.html). What SQLite refuses becomes a `StorageError` or a
`DamagedError`, so that a caller never needs to know SQLite's own.
"""

import errno
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, Self

from tessera.errors import DamagedError, InputError, StorageError, TesseraError
from tessera.store import failpoints
from tessera.store.files import storage_errors
from tessera.store.migrations import APPLICATION_ID, migrate

BUSY_SECONDS = 30
FLUSH_SECONDS, FLUSH_ROWS = 1.0, 500
WAL_BYTES = 64 << 20  # what the log may keep of the disk once it has been copied into the database

NOT_AS_MADE = ("unsupported file format", "no such table", "no such column")
"""What SQLite says where one bit of its header or of a table's name is not what it was."""


@contextmanager
def sqlite_errors(path: Path) -> Iterator[None]:
    """Turn SQLite's errors of the block into Tessera's, with the file's name."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        translated = _translate(path, error)
        if translated is None:
            raise
        raise translated from error
    except UnicodeDecodeError as error:  # Python's, of SQLite's words about a name that is no text any more
        raise DamagedError(path, "its list of tables is not what was written") from error


def _translate(path: Path, error: sqlite3.DatabaseError) -> TesseraError | None:
    code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF  # the low byte is the primary result code
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT):
        return DamagedError(path, str(error))
    if code == 0 and "decode to UTF-8" in str(error):  # Python's, of a column that was text when it was written
        return DamagedError(path, "a text in it is no text any more")
    if code == sqlite3.SQLITE_ERROR and str(error).startswith(NOT_AS_MADE):
        return DamagedError(path, str(error))
    numbers = {
        sqlite3.SQLITE_FULL: errno.ENOSPC,
        sqlite3.SQLITE_IOERR: errno.EIO,
        sqlite3.SQLITE_READONLY: errno.EROFS,
        sqlite3.SQLITE_CANTOPEN: errno.EACCES,
        sqlite3.SQLITE_BUSY: errno.EBUSY,
        sqlite3.SQLITE_LOCKED: errno.EBUSY,
    }
    if code in numbers:
        return StorageError(path, OSError(numbers[code], str(error)))
    return None


class Database:
    """A connection with the run's tables, safe to use from several threads of one process.

    `append` collects rows and writes them in batches: a training step costs no flush of the disk. Anything that reads,
    any transaction and `close` write them first.

    A subclass may hold other tables than a run's: `what` says whose, `application_id` tells its files from others, and
    `migrate` makes the tables or brings them up to date.
    """

    what: ClassVar[str] = "a run"
    application_id: ClassVar[int] = APPLICATION_ID
    migrate: ClassVar[Callable[[sqlite3.Connection, Path], None]] = staticmethod(migrate)

    def __init__(self, path: Path, connection: sqlite3.Connection, *, is_lost: bool = False) -> None:
        self.path = path
        self.is_lost = is_lost
        self._connection = connection
        self._guard = threading.RLock()
        self._waiting: list[tuple[str, Sequence[Any]]] = []
        self._flushed = time.monotonic()

    @classmethod
    def create(cls, path: Path) -> Self:
        """A new database file with empty tables."""
        with sqlite_errors(path):
            return cls(path, cls._prepared(_connect(f"{_uri(path)}?mode=rwc"), path))

    @classmethod
    def open(cls, path: Path) -> Self:
        """An existing one. On a disk that cannot be written it is opened for reading."""
        writable = os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)
        with sqlite_errors(path):
            connection = _connect(f"{_uri(path)}?mode=rw" if writable else _read_only_uri(path))
            try:
                cls._check_kind(connection, path)
                return cls(path, cls._prepared(connection, path) if writable else connection)
            except BaseException:
                connection.close()
                raise

    @classmethod
    def empty(cls, path: Path) -> Self:
        """Stands in for a database that was lost: has all the tables, nothing in them, and refuses to be written."""
        connection = _connect("file::memory:")
        cls.migrate(connection, path)
        connection.execute("PRAGMA query_only = ON")
        return cls(path, connection, is_lost=True)

    @classmethod
    def _prepared(cls, connection: sqlite3.Connection, path: Path) -> sqlite3.Connection:
        """Durable, readable while written, and with tables that are up to date."""
        for setting in (
            "journal_mode = WAL",
            "synchronous = FULL",
            "foreign_keys = ON",
            f"journal_size_limit = {WAL_BYTES}",
        ):
            connection.execute(f"PRAGMA {setting}")
        cls.migrate(connection, path)
        return connection

    @classmethod
    def _check_kind(cls, connection: sqlite3.Connection, path: Path) -> None:
        """Raise unless the database is of this kind. An empty file, which SQLite takes for a new one, is a lost one."""
        if path.stat().st_size == 0 or not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            raise DamagedError(path, f"it is empty: {cls.what} was not completely created, or its content was lost")
        if connection.execute("PRAGMA application_id").fetchone()[0] != cls.application_id:
            raise InputError(f"{path} is a SQLite database, but not one of {cls.what}")

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All of the block's writes, with the rows that wait, or (after any error) none of them.

        A transaction inside another is a part of it.
        """
        with self._guard, storage_errors(self.path), sqlite_errors(self.path):
            if self._connection.in_transaction:
                yield self._connection
                return
            failpoints.before("begin", self.path)
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                waiting = list(self._waiting)
                for statement, row in waiting:
                    self._connection.execute(statement, row)
                yield self._connection
                failpoints.before("commit", self.path)
                self._connection.execute("COMMIT")
                failpoints.after("commit", self.path)
            except BaseException:
                with suppress(sqlite3.Error):  # a full disk has rolled back by itself
                    self._connection.execute("ROLLBACK")
                raise
            del self._waiting[: len(waiting)]
            self._flushed = time.monotonic()

    @contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """Reads that all see the same state, whatever another process writes meanwhile."""
        self.flush()
        with self._guard, sqlite_errors(self.path):
            self._connection.execute("BEGIN DEFERRED")  # not yet a read: the first SELECT takes the snapshot
            try:
                yield self._connection
            finally:
                self._connection.execute("COMMIT")

    def query(self, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The rows that a SELECT gives."""
        self.flush()
        with self._guard, sqlite_errors(self.path):
            return self._connection.execute(statement, parameters).fetchall()

    def append(self, statement: str, row: Sequence[Any]) -> None:
        """Write a row soon: at most a second later if rows keep coming, and before anything that needs it."""
        with self._guard:
            self._waiting.append((statement, row))
            if len(self._waiting) >= FLUSH_ROWS or time.monotonic() - self._flushed >= FLUSH_SECONDS:
                self.flush()

    def flush(self) -> None:
        """Write the rows that wait, in one transaction."""
        with self._guard:
            if self._waiting and not self._connection.in_transaction:
                with self.transaction():
                    pass

    def copy_log(self) -> None:
        """Copy what the log holds into the database file, as far as readers allow: the file alone is then the run."""
        with self._guard, storage_errors(self.path), sqlite_errors(self.path):
            failpoints.before("copy", self.path)
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
            failpoints.after("copy", self.path)

    def check(self) -> None:
        """Raise `DamagedError` where the file's own structure is broken. Reads the whole file."""
        found = self.query("PRAGMA quick_check(1)")[0][0]
        if found != "ok":
            raise DamagedError(self.path, " ".join(str(found).split()))

    def close(self) -> None:
        """Write what waits and leave one file: the last to close folds the log into it."""
        with self._guard:
            try:
                self.flush()
                with suppress(sqlite3.Error):  # a reader may still need the log; its own close folds it in
                    self._connection.execute("PRAGMA busy_timeout = 0")
                    self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            finally:
                self._connection.close()


def _uri(path: Path) -> str:
    return path.absolute().as_uri()


def _read_only_uri(path: Path) -> str:
    """Without a log to read, SQLite needs to be told that nobody can write: it would make a log otherwise."""
    log = path.with_name(f"{path.name}-wal")
    return f"{_uri(path)}?mode=ro" + ("" if log.exists() and log.stat().st_size else "&immutable=1")


def _connect(uri: str) -> sqlite3.Connection:
    return sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
