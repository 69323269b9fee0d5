"""A small run, its contents by step, and a disk that fails or is cut off at any moment."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tessera.store import files
from tessera.store.run import Run

RECIPE = {"name": "tiny", "model": {"d_model": 8, "norm": {"name": "rms"}}, "train": {"lr": 3e-4, "steps": 10}}
TOKENIZER = '{"sha256": "...", "tokenizer": {"kind": "char", "é": 1}}\n'
VOCABULARY = [(0, b"a"), (1, "é".encode()), (5, b"\xff")]
OPERATIONS = ("_open", "_write", "_fsync", "_rename", "_mkdir")


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    def make(store: str = "files", name: str = "run", **changes: Any) -> Run:
        arguments = {"recipe": RECIPE, "tokenizer_json": TOKENIZER, "vocabulary": VOCABULARY, "info": {"seed": 7}}
        return Run.create(tmp_path / name, store=store, **(arguments | changes))

    return make


@pytest.fixture
def state() -> Callable[[int], tuple[dict[str, Tensor], dict[str, Any]]]:
    """What a checkpoint of a step holds in these tests: the step decides every byte."""

    def make(step: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        generator = torch.Generator().manual_seed(step)
        tensors = {
            "model.head.weight": torch.randn(7, 5, generator=generator),
            "model.embedding.weight": torch.randn(3, 4, generator=generator).bfloat16(),
            "optimizer.exp_avg.model.head.weight": torch.randn(7, 5, generator=generator),
            "rng.torch": torch.randint(0, 256, (9,), generator=generator, dtype=torch.uint8),
        }
        return tensors, {"step": step, "cursor": {"order": [step, 2, 3]}, "lr": 0.1 / (step + 1)}

    return make


@pytest.fixture
def is_state(state: Any) -> Callable[[Any], bool]:
    """Whether a loaded checkpoint is, bit for bit, what `state` made for its step."""

    def check(loaded: Any) -> bool:
        tensors, meta = state(loaded.step)
        same = all(torch.equal(loaded.tensors[name], tensors[name]) for name in tensors)
        return same and loaded.tensors.keys() == tensors.keys() and loaded.meta == meta

    return check


class Disk:
    """Counts and logs what changes the disk; can refuse one operation, or end the process in it."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.act: Callable[[], None] | None = None
        self.at = -1
        self._paths: dict[int, Path] = {}

    def fail(self, at: int, number: int) -> None:
        self.log.clear()
        self.at = at

        def refuse() -> None:
            raise OSError(number, os.strerror(number))

        self.act = refuse

    def kill(self, at: int) -> None:
        self.log.clear()
        self.at = at
        self.act = lambda: os.kill(os.getpid(), signal.SIGKILL)

    def wrap(self, operation: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(first: Any, *rest: Any) -> Any:
            path = self._paths[first] if isinstance(first, int) else first
            now = len(self.log) == self.at
            self.log.append(f"{operation[1:]} {path.name}")
            if now and self.act is not None:
                if operation == "_write":  # a full disk takes a part first
                    os.write(first, rest[0][: len(rest[0]) // 2])
                self.act()
            result = real(first, *rest)
            if operation == "_open":
                self._paths[result] = path
            return result

        return wrapped


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    for operation in OPERATIONS:
        monkeypatch.setattr(files, operation, disk.wrap(operation, getattr(files, operation)))
    return disk


@pytest.fixture
def in_child() -> Callable[[Callable[[], None]], int]:
    """Run a function in a forked process; gives its id. A Python error in it shows as exit status 1."""

    def start(work: Callable[[], None]) -> int:
        pid = os.fork()
        if pid == 0:
            try:
                work()
                os._exit(0)
            except BaseException:
                os._exit(1)
        return pid

    return start
