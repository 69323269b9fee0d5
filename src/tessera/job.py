"""The main job: from a recipe to a run that can be generated from.

    text -> tokenizer -> shards -> model -> training loop -> held-out loss -> samples -> report

Each arrow is a function of a lower floor; this file only puts them in order, tells a `Watcher` what is going on, and
sees to it that everything lands in the run. `resume` goes on where a run stopped.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tessera.config import build, check, override
from tessera.corpus import reopen_data
from tessera.data.prepared import Prepared
from tessera.errors import InputError
from tessera.evaluate.loss import HeldOutLoss, compressor_bits_per_byte, holds_text, text_loss
from tessera.evaluate.report import write_report
from tessera.generate.engine import Engine
from tessera.lm import LM
from tessera.model.decoder import Decoder
from tessera.objectives.objective import Objective
from tessera.opening import by_the_first, check_together, closed_on_error, create, reopen
from tessera.optim.schedule import SCHEDULES
from tessera.plan import training_flops
from tessera.recipe import (
    Recipe,
    build_model,
    build_objective,
    build_optimizer,
    pick_compilation,
    pick_device,
    pick_precision,
    separate_at,
)
from tessera.store.run import Run
from tessera.tokenizers import Tokenizer
from tessera.train.checkpoint import seed_generators
from tessera.train.compile import cache_folder, compile_seconds
from tessera.train.distributed import distribute
from tessera.train.precision import FP32
from tessera.train.profile import StepProfiler
from tessera.train.progress import Outcome
from tessera.train.stopwatch import Stopwatch
from tessera.train.trainer import Trainer
from tessera.train.world import SOLO, World
from tessera.watcher import Watcher

EVAL_BATCH = 16
COMPRESSOR_LIMIT = 64_000_000  # bytes; xz -9e takes about a second a megabyte


@dataclass
class Result:
    """What a job made."""

    run: Run
    outcome: Outcome
    step: int
    model: Decoder
    tokenizer: Tokenizer
    loss: HeldOutLoss | None = None
    bits_per_byte: float | None = None
    compressors: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    extra: dict[str, float] = field(default_factory=dict)
    """What else was measured, by name."""
    stopped_by: int = 0
    """The number of the signal that interrupted it."""

    def summary(self) -> dict[str, Any]:
        """The figures, JSON-able."""
        return {
            "run": str(self.run.path),
            "outcome": self.outcome,
            "step": self.step,
            "n_params": self.model.n_params,
            "validation_loss": self.loss.mean if self.loss else None,
            "bits_per_byte": self.bits_per_byte,
            "compressors": self.compressors,
            **self.extra,
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
        }


def train(
    recipe: Recipe,
    out: str | Path | None = None,
    *,
    watcher: Watcher | None = None,
    measure: Callable[[Result], None] | None = None,
    profile: bool = False,
    world: World = SOLO,
) -> Result:
    """Train a new run as `recipe` says, in the folder `out` (or a new one below `runs/`).

    `measure` may add evaluations of its own to the run before the report is written. `profile`: tell where a step's
    time goes, and leave a trace in the run. If the text or a setting turns out to be unusable, nothing is left behind.
    All processes of a `world` call it alike; the first makes the run.
    """
    watcher, clock = watcher or Watcher(), Stopwatch()
    check_together(recipe, world)
    set_threads(recipe)
    parts = by_the_first(recipe, world, lambda: create(recipe, out, watcher, clock))
    with closed_on_error(parts[0]):
        return _Job(recipe, *parts, watcher, clock, world).go(measure=measure, profile=profile)


def resume(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    step: int | None = None,
    watcher: Watcher | None = None,
    profile: bool = False,
    world: World = SOLO,
) -> Result:
    """Go on with the run at `path` from its newest checkpoint that verifies (or from `step`), bit for bit.

    `overrides` may change how long and how the training goes on (`train.*`, `schedule.*`, `sample.*`), not what is
    trained.
    """
    watcher, clock = watcher or Watcher(), Stopwatch()
    recipe = resumed_recipe(path, overrides)
    set_threads(recipe)
    check_together(recipe, world)
    parts = by_the_first(recipe, world, lambda: reopen(recipe, path, overrides, watcher, clock))
    with closed_on_error(parts[0]):
        return _Job(recipe, *parts, watcher, clock, world).go(resume=True, step=step, profile=profile)


def resumed_recipe(path: str | Path, overrides: Sequence[str]) -> Recipe:
    """The recipe with which the run at `path` would go on."""
    for assignment in overrides:
        if assignment.partition(".")[0] not in {"train", "schedule", "sample"}:
            raise InputError(
                f"{assignment}: a resumed run takes train.*, schedule.* and sample.* only; train a new one"
            )
    written = Run.open(path).recipe
    return check(Recipe, override(written, list(overrides)))


class _Job:
    """A run being trained: builds the parts, trains, and finishes."""

    def __init__(
        self,
        recipe: Recipe,
        run: Run,
        tokenizer: Tokenizer,
        prepared: Prepared,
        watcher: Watcher,
        clock: Stopwatch,
        world: World,
    ) -> None:
        self.recipe, self.run, self.tokenizer, self.prepared = recipe, run, tokenizer, prepared
        self.watcher, self.clock, self.world = watcher, clock, world
        self.device = pick_device(recipe.train.device)
        seed_generators(recipe.seed)
        self.model = build_model(recipe, tokenizer.n_vocab).to(self.device)
        self.objective: Objective = build_objective(recipe, self.model, prepared, end_id=tokenizer.end_id)
        precision = pick_precision(recipe, run.info.get("precision", FP32.written()))
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

    def go(
        self,
        *,
        resume: bool = False,
        step: int | None = None,
        measure: Callable[[Result], None] | None = None,
        profile: bool = False,
    ) -> Result:
        """Train, then measure, sample and report; what was interrupted is only saved."""
        trainer = self.trainer
        if profile and self.world.is_first:
            folder, flops = self.run.path / "profile", training_flops(self.model)
            trainer.profiler = StepProfiler(folder, flops, self.device, trainer.precision)
        if resume:
            self._go_back(step)
        self.watcher.say(self._describe())
        for line in self._chosen:
            self.watcher.say(line)
        with self.watcher.steps() as watch:
            self.trainer.watch = watch
            outcome = self.trainer.run()
        if self.compilation.on:
            self.watcher.say(f"compiling took {compile_seconds():.1f} s; what it made is kept in {cache_folder()}")
        for line in trainer.profiler.lines() if trainer.profiler is not None else []:
            self.watcher.say(line)
        self.clock.seconds |= self.trainer.clock.seconds
        result = Result(self.run, outcome, self.trainer.step, self.model, self.tokenizer, seconds=self.clock.seconds)
        result.stopped_by = self.trainer.stopped_by
        if outcome != "interrupted":
            self.world.first(lambda: self._finish(result, measure))
        return result

    def _whole_model(self) -> Decoder:
        """Of a model that is in parts, what was saved last: to finish with, which takes one process."""
        model = build_model(self.recipe, self.tokenizer.n_vocab)
        saved = self.run.checkpoints.read(self.trainer.step, prefix="model").tensors
        model.load_state_dict({name.removeprefix("model."): tensor for name, tensor in saved.items()})
        return model.to(self.device).eval()

    def _go_back(self, step: int | None) -> None:
        """Be where the checkpoint was; a run that was killed before its first one begins again, as it began before."""
        if step is not None or self.world.share(bool(self.run.checkpoints.steps())):
            for line in self.trainer.resume(step):
                self.watcher.say(f"skipped {line}")
        if self.world.is_first:
            self.run.truncate_after(self.trainer.step)
        self.watcher.say(f"resumed at step {self.trainer.step:,} of {self.recipe.train.steps:,}")

    def _finish(self, result: Result, measure: Callable[[Result], None] | None) -> None:
        if self.parallel.is_sharded:
            result.model = self.model = self._whole_model()
        with self.watcher.phase("measure the held-out loss"), self.clock("evaluation"):
            evaluate_run(self.run, self.recipe, self.prepared, self.trainer.step, result)
        with self.clock("samples"):
            self._samples(self.trainer.step, stream=True)
        if measure is not None:
            with self.watcher.phase("measure the samples"), self.clock("samples"):
                measure(result)
        with self.watcher.phase("write the report"), self.clock("report"):
            write_report(self.run, seconds=self.clock.seconds)

    def _validate(self) -> float:
        limit = self.recipe.train.eval_tokens
        loss = _held_out_loss(self.recipe, self.model, self.prepared, self.tokenizer, max_tokens=limit)
        by_source = {f"validation_loss/{name}": each.mean for name, each in loss.sources.items()}
        if self.world.is_first:
            self.run.log_metrics(self.trainer.step, by_source)
        return loss.mean

    def _samples(self, step: int, *, stream: bool = False) -> None:
        engine = Engine(self.model, self.tokenizer)
        sampling = self.recipe.sample.sampling
        if sampling.seed is None:
            sampling = sampling.model_copy(update={"seed": self.recipe.seed})
        known = {(sample.step, sample.prompt) for sample in self.run.samples()}
        for prompt in self.recipe.sample.prompts:
            pieces = engine.stream(prompt, sampling, truncate=True)
            text = self.watcher.sample(prompt, pieces) if stream else "".join(pieces)
            if (
                self.world.is_first and (step, prompt) not in known
            ):  # a run that was killed while it finished has written some already
                self.run.add_sample(step, prompt, text)

    def _describe(self) -> str:
        counts = self.prepared.counts["train"]
        train, context = self.recipe.train, self.recipe.model.context
        per_step = train.batch_size * train.accumulate * context
        by = f"; {self.world.size} processes share it by {train.parallel}" if self.world.size > 1 else ""
        if (idle := self.world.size - train.batch_size) > 0:
            by += f", {idle} of which have nothing to do: train.batch_size is {train.batch_size}"
        return (
            f"{self.model.n_params:,} parameters, {train.steps:,} steps of {per_step:,} tokens: "
            f"{train.steps * per_step / max(counts.n_tokens, 1):.2f} epochs of {counts.n_tokens:,} tokens{by}"
        )


def _not_noted(step: int, cursor: Any, rows: Any) -> None:
    """What a process that writes nothing does with what a step read."""


def _held_out_loss(
    recipe: Recipe,
    model: Decoder,
    prepared: Prepared,
    tokenizer: Tokenizer,
    *,
    max_tokens: int | None = None,
    overlap: float = 0.0,
) -> HeldOutLoss:
    """Over the held-out text in windows, its documents apart where they are so in training."""
    end_id = separate_at(recipe, tokenizer.end_id)
    return text_loss(model, prepared, batch_size=EVAL_BATCH, separate_at=end_id, max_tokens=max_tokens, overlap=overlap)


def evaluate_run(run: Run, recipe: Recipe, prepared: Prepared, step: int, result: Result) -> None:
    """The loss over all held-out text, into `result` and the run; in bits per byte and beside what compressors need,
    where the tokens hold all of the text."""
    model, tokenizer = result.model, result.tokenizer
    loss = _held_out_loss(recipe, model, prepared, tokenizer, overlap=recipe.train.eval_overlap)
    text = prepared.validation_text()
    result.loss = loss
    run.add_evaluation(step, "validation_loss", loss.mean, {"tokens": loss.n_tokens})
    for name, each in loss.sources.items():
        run.add_evaluation(step, f"validation_loss/{name}", each.mean, {"tokens": each.n_tokens})
    if not holds_text(tokenizer, prepared, text):
        return
    result.bits_per_byte = loss.bits_per_byte(len(text))
    run.add_evaluation(step, "bits_per_byte", result.bits_per_byte, {"bytes": len(text)})
    if len(text) <= COMPRESSOR_LIMIT:
        result.compressors = compressor_bits_per_byte(text)
        for name, bits in result.compressors.items():
            run.add_evaluation(step, name, bits, {"bytes": len(text)})


def evaluate(path: str | Path, *, step: int | None = None) -> dict[str, Any]:
    """The figures of a finished run, measured again on all of its held-out text; nothing is written."""
    with Run.open(path) as run:
        lm = LM.load(path, step=step)
        recipe = check(Recipe, run.recipe)
        prepared = reopen_data(recipe, run, lm.tokenizer)
        loss = _held_out_loss(recipe, lm.model, prepared, lm.tokenizer, overlap=recipe.train.eval_overlap)
        text = prepared.validation_text()
        comparable = holds_text(lm.tokenizer, prepared, text)
        return {
            "run": str(run.path),
            "validation_loss": loss.mean,
            "sources": {name: each.mean for name, each in loss.sources.items()},
            "perplexity": loss.perplexity,
            "bits_per_byte": loss.bits_per_byte(len(text)) if comparable else None,
            "compressors": compressor_bits_per_byte(text) if comparable and len(text) <= COMPRESSOR_LIMIT else {},
        }


def set_threads(recipe: Recipe) -> None:
    """Use the number of CPU threads that the recipe asks for."""
    if recipe.train.threads:
        torch.set_num_threads(recipe.train.threads)
