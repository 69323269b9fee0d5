"""The files of a run: their names, how a new run is made of them, and how one is found again.

The order in which they are made tells a whole run from one whose making was killed: all of the database's first content
is one transaction, and `recipe.json` is the last file.
"""

import hashlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tessera.errors import InputError, StorageError
from tessera.store.checkpoints import now
from tessera.store.files import (
    fsync_folder,
    make_folder,
    new_token,
    remove_file,
    to_json,
    to_readable_json,
    write_bytes_atomic,
)
from tessera.store.sqlite import Database

DATABASE, RECIPE, TOKENIZER, CHECKPOINTS, LOCK = "run.db", "recipe.json", "tokenizer.json", "checkpoints", "run.lock"
MAY_BE_THERE = {"data", LOCK}  # what a new run's folder may hold already: shards are prepared before the run is made


def sha256_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def check_free(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file: choose another --out")
    if path.is_dir():
        found = sorted(entry.name for entry in path.iterdir() if entry.name not in MAY_BE_THERE)
        if DATABASE in found or RECIPE in found:
            raise InputError(f"{path} holds a run already: choose another --out, or go on with it by --resume {path}")
        if found:
            raise InputError(f"{path} is not empty (it has {found[0]!r}): choose another --out")


def fill(
    database: Database,
    store: str,
    recipe: Mapping[str, Any],
    tokenizer_json: str,
    vocabulary: Iterable[tuple[int, bytes]],
    info: Mapping[str, Any],
) -> None:
    """Everything that a new run knows, in one transaction: a database that has the row of the run has it all."""
    with database.transaction() as connection:
        insert_recipe(database, recipe)
        connection.execute(
            "INSERT INTO tokenizer (state, sha256) VALUES (?, ?)", (tokenizer_json, sha256_of(tokenizer_json))
        )
        connection.executemany(
            "INSERT INTO vocabulary (id, token, kind) VALUES (?, ?, ?)",
            ((id, bytes(token), _kind(token)) for id, token in vocabulary),
        )
        connection.executemany(
            "INSERT INTO info (key, value) VALUES (?, ?)", [(key, to_json(value)) for key, value in info.items()]
        )
        connection.execute("INSERT INTO run (id, store, created) VALUES (?, ?, ?)", (new_token(), store, now()))
    database.copy_log()


def insert_recipe(database: Database, recipe: Mapping[str, Any]) -> None:
    text = to_readable_json(dict(recipe))
    with database.transaction() as connection:
        connection.execute(
            "INSERT INTO recipes (written, recipe, sha256) VALUES (?, ?, ?)", (now(), text, sha256_of(text))
        )
        connection.execute("DELETE FROM settings")
        connection.executemany("INSERT INTO settings (path, value) VALUES (?, ?)", _flat(recipe, ""))


def _flat(settings: Mapping[str, Any], path: str) -> Iterable[tuple[str, str]]:
    """Nested settings as ("a.b", its JSON), for queries over many runs."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", to_json(value)


def _kind(token: bytes) -> str:
    """ "text" where a token is whole characters, "bytes" where it cuts one."""
    try:
        token.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes"
    return "text"


def write_files(path: Path, store: str, recipe: Mapping[str, Any], tokenizer_json: str) -> None:
    fsync_folder(path)
    if store == "files":
        write_bytes_atomic(path / TOKENIZER, tokenizer_json.encode())
        make_folder(path / CHECKPOINTS)
        write_bytes_atomic(path / RECIPE, to_readable_json(dict(recipe)).encode())


def remove(path: Path, database: Database | None) -> None:
    """Take back what `create` made in a folder that was free."""
    if database is not None:
        with suppress(Exception):
            database.close()
    for name in (RECIPE, TOKENIZER, DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm"):
        with suppress(StorageError):
            remove_file(path / name)
    with suppress(OSError):
        (path / CHECKPOINTS).rmdir()


def locate(path: Path) -> tuple[Path, Path]:
    """(folder, database) of what a user calls a run; the database of a run of files may be missing."""
    if path.is_file() and path.suffix == ".db":
        return path.parent, path
    if path.is_dir() and is_run(path):
        return path, path / DATABASE
    if not path.exists():
        raise InputError(f"{path}: no such run")
    raise InputError(f"{path} is not a run: a run is a folder with {DATABASE} or {RECIPE} in it, or a {DATABASE} file")


def is_run(path: Path) -> bool:
    """Whether a folder looks like a run, whole or not."""
    return (path / DATABASE).is_file() or (path / RECIPE).is_file()


def lock_path(database_path: Path) -> Path:
    return database_path.with_suffix(".lock")
