"""What a step measured, read one step late, so that the processor never waits for the GPU.

The next step is begun before it is known what came of this one. Whether an update is made is therefore decided on the
device: one flag there stays up as long as every loss and every gradient's norm was finite, and an optimizer that is
`gated` changes nothing once it is down. So a step that is not finite, and the one that was begun before anybody knew,
leave weights and optimizer as they were, bit for bit; then the run stops, and says which step it was.

Where something must be done about a step before the next one begins, figures are read at once: `why_at_once` has every
such reason.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tessera.model.moe import MixtureOfExperts
from tessera.objectives.objective import Objective
from tessera.optim.clip import clip_grad_norm
from tessera.optim.optimizer import Optimizer
from tessera.train.metrics import packed
from tessera.train.step import MINIMISED, Measured, Part, Step, Taken, means_of

Read = Callable[[int], Taken]
"""What came of a step, whose number is given."""


@dataclass
class Begun:
    """A step that was begun. `read` waits until it is over, and `wait` does only that."""

    step: int
    cursor: Mapping[str, Any]
    """Where the data stood after its batches."""
    rate: float
    tokens: int
    read: Read
    wait: Callable[[], None]
    seconds: float = 0.0
    drawn: tuple[Mapping[str, Any], list[int]] = field(default_factory=lambda: ({}, []))
    """The cursor before its batches, and the rows of each."""


def late_reading(step: Step, ema: float | None, *, anywhere: bool, say: Callable[[str], None]) -> "LateReading | None":
    """A way to begin steps without waiting for them, where there is one; on a GPU it says why there is none."""
    on_gpu = step.device.type == "cuda"
    if not (on_gpu or anywhere):
        return None
    reason = why_at_once(step, ema)
    if reason is None:
        return LateReading(step)
    if on_gpu:
        say(f"the GPU waits at the end of each step until its figures are read: {reason}")
    return None


def why_at_once(step: Step, ema: float | None) -> str | None:
    """Why the figures of a step must be known before the next one begins; None where they need not."""
    optimizer, guard = step.optimizer, step.guard
    experts = any(isinstance(module, MixtureOfExperts) for module in step.objective.modules())
    reasons = {
        "the processes agree on each step": step.parallel.world.size > 1,
        "fp16 makes a step again with another scale": step.precision.name == "fp16",
        f"train.on_nonfinite = {guard.on_nonfinite}": guard.on_nonfinite != "stop",
        f"train.on_spike = {guard.on_spike}": guard.on_spike not in ("off", "record"),
        f"{type(optimizer).__name__} cannot be stopped on the device": not (
            isinstance(optimizer, Optimizer) and optimizer.gated
        ),
        "train.ema takes in the weights of each step": ema is not None,
        "the experts learn after each step who was chosen": experts,
        "the objective learns from each step": type(step.objective).updated is not Objective.updated,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


class LateReading:
    """Begins steps; `alive` is the flag on the device."""

    def __init__(self, step: Step) -> None:
        self.step = step
        self.alive = torch.ones((), dtype=torch.bool, device=step.device)

    def begin(self, micro_batches: Sequence[Any], *, rate: float, detail: bool) -> tuple[Read, Callable[[], None]]:
        """Begin a step as `Step.take` makes it: how to read what came of it, and how to wait for that."""
        step, optimizer = self.step, self.step.optimizer
        assert isinstance(optimizer, Optimizer)
        n_targets = sum(batch.n_targets for batch in micro_batches)
        with step.precision.step(), step.clock("forward and backward"):
            found = step.memory.run(micro_batches, lambda batches: step.parts(batches, n_targets), undo=step.forget)
        parts = [part for part in found if part is not None]
        with step.clock("optimizer"):
            norm = clip_grad_norm(step.parallel.learned(), math.inf if step.clip is None else step.clip)
            losses = torch.stack([torch.as_tensor(values[MINIMISED]) for _, values in parts])
            self.alive = self.alive & losses.isfinite().all() & norm.isfinite()
            figures = Figures(parts, norm, vectors=detail)
            step.set_rate(rate)
            optimizer.step_if(self.alive)
            step.parallel.forget_gradients()

        def read(number: int) -> Taken:
            with step.clock("wait for the GPU"):
                measured, norm = figures.read()
            losses, mean_loss, metrics = means_of([measured])
            trouble = step.guard.judge(number, losses, mean_loss, norm)
            return Taken(mean_loss, norm, n_targets, metrics, trouble)

        def wait() -> None:
            with step.clock("wait for the GPU"):
                figures.wait()

        return read, wait


class Figures:
    """Numbers on their way from the device, in one transfer that nobody waits for."""

    def __init__(self, parts: Sequence[Part], norm: Tensor, *, vectors: bool) -> None:
        like = norm.detach()
        rows = [packed(values, like, vectors=vectors) for _, values in parts]
        self._names = [(weight, names) for (weight, _), (names, _) in zip(parts, rows, strict=True)]
        numbers = torch.cat([*(row for _, row in rows), like.reshape(1)])
        self._event: torch.cuda.Event | None = None
        if numbers.is_cuda:
            self._numbers = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._numbers.copy_(numbers, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._numbers = numbers

    def wait(self) -> None:
        """Until they are here."""
        if self._event is not None:
            self._event.synchronize()

    def read(self) -> tuple[list[Measured | None], float]:
        self.wait()
        *numbers, norm = self._numbers.tolist()
        left = iter(numbers)
        return [(weight, {name: next(left) for name in names}) for weight, names in self._names], norm
