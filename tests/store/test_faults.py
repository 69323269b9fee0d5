"""Every fail point in turn, in both stores: nothing that was acknowledged is lost, nothing unreadable is left.

A child saves over and over; at one of the places where it, or SQLite in it, changes the disk, it is killed or the disk
refuses. What it was told is on the disk it says through a pipe. Then another process looks at what is there.
"""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from tests.store import sqlite_disk

from tessera.errors import StorageError
from tessera.store import failpoints
from tessera.store.run import CHECKPOINT_STORES, Run

stores = pytest.mark.parametrize("store", list(CHECKPOINT_STORES))
SAVES = (2, 2)  # one more, which drives the first out, and the same again
REFUSALS = [
    pytest.param("write:before*", "+=EIO", id="this write and all that follows"),
    pytest.param("write:before*", "=half+ENOSPC", id="no space after half of a write"),
    *(
        pytest.param(pattern, action, id=f"{pattern} {action}", marks=pytest.mark.slow)
        for pattern, actions in (("*", ("=EIO", "=ENOSPC", "+=EIO", "+=ENOSPC")), ("write:before*", ("=half+EIO",)))
        for action in actions
    ),
]
IN_MEMORY = Path("/dev/shm")


@pytest.fixture
def original(make_run: Callable[..., Run], store: str, state: Any) -> Iterator[Path]:
    """A run with a checkpoint of step 1, which the children have copies of; on a disk that is quick to flush."""
    sqlite_disk.library()
    with make_run(store, "original") as run:
        run.checkpoints.write(1, *state(1))
    with TemporaryDirectory(dir=IN_MEMORY if os.access(IN_MEMORY, os.W_OK) else None) as folder:
        yield Path(shutil.copytree(run.path, Path(folder) / "original"))


def save_all(path: Path, state: Any, order: str) -> dict[str, Any]:
    """Do SAVES on the run at `path` with the disk under `order`, in a child; what it said, and how it ended."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(reading)
            sqlite_disk.install()  # in the child alone: other tests have the disk as it is
            os.environ[failpoints.VARIABLE] = "-@0=none"
            failpoints.plan.cache_clear()
            run = Run.open(path, train=True)
            os.environ[failpoints.VARIABLE] = order
            failpoints.plan.cache_clear()
            plan = failpoints.plan()
            try:
                for step in SAVES:
                    run.log_metrics(step, {"loss": 1 / step})
                    run.checkpoints.write(step, *state(step), keep=1)
                    os.write(writing, json.dumps({"step": step}).encode() + b"\n")
            except StorageError as error:
                os.write(writing, json.dumps({"error": str(error)}).encode() + b"\n")
            assert plan is not None
            acted = plan.fitting > plan.at
            os.write(writing, json.dumps({"acted": acted}).encode() + b"\n")
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = [json.loads(line) for line in pipe.read().splitlines()]
    _, status = os.waitpid(pid, 0)
    steps = [line["step"] for line in said if "step" in line]
    errors = [line["error"] for line in said if "error" in line]
    acted = next((line["acted"] for line in said if "acted" in line), True)  # killed before it could say
    return {"steps": steps, "errors": errors, "acted": acted, "status": status}


def check_what_is_left(path: Path, done: dict[str, Any], state: Any, is_state: Callable[[Any], bool]) -> None:
    acknowledged = max(done["steps"], default=1)
    with Run.open(path) as reader:  # before anything is mended
        newest = reader.checkpoints.read()
        assert newest.step >= acknowledged
        assert newest.skipped == []
        assert all(is_state(reader.checkpoints.read(step)) for step in reader.checkpoints.steps())
        assert {step for step, _ in reader.metrics("loss")} >= set(range(2, newest.step + 1))
    with Run.open(path, train=True) as run:
        assert run.checkpoints.read().step == newest.step
        run.checkpoints.write(4, *state(4), keep=1)
        assert run.checkpoints.steps() == [4]
        assert is_state(run.checkpoints.read())
    if run.store == "files":
        assert [entry.name for entry in (path / "checkpoints").iterdir()] == ["step-000004"]


def try_each(original: Path, state: Any, is_state: Any, pattern: str, action: str) -> list[dict[str, Any]]:
    """`action` at each place that fits `pattern`, in turn, until none is left; what came of each."""
    results: list[dict[str, Any]] = []
    while True:
        path = original.with_name("trial")
        shutil.copytree(original, path)
        done = save_all(path, state, f"{pattern}@{len(results)}{action}")
        check_what_is_left(path, done, state, is_state)
        shutil.rmtree(path)
        results.append(done)
        if not done["acted"]:
            return results[:-1]


@stores
@pytest.mark.parametrize(("pattern", "action"), [("*", "=kill"), ("write:before*", "=half+kill")])
def test_killed_at_each_place_nothing_acknowledged_is_lost(
    original: Path, state: Any, is_state: Any, pattern: str, action: str
) -> None:
    results = try_each(original, state, is_state, pattern, action)
    assert all(os.WTERMSIG(done["status"]) == signal.SIGKILL for done in results)
    assert len(results) > 20
    assert {tuple(done["steps"]) for done in results} >= {(), (2,)}


@stores
@pytest.mark.parametrize(("pattern", "action"), REFUSALS)
def test_refused_at_each_place_it_is_a_clear_error_and_nothing_is_lost(
    original: Path, state: Any, is_state: Any, pattern: str, action: str
) -> None:
    results = try_each(original, state, is_state, pattern, action)
    assert len(results) > 20
    for done in results:
        assert done["status"] == 0
        assert [line for line in done["errors"] if line.startswith(f"cannot write {original.parent}")]


@stores
def test_a_system_that_takes_half_of_a_write_loses_nothing(original: Path, state: Any, is_state: Any) -> None:
    for done in try_each(original, state, is_state, "write:before*", "=short"):
        assert done["steps"] == list(SAVES)
        assert done["errors"] == []
