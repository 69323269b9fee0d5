"""When a training is over, and its rate on the way: by steps or, where it is to be done in a time, by the clock."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from tessera.train.settings import TrainSettings


@dataclass(frozen=True)
class Pace:
    """Of a training that has made `step` updates in `seconds`."""

    settings: TrainSettings
    schedule: Callable[[int, int], float]

    def is_done(self, step: int, seconds: float) -> bool:
        return step >= self.settings.steps or self.time_used(seconds) >= 1.0

    def time_used(self, seconds: float) -> float:
        """The share of `finish_minutes` that has gone."""
        limit = self.settings.finish_minutes
        return 0.0 if limit is None else seconds / (60 * limit)

    def factor(self, step: int, seconds: float) -> float:
        """The schedule at the step, or at the clock where that is further on."""
        steps = self.settings.steps
        by_clock = min(steps - 1, int(steps * self.time_used(seconds)))
        return self.schedule(max(step, by_clock), steps)

    def seconds_left(self) -> float:
        """Until this start has to save and stop."""
        return math.inf if self.settings.max_minutes is None else 60 * self.settings.max_minutes


def every(interval: int, step: int) -> bool:
    """Whether something is due that is done every so many steps; 0: never."""
    return interval > 0 and step % interval == 0
