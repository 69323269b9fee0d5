"""A run: everything that one training made, in a folder or in the single file `run.db`.

    recipe.json     what was asked for, resolved            (store "files"; in run.db as well)
    tokenizer.json  the tokenizer, word for word            (store "files"; in run.db as well)
    checkpoints/    the weights                             (store "files"; with "sqlite" they are in run.db)
    run.db          settings, vocabulary, metrics, samples, evaluations, index of the checkpoints, lineage
    run.lock        while it is being trained

With the store "sqlite", `run.db` alone is the run: copy it anywhere and open it there. With "files", `recipe.json` is
written last, so a folder without it was not completely made; and should `run.db` be lost, the weights still open.
"""

import json
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tessera.errors import DamagedError, InputError, SettingError, TesseraError
from tessera.store.checkpoints import CheckpointStore
from tessera.store.file_checkpoints import FileCheckpoints
from tessera.store.files import (
    make_folders,
    read_json,
    read_text,
    to_readable_json,
    write_bytes_atomic,
)
from tessera.store.folder import (
    CHECKPOINTS,
    DATABASE,
    LOCK,
    RECIPE,
    TOKENIZER,
    check_free,
    fill,
    insert_recipe,
    is_run,
    locate,
    lock_path,
    remove,
    sha256_of,
    write_files,
)
from tessera.store.lock import RunLock, lock_owner
from tessera.store.records import Records
from tessera.store.sqlite import Database
from tessera.store.sqlite_checkpoints import SqliteCheckpoints

DEPTH = 3  # how far below a folder `list_runs` looks


