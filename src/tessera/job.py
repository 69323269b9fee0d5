"""The main job: from a recipe to a run that can be generated from.

    text -> tokenizer -> shards -> model -> training loop -> held-out loss -> samples -> report

Each arrow is a function of a lower floor; this file only puts them in order, tells a `Watcher` what is going on, and
sees to it that everything lands in the run. `resume` goes on where a run stopped. The part that computes is a `Job` of
the recipe's engine: `tessera.torch_job` or `tessera.numpy_job`.
"""

import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tessera.config import check, override
from tessera.errors import InputError
from tessera.evaluate.loss import COMPRESSORS, perplexity
from tessera.evaluate.report import write_report
from tessera.generate.engine import Engine
from tessera.material import VALIDATION, Detailed, Figures, Material
from tessera.opening import (
    by_the_first,
    closed_on_error,
    create,
    reopen,
    reopen_material,
    undone_on_error,
)
from tessera.recipe import Recipe, absolute, builder, settled
from tessera.store.run import Run
from tessera.tokenizers import Tokenizer, tokenizer_from_json
from tessera.train.progress import Outcome, Progress
from tessera.train.stopwatch import Stopwatch
from tessera.watcher import Watcher

if TYPE_CHECKING:
    from tessera.train.world import World

JOBS = {"torch": "tessera.torch_job", "numpy": "tessera.numpy_job"}
"""Engine -> the module with its `Job`, and with `check_start`, which says what several processes cannot do."""


@dataclass
class Result:
    """What a job made."""

    run: Run
    outcome: Outcome
    step: int
    model: Any
    """The decoder of the engine that computed."""
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
    world: "World | None" = None,
) -> Result:
    """Train a new run as `recipe` says, in the folder `out` (or a new one below `runs/`).

    `measure` may add evaluations of its own to the run before the report is written. `profile`: tell where a step's
    time goes, and leave a trace in the run. If the text or a setting turns out to be unusable, nothing is left behind.
    All processes of a `world` call it alike; the first makes the run.
    """
    watcher, clock = watcher or Watcher(), Stopwatch()
    recipe = settled(recipe)
    jobs = import_module(JOBS[recipe.engine])
    jobs.check_start(recipe, world, profile=profile)
    parts = by_the_first(recipe, world, lambda: create(recipe, out, watcher, clock))
    with undone_on_error(parts[0], world):
        made = jobs.made(check(Recipe, parts[0].recipe), *parts, watcher, clock, world, profile=profile)
    with closed_on_error(parts[0]):
        return made.go(measure=measure)


def resume(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    step: int | None = None,
    watcher: Watcher | None = None,
    profile: bool = False,
    world: "World | None" = None,
) -> Result:
    """Go on with the run at `path` from its newest checkpoint that verifies (or from `step`), bit for bit.

    `overrides` may change how long and how the training goes on (`train.*`, `schedule.*`, `sample.*`), not what is
    trained; and what computes (`engine`), which goes on to the last digits that the two have alike.
    """
    watcher, clock = watcher or Watcher(), Stopwatch()
    recipe = resumed_recipe(path, overrides)
    jobs = import_module(JOBS[recipe.engine])
    jobs.check_start(recipe, world, profile=profile)
    parts = by_the_first(recipe, world, lambda: reopen(recipe, path, overrides, watcher, clock))
    with closed_on_error(parts[0]):
        return jobs.made(recipe, *parts, watcher, clock, world, profile=profile).go(resume=True, step=step)


def resumed_recipe(path: str | Path, overrides: Sequence[str]) -> Recipe:
    """The recipe with which the run at `path` would go on."""
    for assignment in overrides:
        if re.split("[.=]", assignment)[0].strip() not in {"train", "schedule", "sample", "base", "engine"}:
            raise InputError(
                f"{assignment}: a resumed run takes train.*, schedule.* and sample.* only (and base, where that has "
                "moved, and engine); train a new one"
            )
    written = Run.open(path).recipe
    recipe = check(Recipe, override(written, list(overrides)))
    if recipe.base is None or recipe.base == written.get("base"):
        return recipe
    return recipe.model_copy(update={"base": absolute(recipe.base)})


