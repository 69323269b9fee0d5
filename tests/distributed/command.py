"""The command as several processes, started as a launcher would, and by the launchers themselves."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from tests.small import EXACT, TEXT

from tessera.errors import TesseraError
from tessera.store.run import Run

T = TypeVar("T")
SMALL = (*EXACT, "train.batch_size=3", "sample.sampling.max_tokens=4")
ENDLESS = ("train.steps=1000000", "train.eval_every=0")


def write_text(folder: Path) -> Path:
    path = folder / "text.txt"
    path.write_text(TEXT)
    return path


def tessera(*arguments: object) -> list[str]:
    """`tessera ARGUMENTS`, as what a process is started with."""
    return [sys.executable, "-m", "tessera", *map(str, arguments)]


def torchrun(*arguments: object, max_restarts: int = 0) -> list[str]:
    """`torchrun --nproc-per-node 2 -m tessera ARGUMENTS`"""
    where = [
        "--nproc-per-node",
        "2",
        "--max-restarts",
        str(max_restarts),
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        "localhost:0",
    ]
    return [sys.executable, "-m", "torch.distributed.run", *where, "-m", "tessera", *map(str, arguments)]


def run(command: list[str], timeout: float = 200.0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment())


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def processes(*arguments: object) -> Any:
    """Two processes of the command that nobody watches: the first one keeps the store, as with a static rendezvous."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    shared = environment() | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            tessera(*arguments),
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


@contextmanager
def ended(started: Iterable[subprocess.Popen[str]]) -> Any:
    """Whatever happens, no process outlives the block."""
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.communicate()


def children(pid: int) -> dict[int, int]:
    """The processes of a launcher by rank."""
    found = {}
    started = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    for child in (int(one) for of_thread in started for one in of_thread):
        with suppress(OSError):
            values = dict(one.partition("=")[::2] for one in Path(f"/proc/{child}/environ").read_text().split("\0"))
            if "RANK" in values:
                found[int(values["RANK"])] = child
    return found


def wait_for_step(path: Path, started: Iterable[subprocess.Popen[str]], above: int = 0) -> int:
    """Until the run has noted a step later than `above`; which."""

    def last(opened: Run) -> int | None:
        noted = opened.metrics("loss")
        return int(noted[-1][0]) if noted and noted[-1][0] > above else None

    return wait_for(last, path, started)


def wait_for(look: Callable[[Run], T | None], path: Path, started: Iterable[subprocess.Popen[str]]) -> T:
    """Until there is something to be seen in the run; what."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        with suppress(TesseraError), Run.open(path) as opened:  # it may not be there yet
            if (found := look(opened)) is not None:
                return found
        for process in started:
            assert process.poll() is None, f"it ended: {process.communicate()}"
        time.sleep(0.05)
    raise AssertionError(f"{path}: nothing was seen in time")
