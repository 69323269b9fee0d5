"""A file that appears whole or not at all, written piece by piece.

The bytes go to a temporary name beside the target; leaving the block flushes them to the disk, renames, and flushes the
folder. An error inside the block, or from the disk, removes the temporary file and leaves an older target as it was.
"""

import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tessera.store import failpoints
from tessera.store.files import fsync_folder, new_token, rename, storage_errors


class DurableFile:
    """`with DurableFile(path) as file: file.write(...)`; a refused write is a `StorageError`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.temporary = self.path.with_name(f".{self.path.name}.tmp-{new_token()}")
        with storage_errors(self.path):
            self._file = self.temporary.open("wb")

    def write(self, data: bytes) -> None:
        with storage_errors(self.path):
            failpoints.before("write", self.path)
            self._file.write(data)
            failpoints.after("write", self.path)

    def write_at_start(self, data: bytes) -> None:
        """Overwrite the first bytes, for a header whose contents are only known at the end."""
        with storage_errors(self.path):
            self._file.seek(0)
            self._file.write(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                with storage_errors(self.path):
                    self._file.flush()
                    failpoints.before("fsync", self.path)
                    os.fsync(self._file.fileno())
                    failpoints.after("fsync", self.path)
                    self._file.close()
                rename(self.temporary, self.path)
                fsync_folder(self.path.parent)
        finally:
            with suppress(OSError):  # on a full disk even closing fails: the buffer is still unwritten
                self._file.close()
            with suppress(OSError):
                self.temporary.unlink(missing_ok=True)