class Job(ABC):
    """A run being trained: a subclass builds the parts and trains; here it is begun and finished."""

    model: Any
    objective: Any
    is_first: bool = True
    """Of several processes, whether this is the one that writes."""

    def __init__(
        self,
        recipe: Recipe,
        run: Run,
        tokenizer: Tokenizer,
        material: Material,
        watcher: Watcher,
        clock: Stopwatch,
    ) -> None:
        self.recipe, self.run, self.tokenizer, self.material = recipe, run, tokenizer, material
        self.watcher, self.clock = watcher, clock
        self._validated: tuple[int, Figures] | None = None

    @property
    @abstractmethod
    def step(self) -> int:
        """How many steps have been made."""

    @property
    @abstractmethod
    def stopped_by(self) -> int:
        """The number of the signal that interrupted."""

    @abstractmethod
    def _train(self, watch: Callable[[Progress], None]) -> Outcome:
        """Train from where it stands to the last step; adds to the clock."""

    @abstractmethod
    def _restore(self, step: int | None) -> list[str]:
        """Be where a checkpoint was, the newest that verifies or the one of `step`; what was skipped."""

    def _said_before(self) -> list[str]:
        """Choices that were made."""
        return []

    def _said_after(self) -> list[str]:
        """What training has shown."""
        return []

    def _described(self) -> str:
        """What is to be said of how the work is shared."""
        return ""

    def _n_learned(self) -> int:
        """How many of the parameters are learned."""
        return int(self.model.n_params)

    def _by_first(self, action: Callable[[], None]) -> None:
        """Let the first process do something that the others wait for."""
        action()

    def go(
        self,
        *,
        resume: bool = False,
        step: int | None = None,
        measure: Callable[[Result], None] | None = None,
    ) -> Result:
        """Train, then measure, sample and report; what was interrupted is only saved."""
        if resume:
            self._go_back(step)
        if self.step == 0 and self.material.measures_before(self.recipe):
            with self.watcher.phase("measure the model as it is"), self.clock("evaluation"):
                self._by_first(self._measure_before)
        self.watcher.say(self._describe())
        for line in self._said_before():
            self.watcher.say(line)
        with self.watcher.steps() as watch:
            outcome = self._train(watch)
        for line in self._said_after():
            self.watcher.say(line)
        result = Result(self.run, outcome, self.step, self.model, self.tokenizer, seconds=self.clock.seconds)
        result.stopped_by = self.stopped_by
        if outcome != "interrupted":
            self._by_first(lambda: self._finish(result, measure))
        return result

    def _has_checkpoint(self) -> bool:
        return bool(self.run.checkpoints.steps())

    def _go_back(self, step: int | None) -> None:
        """Be where the checkpoint was; a run that was killed before its first one begins again, as it began before."""
        if step is not None or self._has_checkpoint():
            for line in self._restore(step):
                self.watcher.say(f"skipped {line}")
        if self.is_first:
            self.run.truncate_after(self.step)
        self.watcher.say(f"resumed at step {self.step:,} of {self.recipe.train.steps:,}")

    def _finish(self, result: Result, measure: Callable[[Result], None] | None) -> None:
        with self.watcher.phase("measure on what is held out"), self.clock("evaluation"):
            result.figures = self._measure(self.step)
        result.before = {each.name: each.value for each in self.run.evaluations() if each.step == 0}
        with self.clock("samples"):
            self._samples(self.step, stream=True)
        if measure is not None:
            with self.watcher.phase("measure the samples"), self.clock("samples"):
                measure(result)
        with self.watcher.phase("write the report"), self.clock("report"):
            write_report(self.run, seconds=self.clock.seconds)

    def _validate(self) -> float:
        figures = self.material.validate(self.recipe, self.objective, self.tokenizer)
        self._validated = self.step, figures
        if self.is_first:
            others = {name: value for name, value in figures.items() if name != VALIDATION}
            self.run.log_metrics(self.step, others)
        return figures[VALIDATION]

    def _measure_before(self) -> None:
        if not any(each.step == 0 for each in self.run.evaluations()):  # a killed run may have done it
            self._measure(0)

    def _measure(self, step: int) -> dict[str, float]:
        """The figures on all that is held out, as they are noted in the run."""
        if self.material.validates_all and self._validated is not None and self._validated[0] == step:
            found: Detailed = {name: (value, {}) for name, value in self._validated[1].items()}
        else:
            found = self._measured()
        for name, (value, detail) in found.items():
            self.run.add_evaluation(step, name, value, detail)
        return {name: value for name, (value, _) in found.items()}

    def _measured(self) -> Detailed:
        return self.material.measure(self.recipe, self.objective, self.tokenizer)

    def _samples(self, step: int, *, stream: bool = False) -> None:
        engine = Engine(self.model, self.tokenizer)
        sampling = self.recipe.sample.sampling
        if sampling.seed is None:
            sampling = sampling.model_copy(update={"seed": self.recipe.seed})
        known = {(sample.step, sample.prompt) for sample in self.run.samples()}
        for prompt, given in self.material.prompts(self.recipe, self.tokenizer):
            pieces = engine.stream(given, sampling, truncate=True)
            text = self.watcher.sample(prompt, pieces) if stream else "".join(pieces)
            # A run that was killed while it finished has written some already.
            if self.is_first and (step, prompt) not in known:
                self.run.add_sample(step, prompt, text)

    def _describe(self) -> str:
        learned = self._n_learned()
        of = "" if learned == self.model.n_params else f", {learned:,} of which are learned"
        about = self.material.describe(self.recipe)
        return f"{self.model.n_params:,} parameters{of}, {about}{self._described()}"


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
        found = import_module(JOBS[recipe.engine]).measured(recipe, run, tokenizer, material, step=step, say=say)
        figures = {name: value for name, (value, _) in found.items()}
    in_nats = builder(recipe.engine).in_nats(recipe.objective)
    perplexed = perplexity(figures[VALIDATION]) if in_nats else None
    return {"run": str(run.path), "reads": recipe.reads, **sorted_out(figures), "perplexity": perplexed}


def sorted_out(figures: Mapping[str, float]) -> dict[str, Any]:
    """Figures by kind: those of the sources of a mixture and of compressors stand apart."""
    begin = f"{VALIDATION}/"
    sources = {name.removeprefix(begin): value for name, value in figures.items() if name.startswith(begin)}
    compressors = {name: value for name, value in figures.items() if name in COMPRESSORS}
    rest = {name: value for name, value in figures.items() if name not in COMPRESSORS and not name.startswith(begin)}
    usual = {VALIDATION: None, "bits_per_byte": None}
    return usual | rest | {"sources": sources, "compressors": compressors}
