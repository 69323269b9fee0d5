"""A small run, its contents by step, and a disk that tells what is done to it."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tessera.store import failpoints
from tessera.store.run import Run

RECIPE = {"name": "tiny", "model": {"d_model": 8, "norm": {"name": "rms"}}, "train": {"lr": 3e-4, "steps": 10}}
TOKENIZER = '{"sha256": "...", "tokenizer": {"kind": "char", "é": 1}}\n'
VOCABULARY = [(0, b"a"), (1, "é".encode()), (5, b"\xff")]


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
    """What this process and those forked from it do to the disk; one of it can be refused, or end the process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.order("-@0=none")

    def order(self, text: str) -> None:
        """As in TESSERA_FAILPOINTS; forgets what there was."""
        self._monkeypatch.setenv(failpoints.VARIABLE, text)
        failpoints.plan.cache_clear()

    @property
    def places(self) -> list[str]:
        plan = failpoints.plan()
        assert plan is not None
        return plan.passed

    @property
    def log(self) -> list[str]:
        """What has been begun: "rename step-000001"."""
        return [place.replace(":before", "") for place in self.places if ":before" in place]


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    yield Disk(monkeypatch)
    failpoints.plan.cache_clear()


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
