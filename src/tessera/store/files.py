"""Files that survive a kill, a full disk and a power cut.

The one idea: nothing is ever written in place. Data goes to a new file, the file is flushed to the disk (fsync), a
rename gives it its name in one step, and the folder is flushed so that the name is on the disk as well (Pillai et al.
2014, "All File Systems Are Not Created Equal", section 4: why each of these is needed). Whatever the moment, the name
leads to the old content or to the new one. Every refusal of the operating system is a `StorageError`.
"""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tessera.errors import DamagedError, StorageError
from tessera.store import failpoints

Buffer = bytes | bytearray | memoryview

# Every change of the disk goes through these. Each says where it is, so that a test can end the process there, or have
# the disk refuse (`store.failpoints`).


def _open(path: Path, flags: int) -> int:
    failpoints.before("open", path)
    descriptor = os.open(path, flags, 0o644)
    try:
        failpoints.after("open", path)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _write(descriptor: int, data: memoryview, path: Path) -> int:
    """Write some of `data`, a part of the file `path`; how much the system took."""
    taken = os.write(descriptor, data[: failpoints.before("write", path, len(data))])
    failpoints.after("write", path)
    return taken


def _fsync(descriptor: int, path: Path) -> None:
    failpoints.before("fsync", path)
    os.fsync(descriptor)
    failpoints.after("fsync", path)


def _rename(source: Path, target: Path) -> None:
    failpoints.before("rename", target)
    source.replace(target)
    failpoints.after("rename", target)


def _mkdir(path: Path) -> None:
    failpoints.before("mkdir", path)
    path.mkdir()
    failpoints.after("mkdir", path)


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` of the block into a `StorageError` that names `path`."""
    try:
        yield
    except OSError as error:
        raise StorageError(path, error) from error


def new_token() -> str:
    """A name part that no other process has: eight hexadecimal digits."""
    return secrets.token_hex(4)


@dataclass(frozen=True)
class Written:
    """What a file was when it was written: enough to tell later whether it still is."""

    size: int
    sha256: str


def write_new(path: Path, chunks: Iterable[Buffer]) -> Written:
    """Write a file that does not exist yet and flush it to the disk; the name is not durable until `fsync_folder`."""
    digest, size = hashlib.sha256(), 0
    with storage_errors(path):
        descriptor = _open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            for chunk in chunks:
                rest = memoryview(chunk)
                digest.update(rest)
                size += len(rest)
                while rest:  # the system may take less than it was given
                    rest = rest[_write(descriptor, rest, path) :]
            _fsync(descriptor, path)
        finally:
            os.close(descriptor)
    return Written(size, digest.hexdigest())


def fsync_folder(path: Path) -> None:
    """Make the names in a folder durable: a rename or a new file is on the disk only after this."""
    with storage_errors(path):
        descriptor = _open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            _fsync(descriptor, path)
        finally:
            os.close(descriptor)


def rename(source: Path, target: Path) -> None:
    """Give `source` the name `target` in the same folder; a file of that name is replaced in one step."""
    with storage_errors(target):
        _rename(source, target)


def make_folder(path: Path) -> None:
    """Make a folder that does not exist yet."""
    with storage_errors(path):
        _mkdir(path)


def make_folders(path: Path) -> None:
    """Make a folder and whatever is missing above it, each name durable; one that is there already will do."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        with storage_errors(folder):
            try:
                _mkdir(folder)
            except FileExistsError:  # another process was faster, unless a file is in the way
                if not folder.is_dir():
                    raise
        fsync_folder(folder.parent)


def remove_file(path: Path) -> None:
    """Remove a file; gone already is fine."""
    with storage_errors(path):
        failpoints.before("remove", path)
        path.unlink(missing_ok=True)
        failpoints.after("remove", path)


def remove_folder(path: Path) -> None:
    """Remove a folder with everything in it; gone already is fine."""
    with storage_errors(path), suppress(FileNotFoundError):
        failpoints.before("remove", path)
        shutil.rmtree(path)
        failpoints.after("remove", path)


def write_bytes_atomic(path: Path, data: Buffer) -> Written:
    """Give the file `path` this content: after a kill at any moment it holds the old content or all of the new one."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp-{new_token()}")
    try:
        written = write_new(temporary, [data])
        rename(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    fsync_folder(path.parent)
    return written


def to_json(value: Any) -> str:
    """Canonical JSON: sorted keys, no spaces, floats exact; a key that is not a string is an error, not a surprise.

    `json` would turn the key 0 into "0", and what is read back would no longer be what was written.
    """
    return _to_json(value, sort_keys=True, separators=(",", ":"))


def to_readable_json(value: Any) -> str:
    """JSON for people: indented, in the order that it was given."""
    return _to_json(value, indent=2) + "\n"


def _to_json(value: Any, **form: Any) -> str:
    _check_keys(value, "value")
    text = json.dumps(value, ensure_ascii=False, **form)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # half a surrogate pair, as in a file name that is not UTF-8: an escape can hold it
        return json.dumps(value, ensure_ascii=True, **form)
    return text


def _check_keys(value: Any, path: str) -> None:
    if isinstance(value, dict):
        for key, below in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{path}: the key {key!r} is a {type(key).__name__}; JSON keeps string keys only")
            _check_keys(below, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for position, below in enumerate(value):
            _check_keys(below, f"{path}[{position}]")


def read_bytes(path: Path) -> bytes:
    """The content of a file that Tessera wrote; `DamagedError` where it is gone or cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DamagedError(path, "it is missing") from None
    except OSError as error:
        raise DamagedError(path, f"it cannot be read ({error.strerror or error})") from None


def read_text(path: Path) -> str:
    """The text of a file that Tessera wrote."""
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DamagedError(path, f"it is not text ({error.reason} at byte {error.start})") from None


def read_json(path: Path) -> Any:
    """The value in a JSON file that Tessera wrote."""
    try:
        return json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise DamagedError(path, f"it is not JSON ({error})") from None


def check_written(path: Path, expected: Written, *, digest: bool = True) -> None:
    """Raise `DamagedError` unless the file still has the size and (where `digest`) the sha256 that were written."""
    try:
        size = path.stat().st_size
        if size != expected.size:
            raise DamagedError(path, f"{size} bytes where {expected.size} were written")
        if digest:
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != expected.sha256:
                    raise DamagedError(path, "its sha256 is not that of what was written")
    except FileNotFoundError:
        raise DamagedError(path, "it is missing") from None
    except OSError as error:
        raise DamagedError(path, f"it cannot be read ({error.strerror or error})") from None
