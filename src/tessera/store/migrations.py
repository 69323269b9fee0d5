"""The tables of `run.db`, as a list of steps that is only ever appended to.

`PRAGMA user_version` counts the steps that a database has been through. A released step is never edited: a change of
the tables is a new function at the end of `MIGRATIONS`. So every run that was ever made can be opened.
"""

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

from tessera.errors import InputError

APPLICATION_ID = 0x54455353  # "TESS": tells `file` and us that this SQLite database is a run

Migration = Callable[[sqlite3.Connection], None]


def _first_tables(connection: sqlite3.Connection) -> None:
    """A run: what it was made from, what it measured and wrote, and its checkpoints.

    `checkpoints` is the index of `checkpoints/` (store "files"), or with `tensors` and `tensor_parts` the checkpoints
    themselves (store "sqlite"). A NULL metric is a NaN, which SQLite cannot hold.
    """
    for statement in (
        f"PRAGMA application_id = {APPLICATION_ID}",
        "CREATE TABLE run (id TEXT NOT NULL, store TEXT NOT NULL, created TEXT NOT NULL)",
        "CREATE TABLE info (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
        """CREATE TABLE recipes (
            id INTEGER PRIMARY KEY, written TEXT NOT NULL, recipe TEXT NOT NULL, sha256 TEXT NOT NULL)""",
        "CREATE TABLE settings (path TEXT PRIMARY KEY, value TEXT NOT NULL)",
        "CREATE TABLE tokenizer (state TEXT NOT NULL, sha256 TEXT NOT NULL)",
        "CREATE TABLE vocabulary (id INTEGER PRIMARY KEY, token BLOB NOT NULL, kind TEXT NOT NULL)",
        "CREATE TABLE metrics (name TEXT, step INTEGER, value REAL, PRIMARY KEY (name, step)) WITHOUT ROWID",
        """CREATE TABLE samples (
            id INTEGER PRIMARY KEY, step INTEGER NOT NULL, prompt TEXT NOT NULL, text TEXT NOT NULL)""",
        """CREATE TABLE evaluations (
            id INTEGER PRIMARY KEY, step INTEGER NOT NULL, name TEXT NOT NULL, value REAL, detail TEXT NOT NULL)""",
        "CREATE TABLE lineage (generation INTEGER PRIMARY KEY, id TEXT NOT NULL, path TEXT NOT NULL, step INTEGER)",
        """CREATE TABLE checkpoints (
            step INTEGER PRIMARY KEY, written TEXT NOT NULL, best INTEGER NOT NULL DEFAULT 0,
            abandoned INTEGER NOT NULL DEFAULT 0, meta TEXT, sha256 TEXT)""",
        """CREATE TABLE tensors (
            step INTEGER NOT NULL REFERENCES checkpoints (step) ON DELETE CASCADE, name TEXT NOT NULL,
            dtype TEXT NOT NULL, shape TEXT NOT NULL, size INTEGER NOT NULL, sha256 TEXT NOT NULL,
            PRIMARY KEY (step, name))""",
        """CREATE TABLE tensor_parts (
            step INTEGER NOT NULL, name TEXT NOT NULL, part INTEGER NOT NULL, data BLOB NOT NULL,
            PRIMARY KEY (step, name, part),
            FOREIGN KEY (step, name) REFERENCES tensors (step, name) ON DELETE CASCADE)""",
    ):
        connection.execute(statement)


def _events(connection: sqlite3.Connection) -> None:
    """What went wrong while training, and what was done: `cursor` says where in the data, `detail` what was seen."""
    connection.execute(
        """CREATE TABLE events (
            id INTEGER PRIMARY KEY, written TEXT NOT NULL, step INTEGER NOT NULL, kind TEXT NOT NULL,
            action TEXT NOT NULL, detail TEXT NOT NULL, cursor TEXT NOT NULL)"""
    )


def _draws(connection: sqlite3.Connection) -> None:
    """What each step read: the data cursor before its first micro-batch, and the rows of each."""
    connection.execute("CREATE TABLE draws (step INTEGER PRIMARY KEY, cursor TEXT NOT NULL, rows TEXT NOT NULL)")


def _seals(connection: sqlite3.Connection) -> None:
    """A sha256 over the flags of each checkpoint; NULL where they were written before there was one."""
    connection.execute("ALTER TABLE checkpoints ADD COLUMN seal TEXT")


def _drawn_of_events(connection: sqlite3.Connection) -> None:
    """What the step of an event was made of, as in `draws`, which has only the steps that were learned from."""
    connection.execute("ALTER TABLE events ADD COLUMN drawn TEXT")


MIGRATIONS: list[Migration] = [_first_tables, _events, _draws, _seals, _drawn_of_events]


def migrate(connection: sqlite3.Connection, path: Path, steps: Sequence[Migration] | None = None) -> None:
    """Bring the tables up to date, each step in a transaction of its own: a kill leaves a version that is whole.

    `steps` are those of another kind of database than a run's.
    """
    steps = MIGRATIONS if steps is None else steps
    while (version := _version(connection)) != len(steps):
        if version > len(steps):
            versions = f"tables of version {version}, this one knows {len(steps)}"
            raise InputError(f"{path} was made by a newer Tessera ({versions}): upgrade tessera-lm")
        connection.execute("BEGIN IMMEDIATE")
        try:
            if _version(connection) == version:  # another process may have been faster
                steps[version](connection)
                connection.execute(f"PRAGMA user_version = {version + 1}")
            connection.execute("COMMIT")
        except BaseException:
            connection.rollback()
            raise


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])
