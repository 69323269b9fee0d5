"""One update of the weights: micro-batches -> gradients -> clip -> optimizer.

The gradients of the micro-batches are added up weighted by the targets that each one has, so that their sum is the
gradient of one big batch, whatever the padding. What was measured on the way is brought to the host once, when all of
it is there; then the update is made or, if a loss or the gradient is not finite, not made (`tessera.train.nonfinite`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tessera.objectives.objective import Objective
from tessera.optim.clip import clip_grad_norm
from tessera.optim.scaler import LossScaler
from tessera.train.averages import Averages
from tessera.train.memory import MemoryFit
from tessera.train.metrics import Means, on_host
from tessera.train.nonfinite import Guard, Trouble
from tessera.train.precision import FP32, Precision
from tessera.train.stopwatch import Stopwatch

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
    averages: Averages | None = None

    def __post_init__(self) -> None:
        self.peak_rates = [group["lr"] for group in self.optimizer.param_groups]

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
                self._apply(rate)
                self.optimizer.zero_grad(set_to_none=True)
                self.objective.updated()
                if self.averages is not None:
                    self.averages.update()
            else:
                self._forget()
        return taken

    def _measure(
        self, micro_batches: Sequence[Any], n_targets: int, *, detail: bool
    ) -> tuple[list[float], float, dict[str, float], float]:
        """What `_gradients` gives, and the gradient's norm before it was clipped.

        In fp16 a gradient that is not finite may be the scale's doing: then it is made again with a smaller one.
        """
        while True:
            with self.clock("forward and backward"):
                losses, mean_loss, metrics = self.memory.run(
                    micro_batches,
                    lambda batches: self._gradients(batches, n_targets, detail=detail),
                    undo=self._forget,
                )
            with self.clock("optimizer"):
                norm = self._clip()
            if self.precision.name != "fp16":
                return losses, mean_loss, metrics, norm
            hopeless = self.scaler.at_floor or not all(map(math.isfinite, losses))
            if math.isfinite(norm) or not hopeless:
                self.scaler.update(math.isfinite(norm))
            if math.isfinite(norm) or hopeless:
                return losses, mean_loss, metrics, norm
            self._forget()

    def _forget(self) -> None:
        """Be as before the step."""
        self.optimizer.zero_grad(set_to_none=True)
        self.objective.passed_over()

    def _gradients(
        self, micro_batches: Sequence[Any], n_targets: int, *, detail: bool
    ) -> tuple[list[float], float, dict[str, float]]:
        """The loss of each micro-batch, their mean, and the means of what else was measured; gradients are in place."""
        measured: list[dict[str, Tensor | float]] = []
        for batch in micro_batches:
            with self.precision.forward(self.device):
                loss, metrics = self.objective(batch.to(self.device))
            share = loss * (batch.n_targets / n_targets)
            (self.scaler.scaled(share) if self.precision.name == "fp16" else share).backward()
            measured.append({"loss": loss.detach(), **metrics, MINIMISED: loss.detach()})
        losses, mean_loss, means = [], 0.0, Means()
        for batch, one in zip(micro_batches, measured, strict=True):
            weight = batch.n_targets / n_targets
            values = on_host(one, like=one[MINIMISED], vectors=detail)  # type: ignore[arg-type]
            losses.append(values.pop(MINIMISED))
            mean_loss += values.pop("loss") * weight
            means.add(values, weight)
        return losses, mean_loss, means.values()

    def _clip(self) -> float:
        parameters = [parameter for parameter in self.objective.parameters() if parameter.grad is not None]
        if self.precision.name == "fp16":
            self.scaler.unscale_(parameters)
        norm: Tensor = clip_grad_norm(parameters, math.inf if self.clip is None else self.clip)
        return float(norm)

    def _apply(self, rate: float) -> None:
        for group, peak in zip(self.optimizer.param_groups, self.peak_rates, strict=True):
            group["lr"] = peak * rate
        self.optimizer.step()
