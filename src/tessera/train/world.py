"""The processes of one training, and how they agree.

One process is `SOLO`, in which every question is answered at once; a `Group` asks the others. The loop is the same for
both: it never looks how many there are. Each process is started with RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE,
MASTER_ADDR and MASTER_PORT in its environment, as `torchrun` does and `tessera train --devices N` does
(`tessera.train.launch`).

What is agreed on goes between the processors by gloo, also where the gradients go between GPUs by NCCL. A process that
was killed breaks its connections, which the others see at their next exchange; one that hangs is waited for
`TIMEOUT`.
"""

import os
import re
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from tessera.errors import FollowedError, InputError, LostError, SettingError, TesseraError
from tessera.train.launch import end_with_launcher

T = TypeVar("T")

TIMEOUT = timedelta(minutes=10)
"""Of one exchange: the longest that a process may be behind another, as while the first one writes a checkpoint."""
PATIENCE = timedelta(days=7)
"""The same where the others wait for what only the first one does: to prepare a corpus may take as long as it takes."""
PAUSE = 0.02
"""Seconds between two looks at the store."""
NAME = "tessera/start"
"""Where the name of the newest start is in the store."""
PLACE_IN_SOURCE = re.compile(r"^\[[^\]]*\.\w+:\d+\] *")
"""With which gloo begins what it says."""
PLACE = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What else a process finds in its environment that is one of several."""
SIGNS = (
    "closed by peer",
    "reset by peer",
    "connection refused",
    "broken pipe",
    "timed out",
    "timeout",
    "socket closed",
)
"""In the words of gloo, NCCL and the store: the other side is not there."""


@dataclass(frozen=True)
class World:
    """One process, which is all there is."""

    rank: int = 0
    size: int = 1
    local_size: int = 1
    """Processes on this machine."""

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """The value of each process, in the order of their ranks; on all the same."""
        return [value]

    def numbers(self, values: Sequence[float]) -> list[list[float]]:
        """The same for a row of numbers of one length, which is quicker."""
        return [list(values)]

    def share(self, value: T) -> T:
        """The first process's value, on all."""
        return value

    def first(self, action: Callable[[], T]) -> T:
        """What `action` gives on the first process, the only one that it runs on; an error there is one on all.

        The others wait for as long as it takes.
        """
        return action()

    def sum_(self, tensors: Sequence[torch.Tensor]) -> None:
        """Make each tensor the sum of it over all processes, in place."""

    def copy_(self, tensors: Sequence[torch.Tensor]) -> None:
        """Make each tensor what it is in the first process, in place."""

    @contextmanager
    def watched(self) -> Iterator[None]:
        """A `LostError` where the block fails because another process is gone."""
        yield


SOLO = World()


