"""The training loop: batches -> gradients -> clip -> optimizer, one step after another.

The gradients of the micro-batches are added up weighted by the targets that each one has, so that their sum is the
gradient of one big batch, whatever the padding, and however many processes share it (`tessera.scratch.workers`).

Everything that a step depends on is given: weights, optimizer, the number of the step, the batches that come next. The
random numbers of dropout are a function of (seed, step, micro-batch, process), so they are no state, and a run that is
begun again with these goes on bit for bit.

B batch, T time.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

from tessera.errors import DivergedError, InputError, SettingError
from tessera.scratch.clip import clip_grad_norm
from tessera.scratch.decoder import Decoder
from tessera.scratch.gradients import Batch, Part, count_targets, learn
from tessera.scratch.optimizer import Optimizer
from tessera.scratch.workers import Workers


@dataclass(frozen=True)
class Progress:
    """One step, for whoever watches."""

    step: int
    steps: int
    loss: float
    lr: float
    grad_norm: float
    """Before it was clipped."""
    tokens: int
    """How many were predicted."""
    seconds: float
    """Of this step alone."""


@dataclass
class Trainer:
    """Trains `model` on `batches` until `steps` steps are made; `step` says how many are.

    A batch is (inputs_BT, targets_BT, documents_BT or None). `accumulate` of them make a step. `schedule(step, steps)`
    is a factor on the optimizer's rate, `seed` that of dropout. With `workers` > 1 so many processes share the rows of
    each batch. `watch` is called after each step, with the weights updated: the place to save and to validate.
    """

    model: Decoder
    optimizer: Optimizer
    batches: Iterator[Batch]
    steps: int
    schedule: Callable[[int, int], float] = lambda step, steps: 1.0
    accumulate: int = 1
    clip: float | None = 1.0
    seed: int = 0
    workers: int = 1
    watch: Callable[[Progress], None] = lambda progress: None
    step: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "accumulate", "workers"):
            if getattr(self, name) < 1:
                raise SettingError(f"train.{name}", getattr(self, name), "a whole number, 1 or greater")
        if self.clip is not None and not self.clip > 0.0:
            raise SettingError("train.clip", self.clip, "a number greater than 0, or none")

    def run(self, stop: Callable[[], object] = lambda: False) -> Literal["finished", "interrupted"]:
        """Train to the last step, or until `stop()`, which is asked between steps, is true."""
        with Workers(self.model, self.workers, seed=self.seed) if self.workers > 1 else nullcontext() as workers:
            while self.step < self.steps:
                if stop():
                    return "interrupted"
                self.watch(self._take(workers))
        return "finished"

    def _take(self, workers: Workers | None) -> Progress:
        start = time.perf_counter()
        number = self.step + 1
        micro_batches = self._draw()
        n_targets = sum(map(count_targets, micro_batches))
        if n_targets == 0:
            raise InputError(f"step {number}: there is no target in the batch, so nothing can be learned from it")
        self.model.zero_grad()
        if workers is None:
            parts = learn(self.model, micro_batches, n_targets, step=number, seed=self.seed)
        else:
            parts = workers.learn(micro_batches, n_targets, step=number)
        limit = math.inf if self.clip is None else self.clip
        norm = clip_grad_norm((param.grad for param in self.model.parameters.values()), limit)
        self._check_finite(number, parts, norm)
        rate = self.optimizer.lr * self.schedule(self.step, self.steps)
        self.optimizer.step(rate)
        self.step = number
        loss = sum(part.loss * part.weight for part in parts)
        return Progress(number, self.steps, loss, rate, norm, n_targets, time.perf_counter() - start)

    def _draw(self) -> list[Batch]:
        micro_batches = []
        for _ in range(self.accumulate):
            batch = next(self.batches, None)
            if batch is None:
                raise InputError(f"the batches ended after step {self.step} of {self.steps}")
            micro_batches.append(batch)
        return micro_batches

    def _check_finite(self, number: int, parts: Sequence[Part], norm: float) -> None:
        bad = [part for part in parts if not math.isfinite(part.loss)]
        if not bad and math.isfinite(norm):
            return
        self.model.zero_grad()
        what = f"the gradient's norm is {norm}"
        if bad:
            what = f"the loss of micro-batch {bad[0].micro_batch + 1} of {self.accumulate} is {bad[0].loss}"
        raise DivergedError(
            f"step {number}: {what}. Nothing was updated: try a lower optimizer.lr, a longer schedule.warmup or a "
            "smaller train.clip"
        )


def evaluate(model: Decoder, batches: Iterable[Batch]) -> float:
    """The mean loss over all targets of `batches`, in nats a token, without dropout."""
    total, n = 0.0, 0
    for batch in batches:
        if n_targets := count_targets(batch):
            total += model.loss(*batch) * n_targets
            n += n_targets
    if n == 0:
        raise InputError("there is no target in what was held out, so it has no loss")
    loss = total / n
    if not math.isfinite(loss):
        raise DivergedError(f"the loss of what was held out is {loss}")
    return loss
