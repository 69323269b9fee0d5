"""Checkpoints as folders: `checkpoints/step-000120/` with safetensors files, `state.json` and `manifest.json`.

A step is written into `step-000120.tmp-<run>-<id>/` and renamed when every byte of it is on the disk, so a folder with
a step's plain name is complete. The folders are the truth; the index in the database follows them, and is mended when
the run is next opened for training. Folders that another run made are read, but never removed.
"""

import re
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tessera.config import EngineName
from tessera.errors import DamagedError, InputError, StorageError
from tessera.store import manifest, parts
from tessera.store.checkpoints import CheckpointStore, now
from tessera.store.files import (
    Written,
    check_written,
    fsync_folder,
    make_folder,
    make_folders,
    new_token,
    read_json,
    remove_folder,
    rename,
    to_json,
    write_new,
)
from tessera.store.manifest import Manifest, read_manifest
from tessera.store.parts import Parts
from tessera.store.sqlite import Database
from tessera.store.tensors import check_tensors, read_safetensors, safetensors_chunks

STATE, TENSORS = "state.json", ".safetensors"
ALWAYS = (STATE, parts.INDEX)  # what is read of a step whichever group is asked for
STEP = re.compile(r"step-(\d{6,})")
ASIDE = re.compile(r"(step-\d{6,})\.old-[0-9a-f]{8}-[0-9a-f]{8}")  # the former content of a step being replaced


