"""The training loop. There is one, and every objective runs in it.

A step draws `accumulate` micro-batches and makes one update of them (`tessera.train.step`); between two steps the loop
looks up: logs, validates, samples, saves. Everything that decides the next step is in the checkpoint: a run that was
killed goes on bit for bit as if it had not been (`tessera.train.saving`). Where several processes train together each
runs this loop, and they agree on whatever decides what happens next (`tessera.train.world`).
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from tessera.errors import DivergedError, SettingError
from tessera.objectives.objective import Objective
from tessera.store.checkpoints import CheckpointStore, Loaded
from tessera.train.averages import Averages
from tessera.train.distributed import Parallel
from tessera.train.drawing import Drawing
from tessera.train.interrupt import Interrupt
from tessera.train.late import Begun, late_reading
from tessera.train.memory import MemoryFit, allocate
from tessera.train.nonfinite import Guard, Trouble
from tessera.train.pace import Pace, every
from tessera.train.precision import FP32, Precision
from tessera.train.profile import StepProfiler
from tessera.train.progress import Log, Outcome, Progress
from tessera.train.saving import Saving
from tessera.train.settings import TrainSettings
from tessera.train.spikes import SpikeDetector
from tessera.train.step import Step, Taken
from tessera.train.stopwatch import Stopwatch


@dataclass
class Trainer:
    """Runs an objective to its last step.

    `validate` gives the validation loss, `sample` writes samples; both are called between steps, with the model in
    evaluation mode, and must leave the global random generators alone. `watch` sees each step, `say` is told what else
    is worth knowing.

    Of several processes, which share the work by `parallel`, all validate, all have the checkpoints open, and only the
    first has a `log`. `sample` is called where it is given; fsdp wants it on all.
    """

    objective: Objective
    optimizer: torch.optim.Optimizer
    schedule: Callable[[int, int], float]
    settings: TrainSettings
    checkpoints: CheckpointStore | None = None
    log: Log | None = None
    validate: Callable[[], float] | None = None
    sample: Callable[[int], None] | None = None
    watch: Callable[[Progress], None] = lambda progress: None
    say: Callable[[str], None] = lambda line: None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: Precision = FP32
    profiler: StepProfiler | None = None
    parallel: Parallel | None = None
    late_anywhere: bool = False
    """Whether figures are read one step late also where no GPU would wait for it."""
    drew: Callable[[int, Mapping[str, Any], list[int]], None] = lambda step, cursor, rows: None
    """Is told what a step read: the data cursor before it, and the rows of each of its micro-batches."""

    def __post_init__(self) -> None:
        self.step = 0
        self.tokens = 0
        self.seconds = 0.0
        self.best = math.inf
        self.validation: float | None = None
        self._validated_at: int | None = None
        self.resumed_from: int | None = None
        self.stopped_by = 0
        """The number of the signal that interrupted."""
        self.clock = Stopwatch()
        self._averages = Averages(self.objective, self.optimizer, self.settings.ema)
        self._pace, self._drawing = Pace(self.settings, self.schedule), Drawing(self.objective, self.settings)
        self._step = Step(self.objective, self.optimizer, self.settings.clip, self.device, self.clock)
        self._step.precision, self._step.averages = self.precision, self._averages
        self._step.parallel = self.parallel = self.parallel or Parallel(self.objective)
        self._world = self.parallel.world
        self._step.guard = Guard(
            on_nonfinite=self.settings.on_nonfinite,
            on_spike=self.settings.on_spike,
            limit=self.settings.max_passed_over,
            spikes=SpikeDetector(threshold=self.settings.spike_threshold),
        )
        self._step.memory = MemoryFit(
            say=self._say_memory, processes=self._world.size, anywhere=self.parallel.refused_anywhere
        )

        self._late = late_reading(self._step, self.settings.ema, anywhere=self.late_anywhere, say=self.say)
        self._unread: Begun | None = None
        """The step that was begun last, if nobody knows yet what came of it."""

    def resume(self, step: int | None = None) -> list[str]:
        """Go on from checkpoint `step`, or from the newest that verifies; what was skipped is returned."""
        loaded = self._restore(step)
        progress = loaded.meta["progress"]
        self.seconds = progress["seconds"]
        self.resumed_from = loaded.step
        if "guard" in loaded.meta:
            self._step.guard.restore(loaded.meta["guard"])
            self._step.memory.parts = loaded.meta["parts"]
        if progress["improved"] and (saving := self._saving):  # a kill may have come between the write and its mark
            saving.mark_best(loaded.step)
        return loaded.skipped

    @property
    def _saving(self) -> Saving | None:
        return None if self.checkpoints is None else Saving(self._step, self.checkpoints)

    def _restore(self, step: int | None = None) -> Loaded:
        saving = self._saving
        assert saving is not None, "to go back needs a checkpoint store"
        loaded = saving.read(step)
        progress = loaded.meta["progress"]
        self.step, self.tokens, self.validation = loaded.step, progress["tokens"], progress["validation"]
        self.best = math.inf if progress["best"] is None else progress["best"]
        return loaded

    def run(self) -> Outcome:
        """Train to the last step; saves on the way, at the end, and when asked to stop."""
        settings = self.settings
        deadline = time.perf_counter() + self._pace.seconds_left()
        batches = self.objective.batches()
        self.objective.train()
        self._averages.swap_out()
        allocate(self.optimizer)
        with Interrupt() as interrupt, nullcontext() if self.profiler is None else closing(self.profiler):
            self._save_what_to_go_back_to()
            while not self._pace.is_done(self.step, self.seconds):
                with nullcontext() if self.profiler is None else self.profiler.step():
                    begun = self._update(batches)
                if self.profiler is not None:
                    self.profiler.saw(begun.tokens, begun.seconds)
                signal, late = self._agree(interrupt.number, late=time.perf_counter() >= deadline)
                last = self._pace.is_done(self.step, self.seconds)
                self._look_up(begun, last=last, stop=bool(signal) or late)
                if (signal or late) and not last:
                    self.stopped_by = signal
                    return "interrupted" if signal else "out of time"
        self._averages.swap_in()
        return "finished" if self.step >= settings.steps else "out of time"

    def _agree(self, signal: int, *, late: bool) -> tuple[int, bool]:
        """The signal that came to any process (0: none), and whether it is late by the clock of the first, whose
        seconds count; on all the same."""
        told = self._world.numbers([signal, late, self.seconds])
        self.seconds = told[0][2]
        return int(max(row[0] for row in told)), bool(told[0][1])

    def _update(self, batches: Iterator[Any]) -> Begun:
        """Draw `accumulate` micro-batches and make one step of them, or of later ones where they are passed over."""
        start = time.perf_counter()
        while True:
            with self.clock("data"):
                micro_batches = self._drawing.draw(batches, self.step)
            rate, detail = self._pace.factor(self.step, self.seconds), every(self.settings.detail_every, self.step + 1)
            if self._late is not None:
                read, wait = self._late.begin(micro_batches, rate=rate, detail=detail)
                break
            taken = self._step.take(micro_batches, step=self.step + 1, rate=rate, detail=detail)
            if taken.trouble is not None:
                self._meet(taken.trouble, self.step + 1, self.objective.get_extra_state(), self._drawing.noted)
            if taken.is_made:
                read, wait = partial(_known, taken), _nothing
                break
        self.step += 1
        self.drew(self.step, *self._drawing.noted)
        n_targets = sum(batch.n_targets for batch in micro_batches)
        self.tokens += n_targets
        if self._unread is not None:
            self._unread.wait()  # so that the seconds are those of a step, and the processor is one step ahead
        begun = Begun(self.step, self.objective.get_extra_state(), rate, n_targets, read, wait)
        begun.seconds, begun.drawn = time.perf_counter() - start, self._drawing.noted
        self.seconds += begun.seconds
        return begun

    def _progress(self, begun: Begun) -> Progress:
        """What came of a step; what is wrong with it is met now."""
        taken = begun.read(begun.step)
        if self._late is not None and taken.trouble is not None:
            self._meet(taken.trouble, begun.step, begun.cursor, begun.drawn)
        return Progress(
            step=begun.step,
            steps=self.settings.steps,
            loss=taken.loss,
            lr=self.optimizer.defaults["lr"] * begun.rate,
            grad_norm=taken.grad_norm,
            tokens=begun.tokens,
            seconds=begun.seconds,
            validation=self.validation,
            metrics=taken.metrics,
            unit=self.objective.unit,
            watched=self.objective.watched,
        )

    def _meet(
        self, trouble: Trouble, step: int, cursor: Mapping[str, Any], drawn: tuple[Mapping[str, Any], list[int]]
    ) -> None:
        """Note what is wrong with a step, and do what is to be done about it: see `tessera.train.nonfinite`."""
        if self.log is not None:
            what = {"action": trouble.action, "detail": trouble.what}
            self.log.add_event(step, trouble.kind, **what, cursor=cursor, drawn=drawn)
        if trouble.action == "stop":
            raise DivergedError(
                f"step {step}: {trouble.what} (the data cursor after this batch: {cursor}). Nothing was updated: "
                "try a lower optimizer.lr, a longer schedule.warmup or a smaller train.clip"
            )
        if trouble.action == "rewind":
            self._rewind(cursor)
        done = {"record": "noted", "skip": "skipped", "rewind": f"went back to step {self.step}"}[trouble.action]
        self.say(f"step {step}: {trouble.what}; {done}")

    def _rewind(self, cursor: Mapping[str, Any]) -> None:
        """Be at the newest checkpoint, but go on with the batches after `cursor`.

        It is saved at once: a run that is killed after this must not meet the same batches again.
        """
        self._restore()
        self.objective.set_extra_state(cursor)
        self._validated_at = None
        if self.log is not None:
            self.log.truncate_after(self.step)
        self.save()

    def _save_what_to_go_back_to(self) -> None:
        """A run that may rewind needs a checkpoint from its first step on."""
        name = next((name for name in ("on_nonfinite", "on_spike") if getattr(self.settings, name) == "rewind"), None)
        if name is None:
            return
        saving = self._saving
        if saving is None:
            raise SettingError(f"train.{name}", "rewind", "stop or skip: no checkpoints are kept to go back to")
        if self.step not in saving.steps():
            self.save()

    def _say_memory(self, line: str) -> None:
        self.say(line)
        if self.log is not None:
            action = f"micro-batches in {self._step.memory.parts} parts"
            self.log.add_event(self.step + 1, "out of memory", action=action, detail=line)

    def _look_up(self, begun: Begun, *, last: bool, stop: bool) -> None:
        """Between two steps: log, and where it is due validate, sample, save; then tell the watcher.

        Where figures are read late and nothing is due, it is the step before that is told of.
        """
        step, settings = self.step, self.settings
        due = {
            "validate": self.validate is not None and (last or every(settings.eval_every, step)),
            "sample": self.sample is not None and every(settings.sample_every, step),
            "save": self.checkpoints is not None and (last or stop or every(settings.save_every, step)),
        }
        before, self._unread = self._unread, None
        if before is not None:
            progress = self._progress(before)
            self._write(progress, {})
            self.watch(progress)
        if self._late is not None and not (last or stop or any(due.values())):
            self._unread = begun
            return
        with self._counted():
            begun.wait()
        progress = self._progress(begun)
        self._write(progress, {"validation_loss": self._validation()} if due["validate"] else {})
        if due["sample"] and self.sample is not None:
            with self.clock("samples"):
                self._looking(lambda: self.sample(step))  # type: ignore[misc]
        if due["save"]:
            with self.clock("checkpoints"):
                self.save()
        self.watch(replace(progress, validation=self.validation, saved=due["save"]))

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """As time of training."""
        start = time.perf_counter()
        yield
        if self._late is not None:
            self.seconds += time.perf_counter() - start

    def _write(self, progress: Progress, more: dict[str, float]) -> None:
        if self.log is not None:
            self.log.log_metrics(progress.step, progress.values() | more)

    def _validation(self) -> float:
        assert self.validate is not None
        with self.clock("validation"), self.precision.step(), self.precision.forward(self.device):
            self.validation = self._world.share(float(self._looking(self.validate)))
        self._validated_at = self.step
        return self.validation

    def _looking(self, action: Callable[[], Any]) -> Any:
        assert self.parallel is not None
        self.objective.eval()
        try:
            with self._averages.in_use(), self.parallel.looking(), self._world.watched():
                return action()
        finally:
            self.objective.train()

    def save(self) -> None:
        """Write a checkpoint of this moment; returns when it is safe on disk."""
        saving = self._saving
        assert saving is not None
        improved = self.validation is not None and self._validated_at == self.step and self.validation < self.best
        if improved and self.validation is not None:
            self.best = self.validation
        progress = {
            "tokens": self.tokens,
            "seconds": self.seconds,
            "best": None if math.isinf(self.best) else self.best,
            "validation": self.validation,
            "improved": improved,
        }
        protect = set() if self.resumed_from is None else {self.resumed_from}
        saving.write(self.step, progress, keep=self.settings.keep, protect=protect)


def _known(taken: Taken, step: int) -> Taken:
    return taken


def _nothing() -> None:
    """There is nothing to wait for."""
