"""Several processes of one training on this machine, started, watched and, where one is lost, started again.

It does on one machine what `torchrun` does on many: each process gets its number in the environment, and a store over
which they find each other, which is a new one for each start. A signal is passed on to all of them once, so that they
save together; when one ends with an error the others, which cannot go on without it, are ended as well.
"""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from tessera.errors import SettingError

PAUSE = 0.1
"""Seconds between two looks at the processes."""
GRACE = 10.0
"""Seconds in which the others may notice by themselves that one is gone, and say so; then SIGTERM, then SIGKILL."""
FINAL = (0, 2, 3, 128 + signal.SIGINT, 128 + signal.SIGTERM)
"""Exit codes that another start would not change: done, wrong input, diverged, asked to stop."""
LAUNCHER = "TESSERA_LAUNCHER"
"""In the environment of a process: the descriptor that is closed when its launcher ends."""


@dataclass
class Launch:
    """`n` processes of a command; `say` is told what becomes of them."""

    n: int
    say: Callable[[str], None] = lambda line: None
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))

    def __post_init__(self) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []
        self._asked = 0
        self._since: float | None = None
        """When those that are left were to end."""

    def run(self, command: Sequence[str], *, again: Callable[[], Sequence[str]], max_restarts: int = 0) -> int:
        """The exit code: of the process that ended first with an error, or 0.

        Where it was lost (killed, or by an error that is not of the input) all are started anew, by the command that
        `again` gives, at most `max_restarts` times.
        """
        restarts = 0
        with self._signals():
            while True:
                code = self._once(command)
                if code in FINAL or self._asked or restarts == max_restarts:
                    return code
                restarts += 1
                self.say(f"start {restarts} of {max_restarts} again")
                command = again()

    def _once(self, command: Sequence[str]) -> int:
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        ours, theirs = os.pipe()  # what is closed at our end, by whatever ends us, they see
        shared = {
            **self.environment,
            "OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // self.n)),  # the cores, divided among them
            "WORLD_SIZE": str(self.n),
            "LOCAL_WORLD_SIZE": str(self.n),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is there: the first process is not to make it
            LAUNCHER: str(ours),
        }
        try:
            self.processes = [
                subprocess.Popen(
                    list(command),
                    env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                    stdin=subprocess.DEVNULL,
                    pass_fds=(ours,),
                    start_new_session=True,  # Ctrl-C is for us to pass on: twice would end them without a save
                )
                for rank in range(self.n)
            ]
            return self._watch()
        finally:
            for process in self.processes:
                if process.poll() is None:
                    process.kill()
                process.wait()
            os.close(ours)
            os.close(theirs)

    def _watch(self) -> int:
        """Until all have ended. The first that failed says the exit code: what the others say follows from it."""
        first: tuple[int, int] | None = None
        self._since = None
        while True:
            codes = [process.poll() for process in self.processes]
            if first is None:
                failed = sorted((code, rank) for rank, code in enumerate(codes) if code)  # those that were killed lead
                if failed:
                    first, self._since = failed[0], time.monotonic()
                    self._tell(*first)
            if None not in codes:
                code = first[0] if first else 0
                return 128 - code if code < 0 else code
            if self._since is not None:
                self._end(time.monotonic() - self._since)
            time.sleep(PAUSE)

    def _tell(self, code: int, rank: int) -> None:
        if code < 0:
            self.say(f"process {rank} of {self.n} was ended by {signal.Signals(-code).name}")
        elif code not in FINAL:
            self.say(f"process {rank} of {self.n} ended with exit code {code}")

    def _end(self, seconds: float) -> None:
        """End those that are left, the harder the longer it takes."""
        if seconds > GRACE:
            self._send(signal.SIGKILL if seconds > 2 * GRACE else signal.SIGTERM)

    def _send(self, number: int) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        if self._asked:  # those that are in the middle of something long are not waited for
            self._since = time.monotonic()
        self._asked = number
        self._send(number)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, self._pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def check_devices(device: str, n: int) -> None:
    """Raise a `SettingError` where this machine has not `n` devices of the kind that `train.device` names."""
    if device.startswith("cuda") or (device == "auto" and torch.cuda.is_available()):
        there = torch.cuda.device_count()
        if n > there:
            raise SettingError(
                "--devices", n, f"at most the {there} GPUs of this machine (train.device=cpu for its cores)"
            )
    elif device not in ("auto", "cpu"):
        raise SettingError("train.device", device, "cpu or cuda with several processes")


def end_with_launcher() -> None:
    """Should the launcher of this process be killed, this process saves and ends, as by SIGTERM."""
    descriptor = os.environ.pop(LAUNCHER, None)  # it is for this process alone, not for those that it may start
    if descriptor is not None:
        threading.Thread(target=_wait_for_end, args=(int(descriptor),), name="launcher", daemon=True).start()


def _wait_for_end(descriptor: int) -> Any:
    os.read(descriptor, 1)  # returns when the other end is closed
    os.kill(os.getpid(), signal.SIGTERM)
