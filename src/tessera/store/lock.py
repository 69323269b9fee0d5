"""One writer a run: an advisory lock on a file beside the database.

The kernel drops the lock (`flock`) when the process ends, however it ends, so a killed training never leaves a run
locked. The file holds the owner's process id, for the message that the second one gets.
"""

import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path

from tessera.errors import InputError, StorageError

ATTEMPTS, PAUSE = 5, 0.02  # `lock_owner` holds the lock for a moment while it looks: that must not turn a training away


class RunLock:
    """Held from the constructor to `release`; `InputError` names the process that holds it already."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = -1
        for _ in range(ATTEMPTS):
            try:
                self._descriptor = self._take()
                return
            except BlockingIOError:
                time.sleep(PAUSE)
            except OSError as error:
                raise StorageError(path, error) from error
        owner = lock_owner(path)
        if owner == os.getpid():
            raise InputError(f"{path.parent} is open for training in this process already: close that run first")
        who = f"process {owner}" if owner else "another process"
        raise InputError(f"{path.parent} is being trained by {who}: wait for it, or end it first")

    def _take(self) -> int:
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _same_file(descriptor, self.path):
                    os.ftruncate(descriptor, 0)
                    os.write(descriptor, str(os.getpid()).encode())
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)  # the last owner removed the file between our open and our lock: take the new one

    def release(self) -> None:
        """Let the next one in. The file goes first, while nobody else can hold its lock."""
        if self._descriptor >= 0:
            with suppress(OSError):  # a file that stays is only untidy: its lock goes with the descriptor
                self.path.unlink()
            os.close(self._descriptor)
            self._descriptor = -1


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def lock_owner(path: Path) -> int | None:
    """The process that holds the lock `path` now, or None (0 where it has not yet said who it is)."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.read(descriptor, 32)
        return int(text) if text.isdigit() else 0
    finally:
        os.close(descriptor)
    return None
