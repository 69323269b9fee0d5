"""The main job: from a recipe to a run that can be generated from.

    text -> tokenizer -> shards -> model -> training loop -> held-out loss -> samples -> report

Each arrow is a function of a lower floor; this file only puts them in order, tells a `Watcher` what is going on, and
sees to it that everything lands in the run. `resume` goes on where a run stopped.
"""

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tessera.config import build, check, override
from tessera.errors import InputError
from tessera.evaluate.loss import COMPRESSORS, perplexity
from tessera.evaluate.report import write_report
from tessera.generate.engine import Engine
from tessera.material import VALIDATION, Detailed, Figures, Material
from tessera.model.decoder import Decoder
from tessera.objectives import NextToken
from tessera.objectives.objective import Objective
from tessera.opening import (
    by_the_first,
    check_together,
    closed_on_error,
    create,
    reopen,
    reopen_material,
    undone_on_error,
)
from tessera.optim.schedule import SCHEDULES
from tessera.plan import training_flops
from tessera.recipe import (
    Recipe,
    absolute,
    build_model,
    build_optimizer,
    pick_compilation,
    pick_device,
    pick_precision,
    settled,
)
from tessera.store.checkpoints import Loaded
from tessera.store.run import Run
from tessera.tokenizers import Tokenizer, tokenizer_from_json
from tessera.train.checkpoint import CURSOR, seed_generators
from tessera.train.compile import cache_folder, compile_seconds
from tessera.train.distributed import distribute
from tessera.train.precision import FP32, Precision
from tessera.train.profile import StepProfiler
from tessera.train.progress import Outcome
from tessera.train.stopwatch import Stopwatch
from tessera.train.trainer import Trainer
from tessera.train.world import SOLO, World
from tessera.watcher import Watcher

NAMED = 8
"""Tensors that an error names."""


@dataclass
class Result:
    """What a job made."""

    run: Run
    outcome: Outcome
    step: int
    model: Decoder
    tokenizer: Tokenizer
    figures: dict[str, float] = field(default_factory=dict)
    """Measured on what was held out, by name."""
    before: dict[str, float] = field(default_factory=dict)
    """The same of the model that the run began from, where it did."""
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
            **sorted_out(self.figures),
            "before": self.before,
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
    recipe = settled(recipe)
    check_together(recipe, world)
    set_threads(recipe)
    parts = by_the_first(recipe, world, lambda: create(recipe, out, watcher, clock))
    with undone_on_error(parts[0], world):
        made = _Job(check(Recipe, parts[0].recipe), *parts, watcher, clock, world)
    with closed_on_error(parts[0]):
        return made.go(measure=measure, profile=profile)


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
        if re.split("[.=]", assignment)[0].strip() not in {"train", "schedule", "sample", "base"}:
            raise InputError(
                f"{assignment}: a resumed run takes train.*, schedule.* and sample.* only (and base, where that has "
                "moved); train a new one"
            )
    written = Run.open(path).recipe
    recipe = check(Recipe, override(written, list(overrides)))
    if recipe.base is None or recipe.base == written.get("base"):
        return recipe
    return recipe.model_copy(update={"base": absolute(recipe.base)})


