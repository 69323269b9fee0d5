"""One update of the weights: micro-batches -> gradients -> clip -> optimizer.

The gradients of the micro-batches are added up weighted by the targets that each one has, so that their sum is the
gradient of one big batch, whatever the padding, and however many processes share it (`tessera.train.distributed`). What
was measured on the way is brought to the host once, when all of it is there; then the update is made or, if a loss or
the gradient is not finite, not made (`tessera.train.nonfinite`). A GPU need not wait for that: `tessera.train.late`.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tessera.objectives.objective import Objective
from tessera.optim.scaler import LossScaler
from tessera.train.averages import Averages
from tessera.train.distributed import Parallel
from tessera.train.memory import MemoryFit
from tessera.train.metrics import Means, on_host
from tessera.train.nonfinite import Guard, Trouble
from tessera.train.precision import FP32, Precision
from tessera.train.stopwatch import Stopwatch

Part = tuple[float, dict[str, Tensor | float]]
"""Of a process's part of a micro-batch: its share of the step's targets, and what was measured, where it was ..."""
Measured = tuple[float, dict[str, float]]
"""... and on the host."""

MINIMISED = "what is made small"
"""The name of the loss itself among what is measured, as "loss" may be a part of it."""


@dataclass(frozen=True)
class Taken:
    """What happened in a step. `is_made` says whether it updated the weights; no gradient is left either way."""

    loss: float
    grad_norm: float
    n_targets: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    trouble: Trouble | None = None

    @property
    def is_made(self) -> bool:
        return self.trouble is None or self.trouble.is_learned_from


@dataclass
class Step:
    """Holds what an update needs; `take` makes one."""

    objective: Objective
    optimizer: torch.optim.Optimizer
    clip: float | None
    device: torch.device
    clock: Stopwatch = field(default_factory=Stopwatch)
    guard: Guard = field(default_factory=Guard)
    memory: MemoryFit = field(default_factory=MemoryFit)
    precision: Precision = FP32
    scaler: LossScaler = field(default_factory=LossScaler)
    """At work in fp16 alone."""
    averages: Averages = field(init=False)
    parallel: Parallel = field(init=False)

    def __post_init__(self) -> None:
        self.peak_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.averages = Averages(self.objective, self.optimizer, None)
        self.parallel = Parallel(self.objective)

    def take(self, micro_batches: Sequence[Any], *, step: int, rate: float, detail: bool) -> Taken:
        """Make step number `step`: learn from `micro_batches` at `rate`, a factor on each group's peak rate.

        `detail`: measure also what has a number for each part.
        """
        n_targets = sum(batch.n_targets for batch in micro_batches)
        with self.precision.step():
            losses, mean_loss, metrics, norm = self._measure(micro_batches, n_targets, detail=detail)
        with self.clock("optimizer"):
            trouble = self.guard.judge(step, losses, mean_loss, norm)
            taken = Taken(mean_loss, norm, n_targets, metrics, trouble)
            if taken.is_made:
                self.set_rate(rate)
                self.optimizer.step()
                self.parallel.forget_gradients()
                self.parallel.updated()
                self.averages.update()
            else:
                self.forget()
        return taken

    def _measure(
        self, micro_batches: Sequence[Any], n_targets: int, *, detail: bool
    ) -> tuple[list[float], float, dict[str, float], float]:
        """The loss of each micro-batch, their mean, what else was measured, the gradient's norm before it was clipped.

        In fp16 a gradient that is not finite may be the scale's doing: then it is made again with a smaller one.
        """
        while True:
            with self.clock("forward and backward"):
                measured = self.memory.run(
                    micro_batches,
                    lambda batches: self._gradients(batches, n_targets, detail=detail),
                    undo=self.forget,
                )
            with self._exchange():
                self.parallel.reduce()
            with self.clock("optimizer"):
                norm = self._clip()
            with self._exchange():
                losses, mean_loss, metrics, norm = self._together(measured, norm)
            if self.precision.name != "fp16":
                return losses, mean_loss, metrics, norm
            hopeless = self.scaler.at_floor or not all(map(math.isfinite, losses))
            if math.isfinite(norm) or not hopeless:
                self.scaler.update(math.isfinite(norm))
            if math.isfinite(norm) or hopeless:
                return losses, mean_loss, metrics, norm
            self.forget()

    def _exchange(self) -> AbstractContextManager[None]:
        return self.clock("exchange with the others") if self.parallel.world.size > 1 else nullcontext()

    def forget(self) -> None:
        """Be as before the step."""
        self.parallel.forget_gradients()
        self.objective.passed_over()

    def _gradients(self, micro_batches: Sequence[Any], n_targets: int, *, detail: bool) -> "list[Measured | None]":
        """`parts`, brought to the host."""
        return [
            None if one is None else (one[0], on_host(one[1], like=one[1][MINIMISED], vectors=detail))  # type: ignore[arg-type]
            for one in self.parts(micro_batches, n_targets)
        ]

    def parts(self, micro_batches: Sequence[Any], n_targets: int) -> "list[Part | None]":
        """What was measured in this process's part of each micro-batch, if it has one; gradients are in place."""
        parts: list[Part | None] = []
        for number, batch in enumerate(micro_batches, 1):
            part = self.parallel.part(batch)
            learns = part is not None
            part = part if learns else self.parallel.stand_in(batch)
            if part is None:
                parts.append(None)
                continue
            weight = part.n_targets / n_targets if learns else 0.0
            with self.parallel.micro_batch(last=number == len(micro_batches), learns=learns):
                with self.precision.forward(self.device):
                    loss, metrics = self.objective(part.to(self.device))
                share = loss * weight
                (self.scaler.scaled(share) if self.precision.name == "fp16" else share).backward()
            values = {"loss": loss.detach(), **metrics, MINIMISED: loss.detach()}
            parts.append((weight, values) if learns else None)
        return parts

    def _together(
        self, measured: "list[Measured | None]", norm: float
    ) -> tuple[list[float], float, dict[str, float], float]:
        """The loss of each micro-batch, their mean, the means of what else was measured, and the norm: of all processes
        together, and on all the same, so that they judge alike."""
        everywhere = self.parallel.world.gather((measured, norm))
        return *means_of([of_process for of_process, _ in everywhere]), everywhere[0][1]

    def _clip(self) -> float:
        if self.precision.name == "fp16":
            self.scaler.unscale_(self.parallel.learned())
        return self.parallel.clip(math.inf if self.clip is None else self.clip)

    def set_rate(self, rate: float) -> None:
        for group, peak in zip(self.optimizer.param_groups, self.peak_rates, strict=True):
            group["lr"] = peak * rate


def means_of(everywhere: "Sequence[Sequence[Measured | None]]") -> tuple[list[float], float, dict[str, float]]:
    """The loss of each micro-batch, their mean, and the means of what else was measured, over the parts of all."""
    losses, mean_loss, means = [], 0.0, Means()
    for of_batch in zip(*everywhere, strict=True):
        parts = [part for part in of_batch if part is not None]
        losses.append(_mean([(weight, values.pop(MINIMISED)) for weight, values in parts]))
        for weight, values in parts:
            mean_loss += values.pop("loss") * weight
            means.add(values, weight)
    return losses, mean_loss, means.values()


def _mean(weighted: list[tuple[float, float]]) -> float:
    """Of (weight, value); one alone is itself to the last bit."""
    if len(weighted) == 1:
        return weighted[0][1]
    return sum(weight * value for weight, value in weighted) / sum(weight for weight, _ in weighted)
