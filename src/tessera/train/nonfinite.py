"""What becomes of a step whose loss or gradient is not finite, or whose loss jumps up.

Nothing has been updated when this is asked: weights and optimizer are as they were before the step. Then

    stop    ends the run with an error that says what it was
    skip    passes over the step's batches, and makes the step of those that follow
    rewind  goes back to the newest checkpoint and goes on with the batches that follow: those that the steps since
            then have seen, and those of this one, are passed over (as PaLM did: Chowdhery et al. 2022, section 5.1)
    record  learns from it all the same (a jump of the loss only)

`steps` counts updates, so that a skipped step takes nothing from the schedule. More than a few of them in a row of
steps mean that something is wrong which passing over data does not mend: then it stops.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tessera.train.spikes import SpikeDetector

OnNonfinite = Literal["stop", "skip", "rewind"]
OnSpike = Literal["off", "record", "skip", "rewind"]
Action = Literal["stop", "skip", "rewind", "record"]
NOT_FINITE, SPIKE = "not finite", "loss spike"
WITHIN = 1000  # steps in which so many skips and rewinds are put up with


@dataclass(frozen=True)
class Trouble:
    """What is wrong with a step, and what to do about it."""

    kind: str
    what: str
    action: Action

    @property
    def is_learned_from(self) -> bool:
        """Whether the step updates the weights all the same."""
        return self.action == "record"


def what_is_not_finite(losses: Sequence[float], norm: float) -> str | None:
    """In words; None where the losses of all micro-batches and the gradient's norm are numbers."""
    for number, loss in enumerate(losses, 1):
        if not math.isfinite(loss):
            return f"the loss of micro-batch {number} of {len(losses)} is {loss}"
    return None if math.isfinite(norm) else f"the gradient's norm is {norm}"


@dataclass
class Guard:
    """Judges each step before its update. Its memory is a part of the run's state: a resumed run judges the same."""

    on_nonfinite: OnNonfinite = "stop"
    on_spike: OnSpike = "record"
    limit: int = 10
    """Skips and rewinds within WITHIN steps."""
    spikes: SpikeDetector = field(default_factory=SpikeDetector)
    _passed: list[int] = field(default_factory=list)
    """The steps that were skipped or gone back from."""

    def judge(self, step: int, losses: Sequence[float], loss: float, norm: float) -> Trouble | None:
        """Of `step`, about to be made: the loss of each micro-batch, their mean, the gradient's norm."""
        what = what_is_not_finite(losses, norm)
        if what is not None:
            return self._trouble(step, NOT_FINITE, what, self.on_nonfinite)
        if self.on_spike == "off":
            return None
        z = self.spikes.measure(loss)
        if z is None or self.on_spike == "record":
            self.spikes.remember(loss)
        if z is None:
            return None
        what = f"the loss {loss:.4f} is {z:.1f} standard deviations above those before it"
        return self._trouble(step, SPIKE, what, self.on_spike)

    def _trouble(self, step: int, kind: str, what: str, action: Action) -> Trouble:
        if action in ("skip", "rewind"):
            self._passed = [*(one for one in self._passed if one > step - WITHIN), step]
            if len(self._passed) > self.limit:
                return Trouble(kind, f"{what}; steps were passed over {self.limit} times before", "stop")
        return Trouble(kind, what, action)

    def state(self) -> dict[str, Any]:
        """As JSON-able data."""
        return {"passed": list(self._passed), "spikes": self.spikes.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._passed = [int(step) for step in state["passed"]]
        self.spikes.restore(state["spikes"])