class Run(Records):
    """`Run.create` makes one, `Run.open` opens one; `with Run.open(path) as run:` closes it.

    Opened with `train=True` (and when created) it holds the run's lock and may write checkpoints; any number may read
    at the same time.
    """

    def __init__(self, path: Path, database: Database, lock: RunLock | None) -> None:
        super().__init__(database)
        self.path = path
        self.id, self.store, self.created = _identity(database)
        self._lock = lock
        self.recipe: dict[str, Any] = self._read_recipe()
        self.checkpoints: CheckpointStore = CHECKPOINT_STORES[self.store](self, database, lock is not None)
        self._finalizer = weakref.finalize(self, _close, database, lock, os.getpid())

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        recipe: Mapping[str, Any],
        tokenizer_json: str,
        vocabulary: Iterable[tuple[int, bytes]],
        store: str = "files",
        info: Mapping[str, Any] | None = None,
        lock: RunLock | None = None,
    ) -> Self:
        """A new run in a folder that is not there or empty (but for `data/`); an error leaves nothing of it behind.

        `tokenizer_json` is kept word for word; `vocabulary` is for people and queries: (id, bytes) of each token.
        `lock` is the run's, where it is held already; it is taken over, or after an error still held.
        """
        path = Path(path)
        if store not in CHECKPOINT_STORES:
            raise SettingError.unknown("store", store, CHECKPOINT_STORES)
        check_free(path)
        existed, held, database = path.exists(), lock, None
        try:
            make_folders(path)
            lock = lock or RunLock(path / LOCK)
            check_free(path)  # again: now nobody else can take it
            try:
                database = Database.create(path / DATABASE)
                fill(database, store, recipe, tokenizer_json, vocabulary, info or {})
                write_files(path, store, recipe, tokenizer_json)
                return cls(path, database, lock)
            except BaseException:
                remove(path, database)
                raise
        except BaseException:
            if lock is not None and held is None:
                lock.release()
            if not existed:
                with suppress(OSError):
                    path.rmdir()
            raise

    @classmethod
    def open(cls, path: str | Path, *, train: bool = False, say: Callable[[str], None] = lambda line: None) -> Self:
        """The run in a folder, or in a `run.db` file.

        `train=True` takes the lock, and mends what a kill left half done; `say` is told if the lock was left behind by
        another machine.
        """
        folder, database_path = locate(Path(path))
        if not database_path.exists():
            return cls._open_without_database(folder, database_path, train=train)
        lock = RunLock(lock_path(database_path), say=say) if train else None
        database = None
        try:
            database = Database.open(database_path)
            if train:
                database.check()
            return cls(folder, database, lock)
        except BaseException:
            if database is not None:
                database.close()
            if lock is not None:
                lock.release()
            raise

    @classmethod
    def _open_without_database(cls, folder: Path, database_path: Path, *, train: bool) -> Self:
        """What the files of a run still say when its database is lost: recipe, tokenizer, weights."""
        if train:
            raise InputError(f"{database_path} is missing: its weights can be used, but the run cannot go on")
        return cls(folder, Database.empty(database_path), None)

    def _read_recipe(self) -> dict[str, Any]:
        """The recipe in the database, where `recipe.json` agrees (or is the one before it, after a kill in between)."""
        texts = [_verified(self._database, row) for row in self._database.query(RECIPE_ROWS)]
        if not texts:
            return _settings(self.path / RECIPE)
        recipe: dict[str, Any] = json.loads(texts[0])
        if self.store == "files":
            path = self.path / RECIPE
            if not path.exists():
                raise InputError(
                    f"{path} is missing: the run was not completely created; delete {self.path} and start again"
                )
            shown = _settings(path)
            if shown not in [json.loads(text) for text in texts]:
                why = "it is not the recipe that the run was made with"
                raise DamagedError(path, f"{why}; to change a setting, give a.b=value when resuming")
            if shown != recipe and self._lock is not None:
                write_bytes_atomic(path, to_readable_json(recipe).encode())
        return recipe

    def update_recipe(self, recipe: Mapping[str, Any]) -> None:
        """Note the recipe with which the run goes on; the earlier ones stay in the database."""
        with self._database.transaction():
            insert_recipe(self._database, recipe)
        if self.store == "files":
            write_bytes_atomic(self.path / RECIPE, to_readable_json(dict(recipe)).encode())
        self.recipe = json.loads(to_readable_json(dict(recipe)))

    @property
    def tokenizer_json(self) -> str:
        """The tokenizer's file as it was given to `create`."""
        rows = self._database.query("SELECT state, sha256 FROM tokenizer")
        kept = _verified(self._database, rows[0]) if rows else None
        if self.store != "files":
            assert kept is not None, "a run in one file has its tokenizer there"
            return kept
        shown = read_text(self.path / TOKENIZER)
        if kept is not None and shown != kept:
            raise DamagedError(self.path / TOKENIZER, "it is not the tokenizer that the run was made with")
        return shown

    def vocabulary(self) -> list[tuple[int, bytes]]:
        """(id, bytes) of each token, in the order of the ids."""
        return [
            (id, bytes(token)) for id, token in self._database.query("SELECT id, token FROM vocabulary ORDER BY id")
        ]

    def set_lineage(self, parent: "Run", *, step: int | None = None) -> None:
        """Note that this run starts from the weights of `parent` (at `step`); its own ancestors are noted with it."""
        line = [(parent.id, str(parent.path.absolute()), step)]
        line += [(ancestor.id, str(ancestor.path), ancestor.step) for ancestor in parent.lineage()]
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM lineage")
            for generation, row in enumerate(line, start=1):
                connection.execute(
                    "INSERT INTO lineage (generation, id, path, step) VALUES (?, ?, ?, ?)", (generation, *row)
                )

    def close(self) -> None:
        """Write what waits, fold the log into `run.db`, and let the next one train."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _files(run: Run, database: Database, writable: bool) -> CheckpointStore:
    return FileCheckpoints(run.path / CHECKPOINTS, database, run_id=run.id, writable=writable)


def _sqlite(run: Run, database: Database, writable: bool) -> CheckpointStore:
    return SqliteCheckpoints(database, writable=writable)


CHECKPOINT_STORES: dict[str, Callable[[Run, Database, bool], CheckpointStore]] = {"files": _files, "sqlite": _sqlite}

RECIPE_ROWS = "SELECT recipe, sha256 FROM recipes ORDER BY id DESC"


def _close(database: Database, lock: RunLock | None, owner: int) -> None:
    if os.getpid() != owner:  # a forked child must leave its parent's database and lock alone
        return
    try:
        database.close()
    finally:
        if lock is not None:
            lock.release()


def _identity(database: Database) -> tuple[str, str, str]:
    """(id, store, time of creation); an empty stand-in for a lost database belongs to a run of files."""
    rows = database.query("SELECT id, store, created FROM run")
    if rows:
        id, store, created = rows[0]
        if store not in CHECKPOINT_STORES:
            raise DamagedError(database.path, f"its store is {store!r}")
        return id, store, created
    if database.is_lost:
        return "", "files", ""
    raise InputError(
        f"{database.path}: the run was not completely created; delete {database.path.parent} and start again"
    )


def _verified(database: Database, row: tuple[str, str]) -> str:
    text, sha256 = row
    if sha256_of(text) != sha256:
        raise DamagedError(database.path, "the recipe or the tokenizer in it is not what was written")
    return text


def _settings(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise DamagedError(path, "it holds no settings")
    return content


@dataclass(frozen=True)
class RunSummary:
    """A line of `tessera runs list`."""

    path: Path
    created: str = ""
    store: str = ""
    step: int | None = None
    """The last step with a figure or a checkpoint."""
    loss: float | None = None
    validation_loss: float | None = None
    steps: list[int] = field(default_factory=list)
    """Of the checkpoints."""
    best: int | None = None
    trained_by: str | None = None
    """The process that is training it now, on this machine or another."""
    problem: str | None = None
    """Why it cannot be opened."""


def list_runs(folder: str | Path) -> list[RunSummary]:
    """Every run in `folder` or up to three folders below it, the oldest first."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    found = [summary(path) for path in _runs(folder, DEPTH)]
    return sorted(found, key=lambda each: (each.created, str(each.path)))


def summary(path: Path) -> RunSummary:
    """One run's line."""
    try:
        with Run.open(path) as run:
            latest = run.latest()
            steps = run.checkpoints.steps()
            last = [step for step, _ in latest.values()] + steps
            owner = lock_owner(path / LOCK)
            return RunSummary(
                path=path,
                created=run.created,
                store=run.store,
                step=max(last, default=None),
                loss=latest["loss"][1] if "loss" in latest else None,
                validation_loss=latest["validation_loss"][1] if "validation_loss" in latest else None,
                steps=steps,
                best=run.checkpoints.best(),
                trained_by=None if owner is None else str(owner),
            )
    except TesseraError as error:
        return RunSummary(path=path, problem=str(error))


def _runs(folder: Path, depth: int) -> Iterator[Path]:
    if is_run(folder):
        yield folder
    elif depth:
        for below in sorted(folder.iterdir()):
            if below.is_dir() and not below.name.startswith("."):
                yield from _runs(below, depth - 1)
