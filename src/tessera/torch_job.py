"""The job on torch: builds the parts, runs the trainer, in one process or as one of several."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from tessera.building import (
    build_model,
    build_optimizer,
    pick_compilation,
    pick_device,
    pick_precision,
)
from tessera.config import build
from tessera.errors import InputError, SettingError
from tessera.job import Job, Result
from tessera.material import Detailed, Material
from tessera.model.decoder import Decoder
from tessera.objectives.objective import Objective
from tessera.optim.schedule import SCHEDULES
from tessera.recipe import Recipe
from tessera.store.checkpoints import Loaded
from tessera.store.run import Run
from tessera.tokenizers import Tokenizer
from tessera.torch_plan import training_flops
from tessera.train.checkpoint import CURSOR, seed_generators
from tessera.train.compile import cache_folder, compile_seconds
from tessera.train.distributed import check_way, distribute
from tessera.train.precision import FP32, Precision
from tessera.train.profile import StepProfiler
from tessera.train.progress import Outcome, Progress
from tessera.train.stopwatch import Stopwatch
from tessera.train.trainer import Trainer
from tessera.train.world import SOLO, World
from tessera.watcher import Watcher

NAMED = 8
"""Tensors that an error names."""


def check_start(recipe: Recipe, world: World | None, *, profile: bool) -> None:
    """Use the CPU threads that the recipe asks for; a `SettingError` for what processes cannot do together."""
    if recipe.train.threads:
        torch.set_num_threads(recipe.train.threads)
    if world is not None and world.size > 1:
        way, n_future = recipe.train.parallel, recipe.model.n_future
        check_way(way, optimizer=recipe.optimizer.name, n_future=n_future, store=recipe.store)
        if recipe.reads == "tasks":
            raise SettingError("objective", recipe.objective.name, "trained in one process, which tries answers out")
        if way == "fsdp" and recipe.base is not None:
            raise SettingError("train.parallel", way, "ddp, for a model that goes on from another")


class TorchJob(Job):
    """A run being trained by torch."""

    def __init__(
        self,
        recipe: Recipe,
        run: Run,
        tokenizer: Tokenizer,
        material: Material,
        watcher: Watcher,
        clock: Stopwatch,
        world: World | None,
        *,
        profile: bool,
    ) -> None:
        super().__init__(recipe, run, tokenizer, material, watcher, clock)
        self.world = world = world or SOLO
        self.is_first = world.is_first
        self.device = pick_device(recipe.train.device)
        seed_generators(recipe.seed)
        self.model = build_model(recipe, tokenizer.n_vocab, beside=run.path.parent).to(self.device)
        self.objective: Objective = material.objective(recipe, self.model, tokenizer).to(self.device)
        precision = pick_precision(recipe, run.info.get("precision", FP32.written()))
        self.objective.as_trained = partial(_as_trained, precision, self.device)
        self.compilation = pick_compilation(recipe)
        chosen = (precision.describe(), precision.prepare(self.model), self.compilation.describe())
        self._chosen = [line for line in chosen if line]
        self.parallel = distribute(recipe.train.parallel, self.objective, world, self.device)
        optimizer = build_optimizer(recipe, self.objective)
        self.parallel.adopt(optimizer)
        self.trainer = Trainer(
            objective=self.objective,
            optimizer=optimizer,
            schedule=build(SCHEDULES, recipe.schedule, path="schedule"),
            settings=recipe.train,
            checkpoints=run.checkpoints,
            log=run if world.is_first else None,
            drew=run.log_draw if world.is_first else _not_noted,
            validate=self._validate,
            sample=self._samples if world.is_first or self.parallel.is_sharded else None,
            say=watcher.say,
            device=self.device,
            precision=precision,
            parallel=self.parallel,
        )
        if profile and self.is_first:
            folder, flops = run.path / "profile", training_flops(self.model)
            self.trainer.profiler = StepProfiler(folder, flops, self.device, precision)

    @property
    def step(self) -> int:
        return self.trainer.step

    @property
    def stopped_by(self) -> int:
        return self.trainer.stopped_by

    def _has_checkpoint(self) -> bool:
        return bool(self.world.share(super()._has_checkpoint()))

    def _restore(self, step: int | None) -> list[str]:
        return self.trainer.resume(step)

    def _train(self, watch: Callable[[Progress], None]) -> Outcome:
        self.trainer.watch = watch
        outcome = self.trainer.run()
        self.clock.seconds |= self.trainer.clock.seconds
        return outcome

    def _said_before(self) -> list[str]:
        return self._chosen

    def _said_after(self) -> list[str]:
        lines = []
        if self.compilation.on:
            lines.append(f"compiling took {compile_seconds():.1f} s; what it made is kept in {cache_folder()}")
        return lines + (self.trainer.profiler.lines() if self.trainer.profiler is not None else [])

    def _by_first(self, action: Callable[[], None]) -> None:
        self.world.first(action)

    def _whole_model(self) -> Decoder:
        """Of a model that is in parts, what was saved last: to finish with, which takes one process."""
        model = build_model(self.recipe, self.tokenizer.n_vocab, beside=self.run.path.parent)
        saved = self.run.checkpoints.read(self.trainer.step, prefix="model").tensors
        model.load_state_dict({name.removeprefix("model."): tensor for name, tensor in saved.items()})
        return model.to(self.device).eval()

    def _finish(self, result: Result, measure: Callable[[Result], None] | None) -> None:
        if self.parallel.is_sharded:
            result.model = self.model = self._whole_model()
            self.objective = self.material.objective(self.recipe, self.model, self.tokenizer).to(self.device)
        super()._finish(result, measure)

    def _measured(self) -> Detailed:
        self.objective.eval()
        return super()._measured()

    def _n_learned(self) -> int:
        return sum(each.numel() for each in self.objective.parameters() if each.requires_grad)

    def _described(self) -> str:
        train = self.recipe.train
        by = f"; {self.world.size} processes share it by {train.parallel}" if self.world.size > 1 else ""
        if (idle := self.world.size - train.batch_size) > 0:
            by += f", {idle} of which have nothing to do: train.batch_size is {train.batch_size}"
        return by


made = TorchJob


@contextmanager
def _as_trained(precision: Precision, device: torch.device) -> Iterator[None]:
    with precision.step(), precision.forward(device):
        yield


def _not_noted(step: int, cursor: Any, rows: Any) -> None:
    """What a process that writes nothing does with what a step read."""


def measured(
    recipe: Recipe,
    run: Run,
    tokenizer: Tokenizer,
    material: Material,
    *,
    step: int | None,
    say: Callable[[str], None],
) -> Detailed:
    """The figures of a checkpoint on all that the run held out."""
    seed_generators(recipe.seed)
    device = pick_device(recipe.train.device)
    model = build_model(recipe, tokenizer.n_vocab, beside=run.path.parent).to(device)
    objective = material.objective(recipe, model, tokenizer).to(device).eval()
    saved = run.checkpoints.read(step)
    for line in saved.skipped:
        say(f"skipped {line}")
    _load_weights(objective, saved, run)
    return material.measure(recipe, objective, tokenizer)


def _load_weights(objective: Objective, saved: Loaded, run: Run) -> None:
    """All that a checkpoint has of the objective; its data stay where they are."""
    own = objective.state_dict()
    found = {name: saved.tensors[name] for name in own if name in saved.tensors}
    cursor = {CURSOR: own.pop(CURSOR)}
    wrong = [name for name, each in own.items() if name not in found or found[name].shape != each.shape]
    if wrong:
        more = f" and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
        missing = f"{', '.join(wrong[:NAMED])}{more}"
        raise InputError(f"{run.path}: the checkpoint of step {saved.step} lacks, or has in another shape: {missing}")
    objective.load_state_dict(found | cursor)
