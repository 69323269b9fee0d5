"""A tiny training that several processes can share, and the processes that do: `python -m tests.distributed.tiny PLAN`.

A plan is JSON: a list of tasks, done one after the other by the same processes, as to start them takes seconds. A task
is a training with a name; what each process saw of it is written beside the plan, by the first one, as NAME.json.
"""

import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tessera.config import build
from tessera.data.rows import DocumentRows
from tessera.errors import TesseraError
from tessera.evaluate.loss import held_out_loss
from tessera.model.decoder import Decoder
from tessera.objectives import NextToken
from tessera.optim import OPTIMIZERS, groups
from tessera.optim.schedule import Cosine
from tessera.store.run import Run
from tessera.train.distributed import distribute
from tessera.train.launch import Launch
from tessera.train.settings import TrainSettings
from tessera.train.trainer import Trainer
from tessera.train.world import SOLO, World, joined, leave

N_VOCAB, CONTEXT = 13, 8
CPU = torch.device("cpu")
SUMS = [name for name in ("all_reduce", "reduce_scatter_tensor", "reduce_scatter_single") if name in dir(dist)]
"""What sums gradients over the processes."""


def texts(lengths: str) -> list[list[int]]:
    """Of many lengths, so that there is padding in each batch, and other padding in each process's part of it."""
    return [[(7 * i + j * j) % N_VOCAB for j in range(2 + i % 8 if lengths == "many" else 6)] for i in range(40)]


@dataclass
class Accident:
    """What happens to one process (`rank`; None: to all) in its `call`-th forward pass."""

    what: str
    call: int
    rank: int | None = None

    def happen(self, loss: torch.Tensor) -> torch.Tensor:
        if self.what == "nan":
            return loss * torch.nan
        if self.what == "memory":
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory")
        os.kill(os.getpid(), getattr(signal, self.what))
        return loss


class Prone(NextToken):
    """Next-token prediction to which an accident may happen."""

    accident: Accident | None = None
    calls = 0

    def forward(self, batch: Any) -> Any:
        loss, metrics = super().forward(batch)
        if self.training:
            self.calls += 1
            if self.accident is not None and self.calls == self.accident.call:
                return self.accident.happen(loss), metrics
        return loss, metrics


class Tiny:
    """A training of a model that fits into the head, with 5 rows in a batch, which 2 processes cannot halve."""

    def __init__(
        self,
        world: World = SOLO,
        *,
        way: str = "ddp",
        optimizer: str = "adamw",
        checkpoints: Any = None,
        model: dict[str, Any] | None = None,
        batch_size: int = 5,
        lengths: str = "many",
        accident: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        torch.manual_seed(0)
        self.world = world
        shape = {"context": CONTEXT, "d_model": 12, "n_layers": 2, "n_heads": 2, "d_ff": 20}
        self.model = Decoder(n_vocab=N_VOCAB, **(shape | (model or {})))  # type: ignore[arg-type]
        data = DocumentRows(texts(lengths), context=CONTEXT, batch_size=batch_size)
        held_out = [next(data).to("cpu"), next(data).to("cpu")]
        data.epoch = data.position = 0
        self.objective = Prone(model=self.model, data=data)
        happens = None if accident is None else Accident(**accident)
        self.objective.accident = happens if happens and happens.rank in (None, world.rank) else None
        parallel = distribute(way, self.objective, world, CPU)
        made = build(OPTIMIZERS, {"name": optimizer, "lr": 3e-3}, params=groups(self.objective, 0.1))
        parallel.adopt(made)
        self.seen: list[list[float]] = []
        self.said: list[str] = []
        settings = {"steps": 20, "accumulate": 2, "eval_every": 5, "save_every": 0, "keep": 50} | settings
        self.trainer = Trainer(
            objective=self.objective,
            optimizer=made,
            schedule=Cosine(warmup=2),
            settings=TrainSettings(**settings),
            checkpoints=checkpoints,
            watch=lambda step: self.seen.append(
                [step.loss, step.grad_norm, step.tokens, step.lr, step.validation or 0.0]
            ),
            say=self.said.append,
            validate=lambda: held_out_loss(self.model, held_out).mean,
            parallel=parallel,
        )


def opened(path: str, world: World) -> Run:
    """The run at `path`, made if it is not there; only the first process may write."""

    def make() -> None:
        made.append(
            Run.open(path, train=True)
            if (Path(path) / "run.db").exists()
            else Run.create(path, recipe={}, tokenizer_json="{}", vocabulary=[])
        )

    made: list[Run] = []
    world.first(make)
    return made[0] if made else Run.open(path)


@contextmanager
def counted(counts: dict[str, int]) -> Iterator[None]:
    """Note how often gradients are summed, or anything else is."""
    real = {name: getattr(dist, name) for name in SUMS}

    def noting(name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            kind = name.rpartition("_")[0]
            counts[kind] = counts.get(kind, 0) + 1
            return real[name](*args, **kwargs)

        return call

    for name in SUMS:
        setattr(dist, name, noting(name))
    try:
        yield
    finally:
        for name, function in real.items():
            setattr(dist, name, function)


def train(
    world: World = SOLO,
    *,
    run: str | None = None,
    copy_of: str | None = None,
    resume: bool = False,
    at: int | None = None,
    **of: Any,
) -> Any:
    """One training, from the start or from a checkpoint; what each of its steps measured.

    `run`: keeps checkpoints there; `copy_of`: those of this other run are there already.
    """
    if copy_of is not None:
        world.first(lambda: str(shutil.copytree(copy_of, str(run))))
    store = None if run is None else opened(run, world)
    counts: dict[str, int] = {}
    said: dict[str, Any] = {}
    try:
        tiny = Tiny(world, checkpoints=store.checkpoints if store else None, **of)
        if resume:
            said["skipped"] = tiny.trainer.resume(at)
        with counted(counts):
            said["outcome"] = tiny.trainer.run()
        said |= {"stopped_by": tiny.trainer.stopped_by, "said": tiny.said}
        said |= {"steps": tiny.seen, "drawn": torch.rand(2).tolist(), "exchanges": counts}
    except TesseraError as error:
        said |= {"error": type(error).__name__, "message": str(error)}
    if store is not None:
        world.gather(None)  # nobody closes what another one reads
        said["saved"] = store.checkpoints.steps()
        store.close()
    return said


def main(plan: Path) -> None:
    torch.set_num_threads(1)
    with joined("cpu") as world:
        for name, task in json.loads(plan.read_text()).items():
            result = world.gather(train(world, **task))
            if world.is_first:
                (plan.parent / f"{name}.json").write_text(json.dumps(result))


def in_processes(folder: Path, tasks: dict[str, Any], n: int = 2) -> dict[str, list[Any]]:
    """What each process saw of each task, done by `n` of them."""
    plan = folder / "plan.json"
    plan.write_text(json.dumps(tasks))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.distributed.tiny", str(plan)]
    code = Launch(n, say=print, environment=environment).run(command, again=lambda: command)
    assert code == 0, f"the processes ended with exit code {code}"
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in tasks}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    leave(0)