@dataclass(frozen=True)
class Group(World):
    """Several processes. All of them ask the same questions in the same order."""

    patient: dist.ProcessGroup | None = None
    """The same processes, which wait for each other with PATIENCE."""

    def gather(self, value: T) -> list[T]:
        values: list[Any] = [None] * self.size
        with self.watched():
            dist.all_gather_object(values, value)
        return values

    def numbers(self, values: Sequence[float]) -> list[list[float]]:
        own = torch.tensor(values, dtype=torch.float64)
        rows = [torch.empty_like(own) for _ in range(self.size)]
        with self.watched():
            dist.all_gather(rows, own)
        return [row.tolist() for row in rows]

    def share(self, value: T) -> T:
        values = [value]
        with self.watched():
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def first(self, action: Callable[[], T]) -> T:
        if not self.is_first:
            said = self._hear(None)
            if "error" in said:
                raise FollowedError(said["error"], exit_code=said["exit_code"])
            return said["result"]
        try:
            result = action()
        except BaseException as error:
            with suppress(LostError):
                self._hear({"error": str(error) or type(error).__name__, "exit_code": exit_code_of(error)})
            raise
        self._hear({"result": result})
        return result

    def _hear(self, said: dict[str, Any] | None) -> dict[str, Any]:
        """What the first process says, on all."""
        values = [said]
        with self.watched():
            dist.broadcast_object_list(values, src=0, group=self.patient)
        assert values[0] is not None
        return values[0]

    def sum_(self, tensors: Sequence[torch.Tensor]) -> None:
        with self.watched():
            for work in [dist.all_reduce(tensor, async_op=True) for tensor in tensors]:
                work.wait()

    def copy_(self, tensors: Sequence[torch.Tensor]) -> None:
        with self.watched():
            for tensor in tensors:
                dist.broadcast(tensor.detach(), src=0)

    @contextmanager
    def watched(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if not is_lost(error):
                raise
            why = PLACE_IN_SOURCE.sub("", str(error).strip().splitlines()[0]).partition(". ")[0]
            raise LostError(
                f"process {self.rank} of {self.size} lost touch with another one, which was ended, hangs or is out of "
                f"reach ({why}). What the run has saved is safe: go on with tessera train --resume"
            ) from error


def is_lost(error: BaseException) -> bool:
    """Whether the error says that another process is gone."""
    if isinstance(error, dist.DistNetworkError | dist.DistBackendError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in text for sign in SIGNS)


def exit_code_of(error: BaseException) -> int:
    """With what a command ends that an error ended."""
    if isinstance(error, TesseraError):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    return error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1


def is_one_of_many() -> bool:
    """Whether this process was started as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def joined(device: str) -> Iterator[World]:
    """This process's world for as long as the block runs: SOLO, unless it was started as one of several.

    `device` is the recipe's `train.device`. With CUDA each process has the GPU of its number on this machine.
    """
    end_with_launcher()
    if not is_one_of_many():
        yield SOLO
        return
    if missing := [name for name in PLACE if name not in os.environ]:
        raise InputError(f"WORLD_SIZE says that there are several processes, but {missing[0]} is not set: use torchrun")
    on_cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if on_cuda:
        _take_gpu(device)
    store, rank, size = next(rendezvous("env://", timeout=TIMEOUT))
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_cuda else "gloo",
        store=dist.PrefixStore(_this_start(store, rank, size), store),
        rank=rank,
        world_size=size,
        timeout=TIMEOUT,
    )
    try:
        local_size = int(os.environ.get("LOCAL_WORLD_SIZE", size))
        patient = dist.new_group(backend="gloo", timeout=PATIENCE)
        yield Group(rank=rank, size=size, local_size=local_size, patient=patient)
    finally:
        dist.destroy_process_group()


def _this_start(store: dist.Store, rank: int, size: int) -> str:
    """A name that only the processes of this start have for it.

    torchrun keeps its store when it starts them again, and with it the addresses of those that were ended, with which
    nobody is to connect. Its count of restarts is not the same on all machines, so the first process draws a name, and
    one that finds its own place in it taken has read the name of an earlier start.
    """
    deadline = time.monotonic() + TIMEOUT.total_seconds()

    def pause() -> None:
        if time.monotonic() > deadline:
            raise dist.DistStoreError(f"process {rank} of {size} waited {TIMEOUT} for the others")
        time.sleep(PAUSE)

    if rank == 0:
        name = uuid.uuid4().hex
        store.set(NAME, name)
        while not store.check([f"{name}/{other}" for other in range(1, size)]):  # not every store wakes who waits
            pause()
        store.set(f"{name}/all", "")
        return name
    name, is_ours = "", False
    while not (is_ours and store.check([f"{name}/all"])):
        latest = store.get(NAME).decode()
        if latest != name:
            name, is_ours = latest, store.add(f"{latest}/{rank}", 1) == 1
        pause()
    return name


def leave(code: int) -> NoReturn:
    """End this process, one of several, when all that it had to do is done.

    Without Python's own farewell: a thread of an exchange that still asks for the interpreter then aborts the process,
    now and then, and what ended well looks like what was lost.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _take_gpu(device: str) -> None:
    if device not in ("auto", "cuda"):
        raise SettingError("train.device", device, "cuda or auto: each process takes the GPU of its own number")
    number, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if number >= there:
        raise SettingError("--devices", number + 1, f"at most the {there} GPUs of this machine")
    torch.cuda.set_device(number)