class FileCheckpoints(CheckpointStore):
    """The store "files"."""

    def __init__(self, folder: Path, database: Database, *, run_id: str, writable: bool) -> None:
        super().__init__(database, writable=writable)
        self.folder = folder
        self._run_id = run_id
        if writable:
            self._recover()

    def __str__(self) -> str:
        return str(self.folder)

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
        state = to_json(dict(meta)).encode()
        with self.staged(step) as folder:
            self._fill(folder, step, tensors, state)
        self.settle(step, keep, protect)

    @contextmanager
    def staged(self, step: int) -> Iterator[Path]:
        """A folder for the files of `step`, which has its name, or is gone, when the block has ended.

        The block flushes each file to the disk, ends with `write_manifest`, and is followed by `settle`.
        """
        self._check_write(step, 1)
        self.index.database.flush()  # the metrics up to this step must not be younger than it
        target = self.folder / folder_name(step)
        temporary = self._beside(target, "tmp")
        aside = None
        try:
            make_folders(self.folder)
            make_folder(temporary)
            yield temporary
            if target.exists():
                aside = self._beside(target, "old")
                rename(target, aside)
            rename(temporary, target)
        except BaseException:
            with suppress(StorageError):
                remove_folder(temporary)
            if aside is not None:
                with suppress(OSError):  # best effort: `steps` and `read` find it under either name
                    aside.rename(target)
            raise

    def settle(self, step: int, keep: int, protect: Set[int]) -> None:
        """Make the name of a step that was staged durable, and remove what may go."""
        fsync_folder(self.folder)
        self.index.add(step)
        self._rotate(step, keep, protect)

    def _fill(self, folder: Path, step: int, tensors: Mapping[str, Any], state: bytes) -> None:
        """Write the files, then the manifest, then make their names durable."""
        groups: dict[str, dict[str, Any]] = {}
        for name, tensor in tensors.items():
            group, _, rest = name.partition(".")
            groups.setdefault(group, {})[rest] = tensor
        files: dict[str, Written] = {}
        for group, members in groups.items():
            files[group + TENSORS] = write_new(folder / (group + TENSORS), safetensors_chunks(members))
        files[STATE] = write_new(folder / STATE, [state])
        self.write_manifest(folder, step, files)

    def write_manifest(self, folder: Path, step: int, files: dict[str, Written]) -> None:
        """The last file of a step, which makes it whole."""
        content = Manifest(self._run_id, step, now(), files).to_bytes()
        write_new(folder / manifest.NAME, [content])
        fsync_folder(folder)

    def _beside(self, target: Path, what: str) -> Path:
        """A name beside `target` that says whose it is: what another run made is set aside, and never cleaned up."""
        own = what == "tmp" or self._is_own(target)
        owner = self._run_id if own else "other"
        return target.with_name(f"{target.name}.{what}-{owner}-{new_token()}")

    def _is_own(self, folder: Path) -> bool:
        """Whether this run made a step's folder: its manifest says so or, where that is damaged, the index."""
        try:
            return read_manifest(folder).run == self._run_id
        except (DamagedError, InputError):
            return step_of(folder.name) in self.index.steps()

    def _rotate(self, step: int, keep: int, protect: Set[int]) -> None:
        """Remove what may go. Each folder loses its name first, so that a kill never leaves half a checkpoint."""
        found = self._folders()
        own = [s for s in found if self._is_own(found[s])]
        for old in self._expendable(step, own, keep, protect):
            rename(found[old], self.folder / f"{folder_name(old)}.tmp-{self._run_id}-{new_token()}")
            self.index.remove(old)
        self._remove_leftovers()

    def _remove_leftovers(self) -> None:
        """Remove what this run's writes left behind; nothing else is being written, as one process trains at a time."""
        for path in self._entries():
            whole, _, rest = path.name.partition(".")
            leftover = rest.startswith(f"tmp-{self._run_id}-")
            replaced = rest.startswith(f"old-{self._run_id}-") and (self.folder / whole).exists()
            if STEP.fullmatch(whole) and (leftover or replaced):
                remove_folder(path)

    def _recover(self) -> None:
        """Undo what a kill left half done, and make the index say what the folders are."""
        for path in self._entries():
            aside = ASIDE.fullmatch(path.name)
            if aside and not (self.folder / aside[1]).exists():
                rename(path, self.folder / aside[1])
        self._remove_leftovers()
        found, known = self._folders(), self.index.steps()
        for step in known - found.keys():
            self.index.remove(step)
        for step in found.keys() - known:
            if self._is_own(found[step]):
                self.index.add(step)

    def _entries(self) -> Iterator[Path]:
        with suppress(FileNotFoundError):
            yield from sorted(self.folder.iterdir())

    def _folders(self) -> dict[int, Path]:
        """Step -> its folder: the one of that name or, between the two renames of a replacement, the one set aside."""
        found: dict[int, Path] = {}
        for path in self._entries():
            if (step := step_of(path.name)) is not None:
                found[step] = path
            elif aside := ASIDE.fullmatch(path.name):
                found.setdefault(int(aside[1].removeprefix("step-")), path)  # a plain name sorts first, so it wins
        return found

    def steps(self) -> list[int]:
        return sorted(self._folders())

    def _read(self, step: int, prefix: str | None, engine: EngineName) -> tuple[Mapping[str, Any], dict[str, Any]]:
        while (folder := self._folders().get(step)) is not None:
            before = _identity(folder)
            if before is None:  # gone between the two looks
                continue
            try:
                loaded = _load(folder, step, prefix, engine)
            except DamagedError:
                if _identity(folder) == before:
                    raise
            else:
                if _identity(folder) == before:
                    return loaded
            # A training in progress has rotated or replaced it while we read: look again.
        raise KeyError(step)


def _identity(folder: Path) -> tuple[int, int] | None:
    """Tells a folder from another one that has taken its name since, and from itself with a file less."""
    try:
        found = folder.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_ctime_ns


def folder_name(step: int) -> str:
    return f"step-{step:06d}"


def step_of(name: str) -> int | None:
    """The inverse of `folder_name`; None for every other name."""
    match = STEP.fullmatch(name)
    step = int(match[1]) if match else None
    return step if step is not None and folder_name(step) == name else None


def _load(folder: Path, step: int, prefix: str | None, engine: EngineName) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """Verify the sizes of all files and the content of those that are needed, then read these."""
    content = read_manifest(folder)
    if content.step != step:
        raise DamagedError(folder / manifest.NAME, f"it is of step {content.step}")
    needed = {name for name in content.files if name in ALWAYS or prefix in (None, name.split(".")[0])}
    for name, written in content.files.items():
        check_written(folder / name, written, digest=name in needed)
    if parts.INDEX in content.files:
        return Parts(folder, prefix, engine=engine), read_json(folder / STATE)
    tensors = {
        f"{name.removesuffix(TENSORS)}.{rest}": tensor
        for name in sorted(needed - {STATE})
        for rest, tensor in read_safetensors(folder / name, engine=engine).items()
    }
    return tensors, read_json(folder / STATE)
