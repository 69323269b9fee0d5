"""The job on NumPy alone: the loop of `tessera.scratch.train`, with everything around it that a run has.

Between two steps it looks up: logs, validates, samples, saves, as the trainer of torch does, and into the same run. A
checkpoint has the weights and the optimizer's state by the names of torch, so that either engine goes on from it. The
random numbers of dropout are a function of the seed and the step, so none are kept; those that torch kept are not used
here, and where torch goes on from here it begins its streams anew.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from tessera.config import build
from tessera.errors import DivergedError, InputError, SettingError
from tessera.job import Job
from tessera.material import Detailed, Material
from tessera.numpy_building import NextToken, build_model, build_optimizer, weights_of
from tessera.optim.schedule import SCHEDULES
from tessera.recipe import Recipe
from tessera.scratch import train as scratch
from tessera.scratch.decoder import Decoder
from tessera.scratch.gradients import Batch
from tessera.store.run import Run
from tessera.tokenizers import Tokenizer
from tessera.train.drawing import Drawing
from tessera.train.interrupt import Interrupt
from tessera.train.nonfinite import NOT_FINITE, Guard
from tessera.train.pace import Pace, every
from tessera.train.progress import Outcome, Progress
from tessera.train.spikes import SpikeDetector
from tessera.train.stopwatch import Stopwatch
from tessera.watcher import Watcher


def check_start(recipe: Recipe, world: Any, *, profile: bool) -> None:
    """A `SettingError` for what this engine does in another way, or not."""
    if world is not None and world.size > 1:
        raise SettingError("--devices", world.size, "1 with engine = numpy: train.workers says how many processes")
    if profile:
        raise SettingError("--profile", profile, "nothing with engine = numpy")


class NumpyJob(Job):
    """A run being trained by NumPy."""

    def __init__(
        self,
        recipe: Recipe,
        run: Run,
        tokenizer: Tokenizer,
        material: Material,
        watcher: Watcher,
        clock: Stopwatch,
        world: Any,
        *,
        profile: bool,
    ) -> None:
        super().__init__(recipe, run, tokenizer, material, watcher, clock)
        train = recipe.train
        self.model: Decoder = build_model(recipe, tokenizer.n_vocab, beside=run.path.parent)
        self.objective: NextToken = material.objective(recipe, self.model, tokenizer)
        self.optimizer = build_optimizer(recipe, self.model)
        self.tokens, self.seconds, self.best = 0, 0.0, math.inf
        self.validation: float | None = None
        self._step, self._signal, self._over = 0, 0, False
        self._data_seconds = 0.0
        self._validated_at: int | None = None
        self._resumed_from: int | None = None
        self._pace = Pace(train, build(SCHEDULES, recipe.schedule, path="schedule"))
        self._drawing = Drawing(self.objective, train)
        self._guard = Guard(
            on_nonfinite=train.on_nonfinite,
            on_spike=train.on_spike,
            limit=train.max_passed_over,
            spikes=SpikeDetector(threshold=train.spike_threshold),
        )

    @property
    def step(self) -> int:
        return self._step

    @property
    def stopped_by(self) -> int:
        return self._signal

    def _described(self) -> str:
        workers = self.recipe.train.workers
        return f"; by NumPy in {workers} processes" if workers > 1 else "; by NumPy"

    def _train(self, watch: Callable[[Progress], None]) -> Outcome:
        train = self.recipe.train
        deadline = time.perf_counter() + self._pace.seconds_left()
        self._over = self._pace.is_done(self._step, self.seconds)
        late = False
        # What is too large for fp32 is told as a loss that is not finite.
        with Interrupt() as interrupt, np.errstate(over="ignore", invalid="ignore"):

            def after(made: scratch.Progress) -> None:
                nonlocal late
                late = time.perf_counter() >= deadline
                self._signal = interrupt.number
                self._made(made, late=late, watch=watch)

            trainer = scratch.Trainer(
                model=self.model,
                optimizer=self.optimizer,
                batches=self._batches(),
                steps=train.steps,
                schedule=lambda step, steps: self._pace.factor(step, self.seconds),
                accumulate=train.accumulate,
                clip=train.clip,
                seed=self.recipe.seed,
                workers=train.workers,
                watch=after,
                step=self._step,
            )
            try:
                trainer.run(stop=lambda: self._over)
            except DivergedError as error:
                self._note_divergence(str(error))
                raise
        if self._pace.is_done(self._step, self.seconds):
            self._signal = 0
            return "finished" if self._step >= train.steps else "out of time"
        return "interrupted" if self._signal else "out of time"

    def _batches(self) -> Iterator[Batch]:
        """The micro-batches of each step, in the sizes that the ramps give them."""
        source = self.objective.batches()
        while True:
            with self.clock("data"):
                drawn = self._drawing.draw(source, self._step)
            for batch in drawn:
                yield batch.inputs_BT, batch.targets_BT, batch.documents_BT

    def _made(self, made: scratch.Progress, *, late: bool, watch: Callable[[Progress], None]) -> None:
        """After a step: count it, then look up."""
        spent = self.clock.seconds
        spent["learning"] = spent.get("learning", 0.0) + made.seconds - (spent["data"] - self._data_seconds)
        self._data_seconds = spent["data"]
        self._step, self.tokens, self.seconds = made.step, self.tokens + made.tokens, self.seconds + made.seconds
        self.run.log_draw(self._step, *self._drawing.noted)
        trouble = self._guard.judge(self._step, [made.loss], made.loss, made.grad_norm)
        if trouble is not None:
            what = {"action": trouble.action, "detail": trouble.what}
            cursor = self.objective.get_extra_state()
            self.run.add_event(self._step, trouble.kind, **what, cursor=cursor, drawn=self._drawing.noted)
            self.watcher.say(f"step {self._step}: {trouble.what}; noted")
        last = self._pace.is_done(self._step, self.seconds)
        self._over = last or late or bool(self._signal)
        progress = Progress(
            step=made.step,
            steps=made.steps,
            loss=made.loss,
            lr=made.lr,
            grad_norm=made.grad_norm,
            tokens=made.tokens,
            seconds=made.seconds,
            validation=self.validation,
        )
        self._look_up(progress, watch, last=last)

    def _look_up(self, progress: Progress, watch: Callable[[Progress], None], *, last: bool) -> None:
        """Log, and where it is due validate, sample, save; then tell the watcher."""
        train, step = self.recipe.train, self._step
        values = progress.values()
        if last or every(train.eval_every, step):
            with self.clock("validation"):
                self.validation = values["validation_loss"] = self._validate()
            self._validated_at = step
        self.run.log_metrics(step, values)
        if every(train.sample_every, step):
            with self.clock("samples"):
                self._samples(step)
        if is_saved := self._over or every(train.save_every, step):
            with self.clock("checkpoints"):
                self._save()
        watch(replace(progress, validation=self.validation, saved=is_saved))

    def _note_divergence(self, why: str) -> None:
        cursor, step = self.objective.get_extra_state(), self._step + 1
        self.run.add_event(step, NOT_FINITE, action="stop", detail=why, cursor=cursor, drawn=self._drawing.noted)

    def _save(self) -> None:
        """Write a checkpoint of this moment; returns when it is safe on disk."""
        improved = self.validation is not None and self._validated_at == self._step and self.validation < self.best
        if improved and self.validation is not None:
            self.best = self.validation
        tensors, optimizer = self.optimizer.state()
        tensors |= {f"model.{name}": parameter.data for name, parameter in self.model.parameters.items()}
        progress = {
            "tokens": self.tokens,
            "seconds": self.seconds,
            "best": None if math.isinf(self.best) else self.best,
            "validation": self.validation,
            "improved": improved,
        }
        meta = {
            "cursor": self.objective.get_extra_state(),
            "optimizer": optimizer,
            "guard": self._guard.state(),
            "parts": 1,
            "progress": progress,
        }
        protect = set() if self._resumed_from is None else {self._resumed_from}
        store = self.run.checkpoints
        store.write(self._step, tensors, meta, keep=self.recipe.train.keep, protect=protect)
        if improved:
            store.mark_best(self._step)

    def _restore(self, step: int | None) -> list[str]:
        store = self.run.checkpoints
        loaded = store.read(step, engine="numpy")
        tensors, meta = loaded.tensors, loaded.meta
        if "average" in meta:
            raise InputError(f"{self.run.path}: step {loaded.step} holds averages of weights: engine = torch goes on")
        self.model.load(weights_of(tensors))
        self.optimizer.load(tensors, meta["optimizer"])
        self.objective.set_extra_state(meta["cursor"])
        if "guard" in meta:
            self._guard.restore(meta["guard"])
        progress = meta["progress"]
        self._step = self._resumed_from = loaded.step
        self.tokens, self.seconds, self.validation = progress["tokens"], progress["seconds"], progress["validation"]
        self.best = math.inf if progress["best"] is None else progress["best"]
        if progress["improved"]:  # a kill may have come between the write and its mark
            store.mark_best(loaded.step)
        return loaded.skipped


made = NumpyJob


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
    model = build_model(recipe, tokenizer.n_vocab, beside=run.path.parent)
    saved = run.checkpoints.read(step, prefix="model", engine="numpy")
    for line in saved.skipped:
        say(f"skipped {line}")
    model.load(weights_of(saved.tensors))
    return material.measure(recipe, material.objective(recipe, model, tokenizer), tokenizer)
