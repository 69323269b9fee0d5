"""Reading text and writing files: all of them whole, and a reader never sees half of one."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from tessera.errors import InputError, StorageError

READ_CHARACTERS = 2**19


def write_files(files: Mapping[Path, bytes], *, make_folders: bool = False) -> None:
    """Write every file under another name first and rename them only when all are on the disk."""
    ready: dict[Path, Path] = {}
    path = Path()
    try:
        for path, content in files.items():
            if make_folders:
                path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                dir=path.parent, prefix=f"{path.name}.", suffix=".tmp", delete=False
            ) as file:
                ready[path] = Path(file.name)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            ready[path].chmod(0o644)
        for path, temporary in ready.items():
            temporary.replace(path)
        for folder in {path.parent for path in files}:
            _sync(folder)
    except OSError as error:
        for temporary in ready.values():
            temporary.unlink(missing_ok=True)
        raise StorageError(path, error) from error


def _sync(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def read_text(path: str | Path) -> Iterator[str]:
    """A UTF-8 file in parts, as it stands: no newline is translated."""
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            while part := file.read(READ_CHARACTERS):
                yield part
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error.reason})") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