class _Job:
    """A run being trained: builds the parts, trains, and finishes."""

    def __init__(
        self,
        recipe: Recipe,
        run: Run,
        tokenizer: Tokenizer,
        material: Material,
        watcher: Watcher,
        clock: Stopwatch,
        world: World,
    ) -> None:
        self.recipe, self.run, self.tokenizer, self.material = recipe, run, tokenizer, material
        self.watcher, self.clock, self.world = watcher, clock, world
        self._validated: tuple[int, Figures] | None = None
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
        if self.trainer.step == 0 and self.material.measures_before(self.recipe):
            with self.watcher.phase("measure the model as it is"), self.clock("evaluation"):
                self.world.first(lambda: self._measure_before())
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
        model = build_model(self.recipe, self.tokenizer.n_vocab, beside=self.run.path.parent)
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
            self.objective = self.material.objective(self.recipe, self.model, self.tokenizer).to(self.device)
        with self.watcher.phase("measure on what is held out"), self.clock("evaluation"):
            result.figures = self._measure(self.trainer.step)
        result.before = {each.name: each.value for each in self.run.evaluations() if each.step == 0}
        with self.clock("samples"):
            self._samples(self.trainer.step, stream=True)
        if measure is not None:
            with self.watcher.phase("measure the samples"), self.clock("samples"):
                measure(result)
        with self.watcher.phase("write the report"), self.clock("report"):
            write_report(self.run, seconds=self.clock.seconds)

    def _validate(self) -> float:
        figures = self.material.validate(self.recipe, self.objective, self.tokenizer)
        self._validated = self.trainer.step, figures
        if self.world.is_first:
            others = {name: value for name, value in figures.items() if name != VALIDATION}
            self.run.log_metrics(self.trainer.step, others)
        return figures[VALIDATION]

    def _measure_before(self) -> None:
        if not any(each.step == 0 for each in self.run.evaluations()):  # a killed run may have done it
            self._measure(0)

    def _measure(self, step: int) -> dict[str, float]:
        """The figures on all that is held out, as they are noted in the run."""
        if self.material.validates_all and self._validated is not None and self._validated[0] == step:
            found: Detailed = {name: (value, {}) for name, value in self._validated[1].items()}
        else:
            self.objective.eval()
            found = self.material.measure(self.recipe, self.objective, self.tokenizer)
        for name, (value, detail) in found.items():
            self.run.add_evaluation(step, name, value, detail)
        return {name: value for name, (value, _) in found.items()}

    def _samples(self, step: int, *, stream: bool = False) -> None:
        engine = Engine(self.model, self.tokenizer)
        sampling = self.recipe.sample.sampling
        if sampling.seed is None:
            sampling = sampling.model_copy(update={"seed": self.recipe.seed})
        known = {(sample.step, sample.prompt) for sample in self.run.samples()}
        for prompt, given in self.material.prompts(self.recipe, self.tokenizer):
            pieces = engine.stream(given, sampling, truncate=True)
            text = self.watcher.sample(prompt, pieces) if stream else "".join(pieces)
            if (
                self.world.is_first and (step, prompt) not in known
            ):  # a run that was killed while it finished has written some already
                self.run.add_sample(step, prompt, text)

    def _describe(self) -> str:
        train = self.recipe.train
        by = f"; {self.world.size} processes share it by {train.parallel}" if self.world.size > 1 else ""
        if (idle := self.world.size - train.batch_size) > 0:
            by += f", {idle} of which have nothing to do: train.batch_size is {train.batch_size}"
        learned = sum(each.numel() for each in self.objective.parameters() if each.requires_grad)
        of = "" if learned == self.model.n_params else f", {learned:,} of which are learned"
        return f"{self.model.n_params:,} parameters{of}, {self.material.describe(self.recipe)}{by}"


@contextmanager
def _as_trained(precision: Precision, device: torch.device) -> Iterator[None]:
    with precision.step(), precision.forward(device):
        yield


def _not_noted(step: int, cursor: Any, rows: Any) -> None:
    """What a process that writes nothing does with what a step read."""


def evaluate(path: str | Path, *, step: int | None = None, say: Callable[[str], None] | None = None) -> dict[str, Any]:
    """The figures of a finished run, measured again on all that it held out; nothing is written.

    "reads" is what the run learns from, and "perplexity" is there where its loss is in nats a token. `say` hears of
    each checkpoint that was skipped; without it that is a warning.
    """
    say = say or partial(warnings.warn, stacklevel=2)
    with Run.open(path) as run:
        if "data" not in run.recipe:
            raise InputError(
                f"{path}: it holds a model ({run.info.get('made_by')}), but no text that it held out: evaluate the run "
                "that it was made from; what a quantized model lost, tessera quantize says"
            )
        recipe, tokenizer = check(Recipe, run.recipe), tokenizer_from_json(run.tokenizer_json)
        material = reopen_material(recipe, run, tokenizer)
        seed_generators(recipe.seed)
        device = pick_device(recipe.train.device)
        model = build_model(recipe, tokenizer.n_vocab, beside=run.path.parent).to(device)
        objective = material.objective(recipe, model, tokenizer).to(device).eval()
        saved = run.checkpoints.read(step)
        for line in saved.skipped:
            say(f"skipped {line}")
        _load_weights(objective, saved, run)
        figures = {name: value for name, (value, _) in material.measure(recipe, objective, tokenizer).items()}
    perplexed = perplexity(figures[VALIDATION]) if isinstance(objective, NextToken) else None
    return {"run": str(run.path), "reads": recipe.reads, **sorted_out(figures), "perplexity": perplexed}


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


def sorted_out(figures: Mapping[str, float]) -> dict[str, Any]:
    """Figures by kind: those of the sources of a mixture and of compressors stand apart."""
    begin = f"{VALIDATION}/"
    sources = {name.removeprefix(begin): value for name, value in figures.items() if name.startswith(begin)}
    compressors = {name: value for name, value in figures.items() if name in COMPRESSORS}
    rest = {name: value for name, value in figures.items() if name not in COMPRESSORS and not name.startswith(begin)}
    usual = {VALIDATION: None, "bits_per_byte": None}
    return usual | rest | {"sources": sources, "compressors": compressors}


def set_threads(recipe: Recipe) -> None:
    """Use the number of CPU threads that the recipe asks for."""
    if recipe.train.threads:
        torch.set_num_threads(recipe.train.threads)
