"""One writer a run: an advisory lock on a file beside the database.

The kernel drops the lock (`flock`) when the process ends, however it ends, so a killed training never leaves a run
locked. The file says who holds it: process, host, and which start of which kernel that was. On a disk that machines
share, and where the lock of one is not seen by another, that is what is left to go by: the owner renews the file's time
every few seconds, and a file of another machine whose time stands still for a while was left behind by a kill.
"""

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from tessera.errors import InputError, StorageError

ATTEMPTS, PAUSE = 5, 0.02  # `lock_owner` holds the lock for a moment while it looks: that must not turn a training away
RENEW_SECONDS = 5.0
WATCH_SECONDS = 20.0  # several renewals: one may be late, as when the processor is busy
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Owner:
    """Who holds a lock; process 0 where that is not known (yet)."""

    process: int = 0
    host: str = ""
    boot: str = ""
    """One start of one kernel: containers with names of their own share it, and with it their locks."""

    def __str__(self) -> str:
        who = f"process {self.process}" if self.process else "another process"
        return f"{who} on {self.host}" if self.host else who


class RunLock:
    """Held from the constructor to `release`; `InputError` names the process that holds it already.

    `say` is told when the lock of another machine turns out to be left behind.
    """

    def __init__(self, path: Path, *, say: Callable[[str], None] = lambda line: None) -> None:
        self.path = path
        self._say = say
        self._descriptor = -1
        self._released = threading.Event()
        for _ in range(ATTEMPTS):
            try:
                self._descriptor = self._take()
                break
            except BlockingIOError:
                time.sleep(PAUSE)
            except OSError as error:
                raise StorageError(path, error) from error
        else:
            owner = lock_owner(path) or Owner()
            if owner.process == os.getpid():
                raise InputError(f"{path.parent} is open for training in this process already: close that run first")
            raise InputError(f"{path.parent} is being trained by {owner}: wait for it, or end it first")
        arguments = (self._descriptor, self._released)
        self._renewing = threading.Thread(target=_renew, args=arguments, name="run lock", daemon=True)
        self._renewing.start()

    def _take(self) -> int:
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _same_file(descriptor, self.path):
                    self._check_left_behind(_read(descriptor))
                if _same_file(descriptor, self.path):
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, json.dumps(asdict(_this_process())).encode(), 0)
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)  # the last owner removed the file between our open and our lock: take the new one

    def _check_left_behind(self, before: Owner) -> None:
        """The file of an owner on this kernel was left by a kill, as the lock is ours; another's has to stand still."""
        if before.boot in ("", _boot()) or before.host == socket.gethostname():
            return
        if _is_renewed(self.path):
            why = f"is being trained by {before}: its lock {self.path.name} is being renewed"
            raise InputError(f"{self.path.parent} {why}; wait for it, or end it first")
        self._say(f"took over the lock that {before} left behind")

    def release(self) -> None:
        """Let the next one in. The file goes first, while nobody else can hold its lock."""
        if self._descriptor >= 0:
            self._released.set()
            self._renewing.join()
            with suppress(OSError):  # a file that stays is only untidy: its lock goes with the descriptor
                self.path.unlink()
            os.close(self._descriptor)
            self._descriptor = -1


def _renew(descriptor: int, released: threading.Event) -> None:
    while not released.wait(RENEW_SECONDS):
        with suppress(OSError):  # a full or broken disk is for the training to say
            os.utime(descriptor)


def _is_renewed(path: Path) -> bool:
    """Whether the file's time moves while we watch. Its own time is compared with itself: clocks need not agree."""
    with suppress(FileNotFoundError):  # its owner has let it go
        began, until = _time_of(path), time.monotonic() + WATCH_SECONDS
        while time.monotonic() < until:
            time.sleep(RENEW_SECONDS / 10)
            if _time_of(path) != began:
                return True
    return False


def _time_of(path: Path) -> int:
    with path.open("rb") as file:  # opening it is what makes a network disk look again
        return os.fstat(file.fileno()).st_mtime_ns


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _this_process() -> Owner:
    return Owner(os.getpid(), socket.gethostname(), _boot())


def _boot() -> str:
    try:
        return BOOT_ID.read_text().strip()
    except OSError:  # not Linux
        return ""


def _read(descriptor: int) -> Owner:
    try:
        return Owner(**json.loads(os.pread(descriptor, 1024, 0)))
    except (ValueError, TypeError):
        return Owner()


def lock_owner(path: Path) -> Owner | None:
    """The process that holds the lock `path` now, or None."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read(descriptor)
    finally:
        os.close(descriptor)
    return None
