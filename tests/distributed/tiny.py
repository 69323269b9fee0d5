"""A tiny training that several processes can share, and the processes that do: `python -m tests.distributed.tiny PLAN`.

A plan is JSON: a list of tasks, done one after the other by the same processes, as to start them takes seconds. A task
is a training with a name; what it saw is written beside the plan, by the first process, as NAME.json.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from tessera.config import build
from tessera.data.rows import DocumentRows
from tessera.model.decoder import Decoder
from tessera.objectives import NextToken
from tessera.optim import OPTIMIZERS, groups
from tessera.optim.schedule import Cosine
from tessera.store.run import Run
from tessera.train.distributed import distribute
from tessera.train.settings import TrainSettings
from tessera.train.trainer import Trainer
from tessera.train.world import SOLO, World, joined

N_VOCAB, CONTEXT = 13, 8
CPU = torch.device("cpu")


def texts() -> list[list[int]]:
    """Of many lengths, so that there is padding in each batch, and other padding in each process's part of it."""
    return [[(7 * i + j * j) % N_VOCAB for j in range(2 + i % 8)] for i in range(40)]


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
        **settings: Any,
    ) -> None:
        torch.manual_seed(0)
        self.world = world
        shape = {"context": CONTEXT, "d_model": 12, "n_layers": 2, "n_heads": 2, "d_ff": 20}
        self.model = Decoder(n_vocab=N_VOCAB, **(shape | (model or {})))  # type: ignore[arg-type]
        data = DocumentRows(texts(), context=CONTEXT, batch_size=batch_size)
        self.objective = NextToken(model=self.model, data=data)
        parallel = distribute(way, self.objective, world, CPU)
        made = build(OPTIMIZERS, {"name": optimizer, "lr": 3e-3}, params=groups(self.objective, 0.1))
        parallel.adopt(made)
        self.seen: list[list[float]] = []
        settings = {"steps": 20, "accumulate": 2, "eval_every": 0, "save_every": 0, "keep": 50} | settings
        self.trainer = Trainer(
            objective=self.objective,
            optimizer=made,
            schedule=Cosine(warmup=2),
            settings=TrainSettings(**settings),
            checkpoints=checkpoints,
            watch=lambda step: self.seen.append([step.loss, step.grad_norm, step.tokens, step.lr]),
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


def train(world: World, *, run: str | None = None, resume: bool = False, at: int | None = None, **of: Any) -> Any:
    """One training, from the start or from a checkpoint; what each of its steps measured."""
    store = None if run is None else opened(run, world)
    tiny = Tiny(world, checkpoints=store.checkpoints if store else None, **of)
    if resume:
        tiny.trainer.resume(at)
    outcome = tiny.trainer.run()
    if store is not None:
        world.gather(None)  # nobody closes what another one reads
        store.close()
    return {"outcome": outcome, "steps": tiny.seen, "drawn": torch.rand(2).tolist()}


def main(plan: Path) -> None:
    torch.set_num_threads(1)
    with joined("cpu") as world:
        for name, task in json.loads(plan.read_text()).items():
            result = world.gather(train(world, **task))
            if world.is_first:
                (plan.parent / f"{name}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    sys.path[:0] = [str(Path.cwd())]
    main(Path(sys.argv[1]))
