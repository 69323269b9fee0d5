"""The main job: from a recipe to a run that can be generated from.

    text -> tokenizer -> shards -> model -> training loop -> held-out loss -> samples -> report

Each arrow is a function of a lower floor; this file only puts them in order, tells a `Watcher` what is going on, and
sees to it that everything lands in the run. `resume` goes on where a run stopped.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tessera.config import build, check, override
from tessera.corpus import check_data, prepare_data, reopen_data
from tessera.data.batches import Batch, validation_batches
from tessera.data.prepare import Prepared
from tessera.data.shards import Shard
from tessera.errors import InputError
from tessera.evaluate.loss import HeldOutLoss, compressor_bits_per_byte, held_out_loss, holds_text
from tessera.evaluate.report import write_report
from tessera.generate.engine import Engine
from tessera.lm import LM
from tessera.model.decoder import Decoder
from tessera.objectives.objective import Objective
from tessera.optim.schedule import SCHEDULES
from tessera.plan import check_room, training_flops
from tessera.provenance import run_info
from tessera.recipe import (
    Recipe,
    build_model,
    build_objective,
    build_optimizer,
    pick_device,
    pick_precision,
    separate_at,
)
from tessera.store.run import Run
from tessera.tokenizers import Tokenizer, tokenizer_from_json
from tessera.train.checkpoint import seed_generators
from tessera.train.compile import compile_seconds
from tessera.train.precision import FP32
from tessera.train.profile import StepProfiler
from tessera.train.stopwatch import Stopwatch
from tessera.train.trainer import Outcome, Trainer
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
) -> Result:
    """Train a new run as `recipe` says, in the folder `out` (or a new one below `runs/`).

    `measure` may add evaluations of its own to the run before the report is written. `profile`: tell where a step's
    time goes, and leave a trace in the run. If the text or a setting turns out to be unusable, nothing is left behind.
    """
    watcher, clock = watcher or Watcher(), Stopwatch()
    path = Path(out) if out is not None else free_path(Path("runs") / recipe.name)
    _check_free(path)
    set_threads(recipe)
    check_room(recipe, path, say=watcher.say)
    with _nothing_left_on_error(path):
        tokenizer, prepared = prepare_data(recipe, path / "data", watcher=watcher, clock=clock)
        check_data(recipe, prepared, tokenizer)
        run = Run.create(
            path,
            recipe=recipe.written(),
            tokenizer_json=tokenizer.to_json(),
            vocabulary=tokenizer.vocabulary(),
            store=recipe.store,
            info=run_info(recipe, prepared) | {"precision": pick_precision(recipe).written()},
        )
    with _closed_on_error(run):
        return _Job(recipe, run, tokenizer, prepared, watcher, clock).go(measure=measure, profile=profile)


def resume(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    step: int | None = None,
    watcher: Watcher | None = None,
    profile: bool = False,
) -> Result:
    """Go on with the run at `path` from its newest checkpoint that verifies (or from `step`), bit for bit.

    `overrides` may change how long and how the training goes on (`train.*`, `schedule.*`, `sample.*`), not what is
    trained.
    """
    watcher, clock = watcher or Watcher(), Stopwatch()
    recipe = resumed_recipe(path, overrides)
    set_threads(recipe)
    run = Run.open(path, train=True, say=watcher.say)
    with _closed_on_error(run):
        tokenizer = tokenizer_from_json(run.tokenizer_json)
        kept = len(run.checkpoints.steps())
        check_room(recipe, run.path, say=watcher.say, n_vocab=tokenizer.n_vocab, kept=kept)
        with clock("data"):
            prepared = reopen_data(recipe, run, tokenizer)
        if overrides:
            run.update_recipe(recipe.written())
        return _Job(recipe, run, tokenizer, prepared, watcher, clock).go(resume=True, step=step, profile=profile)


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
        self, recipe: Recipe, run: Run, tokenizer: Tokenizer, prepared: Prepared, watcher: Watcher, clock: Stopwatch
    ) -> None:
        self.recipe, self.run, self.tokenizer, self.prepared = recipe, run, tokenizer, prepared
        self.watcher, self.clock = watcher, clock
        self.device = pick_device(recipe.train.device)
        seed_generators(recipe.seed)
        self.model = build_model(recipe, tokenizer.n_vocab).to(self.device)
        self.objective: Objective = build_objective(recipe, self.model, prepared.train, end_id=tokenizer.end_id)
        self.validation = prepared.validation
        precision = pick_precision(recipe, run.info.get("precision", FP32.written()))
        self.trainer = Trainer(
            objective=self.objective,
            optimizer=build_optimizer(recipe, self.objective),
            schedule=build(SCHEDULES, recipe.schedule, path="schedule"),
            settings=recipe.train,
            checkpoints=run.checkpoints,
            log=run,
            validate=self._validate,
            sample=self._samples,
            say=watcher.say,
            device=self.device,
            precision=precision,
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
        if profile:
            folder, flops = self.run.path / "profile", training_flops(self.model)
            trainer.profiler = StepProfiler(folder, flops, self.device, trainer.precision)
        if resume:
            self._go_back(step)
        self.watcher.say(self._describe())
        self.watcher.say(self.trainer.precision.describe())
        with self.watcher.steps() as watch:
            self.trainer.watch = watch
            outcome = self.trainer.run()
        if self.recipe.train.compile:
            self.watcher.say(f"compiling took {compile_seconds():.1f} s")
        for line in trainer.profiler.lines() if trainer.profiler is not None else []:
            self.watcher.say(line)
        self.clock.seconds |= self.trainer.clock.seconds
        result = Result(self.run, outcome, self.trainer.step, self.model, self.tokenizer, seconds=self.clock.seconds)
        result.stopped_by = self.trainer.stopped_by
        if outcome != "interrupted":
            self._finish(result, measure)
        return result

    def _go_back(self, step: int | None) -> None:
        """Be where the checkpoint was; a run that was killed before its first one begins again, as it began before."""
        if step is not None or self.run.checkpoints.steps():
            for line in self.trainer.resume(step):
                self.watcher.say(f"skipped {line}")
        self.run.truncate_after(self.trainer.step)
        self.watcher.say(f"resumed at step {self.trainer.step:,} of {self.recipe.train.steps:,}")

    def _finish(self, result: Result, measure: Callable[[Result], None] | None) -> None:
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
        batches = _held_out(self.recipe, self.model, self.validation, self.tokenizer)
        return held_out_loss(self.model, batches, max_tokens=self.recipe.train.eval_tokens).mean

    def _samples(self, step: int, *, stream: bool = False) -> None:
        engine = Engine(self.model, self.tokenizer)
        sampling = self.recipe.sample.sampling
        if sampling.seed is None:
            sampling = sampling.model_copy(update={"seed": self.recipe.seed})
        known = {(sample.step, sample.prompt) for sample in self.run.samples()}
        for prompt in self.recipe.sample.prompts:
            pieces = engine.stream(prompt, sampling, truncate=True)
            text = self.watcher.sample(prompt, pieces) if stream else "".join(pieces)
            if (step, prompt) not in known:  # a run that was killed while it finished has written some already
                self.run.add_sample(step, prompt, text)

    def _describe(self) -> str:
        counts = self.prepared.counts["train"]
        train, context = self.recipe.train, self.recipe.model.context
        per_step = train.batch_size * train.accumulate * context
        return (
            f"{self.model.n_params:,} parameters, {train.steps:,} steps of {per_step:,} tokens: "
            f"{train.steps * per_step / max(counts.n_tokens, 1):.2f} epochs of {counts.n_tokens:,} tokens"
        )


def _held_out(recipe: Recipe, model: Decoder, shard: Shard, tokenizer: Tokenizer) -> Iterator[Batch]:
    """The held-out text in windows, its documents apart where they are so in training."""
    return validation_batches(shard, model.context, EVAL_BATCH, separate_at=separate_at(recipe, tokenizer.end_id))


def evaluate_run(run: Run, recipe: Recipe, prepared: Prepared, step: int, result: Result) -> None:
    """The loss over all held-out text, into `result` and the run; in bits per byte and beside what compressors need,
    where the tokens hold all of the text."""
    model, tokenizer = result.model, result.tokenizer
    loss = held_out_loss(model, _held_out(recipe, model, prepared.validation, tokenizer))
    text = prepared.validation_text()
    result.loss = loss
    run.add_evaluation(step, "validation_loss", loss.mean, {"tokens": loss.n_tokens})
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
        loss = held_out_loss(lm.model, _held_out(recipe, lm.model, prepared.validation, lm.tokenizer))
        text = prepared.validation_text()
        comparable = holds_text(lm.tokenizer, prepared, text)
        return {
            "run": str(run.path),
            "validation_loss": loss.mean,
            "perplexity": loss.perplexity,
            "bits_per_byte": loss.bits_per_byte(len(text)) if comparable else None,
            "compressors": compressor_bits_per_byte(text) if comparable and len(text) <= COMPRESSOR_LIMIT else {},
        }


def set_threads(recipe: Recipe) -> None:
    """Use the number of CPU threads that the recipe asks for."""
    if recipe.train.threads:
        torch.set_num_threads(recipe.train.threads)


def free_path(path: Path) -> Path:
    """`path`-1, -2, ...: the first that does not exist."""
    number = 1
    while (candidate := path.with_name(f"{path.name}-{number}")).exists():
        number += 1
    return candidate


def _check_free(path: Path) -> None:
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"{path} exists: choose another --out, or go on with it by --resume {path}")


@contextmanager
def _closed_on_error(run: Run) -> Iterator[None]:
    """Let go of the run, so that it can be resumed, if the block fails."""
    try:
        yield
    except BaseException:
        run.close()
        raise


@contextmanager
def _nothing_left_on_error(path: Path) -> Iterator[None]:
    """If the block fails, the folder `path`, which was empty or not there, is so again."""
    existed = path.exists()
    try:
        yield
    except BaseException:
        shutil.rmtree(path / "data" if existed else path, ignore_errors=True)
        raise
