"""Learning-rate schedules: the factor on the peak rate at each step, a pure function of (step, steps).

A schedule has no state, so nothing of it is saved: a resumed run asks for the same step and gets the same factor.
`step` counts from 0, `steps` is the length of the run. All warm up alike, linearly over the first `warmup` steps and
never from zero: (step + 1) / (warmup + 1); the peak comes at step = warmup. After it each kind has its own shape s in
[0, 1], and the factor is floor + (1 - floor) * s.
"""

import math
from typing import Literal

from tessera.errors import SettingError


class Constant:
    """The peak rate, after the warm-up. Base of the others, which override `shape`."""

    def __init__(self, *, warmup: int = 0) -> None:
        if warmup < 0:
            raise SettingError("warmup", warmup, "a number of steps, 0 or greater")
        self.warmup = warmup
        self.floor = 0.0

    def __call__(self, step: int, steps: int) -> float:
        """The factor on the peak rate at `step` of a run of `steps`."""
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        return self.floor + (1.0 - self.floor) * self.shape(step, steps)

    def shape(self, step: int, steps: int) -> float:
        """What follows the warm-up: from 1 at the peak down to 0, where the factor is the floor."""
        return 1.0

    def _progress(self, step: int, steps: int) -> float:
        """From 0 at the peak to 1 at the end of the run, which is one step after the last."""
        return _share(step - self.warmup, steps - self.warmup)


class _Falling(Constant):
    """A schedule with a floor, a share of the peak."""

    def __init__(self, *, warmup: int = 0, floor: float = 0.0) -> None:
        super().__init__(warmup=warmup)
        if not 0.0 <= floor <= 1.0:
            raise SettingError("floor", floor, "a share of the peak rate, from 0 to 1")
        self.floor = floor


class Linear(_Falling):
    """A straight line to the floor: s = 1 - progress."""

    def shape(self, step: int, steps: int) -> float:
        return 1.0 - self._progress(step, steps)


class Cosine(_Falling):
    """Half a cosine to the floor: s = (1 + cos(pi * progress)) / 2 (Loshchilov and Hutter 2017, "SGDR", eq. 5)."""

    def shape(self, step: int, steps: int) -> float:
        return (1.0 + math.cos(math.pi * self._progress(step, steps))) / 2.0


class InverseSqrt(_Falling):
    """s = sqrt((warmup + 1) / (step + 1)): no end in sight (Vaswani et al. 2017, eq. 3, with its peak scaled to 1)."""

    def shape(self, step: int, steps: int) -> float:
        return math.sqrt((self.warmup + 1) / (step + 1))


class WarmupStableDecay(_Falling):
    """The peak until the last share `cooldown` of the run, then down to the floor (Hu et al. 2024, "MiniCPM", section
    4).

    `curve` over that progress p: "linear" 1 - p; "sqrt" 1 - sqrt(p), the better one in Haegele et al. 2024 ("Scaling
    Laws and Compute-Optimal Training Beyond Fixed Training Durations"); "cosine" (1 + cos(pi * p)) / 2.
    """

    def __init__(
        self,
        *,
        warmup: int = 0,
        floor: float = 0.0,
        cooldown: float = 0.2,
        curve: Literal["linear", "sqrt", "cosine"] = "sqrt",
    ) -> None:
        super().__init__(warmup=warmup, floor=floor)
        if not 0.0 <= cooldown <= 1.0:
            raise SettingError("cooldown", cooldown, "a share of the run, from 0 to 1")
        if curve not in CURVES:
            raise SettingError("curve", curve, f"one of {', '.join(CURVES)}")
        self.cooldown, self.curve = cooldown, curve

    def shape(self, step: int, steps: int) -> float:
        n_cooldown = min(round(self.cooldown * steps), steps - self.warmup)
        stable = steps - n_cooldown
        return 1.0 if step < stable else CURVES[self.curve](_share(step - stable, n_cooldown))


CURVES = {
    "linear": lambda progress: 1.0 - progress,
    "sqrt": lambda progress: 1.0 - math.sqrt(progress),
    "cosine": lambda progress: (1.0 + math.cos(math.pi * progress)) / 2.0,
}


def _share(done: int, whole: int) -> float:
    return min(max(done / whole, 0.0), 1.0) if whole > 0 else 1.0


SCHEDULES = {
    "constant": Constant,
    "linear": Linear,
    "cosine": Cosine,
    "inverse-sqrt": InverseSqrt,
    "wsd": WarmupStableDecay,
}


class Ramp:
    """A size that grows from `start` to its full value over the first `steps` steps, in whole multiples of `multiple`.

    For the number of windows in a batch (Brown et al. 2020, "Language Models are Few-Shot Learners", appendix B) or of
    tokens in a window (Li et al. 2022, "The Stability-Efficiency Dilemma", section 4.1): early steps are cheap and
    learn as much. Like a schedule it has no state.
    """

    def __init__(self, *, start: int, steps: int, multiple: int = 1) -> None:
        for name, value in (("start", start), ("steps", steps), ("multiple", multiple)):
            if value < 1:
                raise SettingError(name, value, "a whole number, 1 or greater")
        self.start, self.steps, self.multiple = start, steps, multiple

    def __call__(self, step: int, full: int) -> int:
        """The size at `step` = 0, 1, 2, ...: `full` from `steps` on, and never more; before it a multiple, rounded
        down, but at least `start`."""
        if step >= self.steps or self.start >= full:
            return full
        size = self.between(step / self.steps, full)
        return min(max(int(size + 1e-9) // self.multiple * self.multiple, self.start), full)

    def between(self, share: float, full: int) -> float:
        """The size after a `share` of the steps: here a straight line."""
        return self.start + (full - self.start) * share


class DoublingRamp(Ramp):
    """The same in stages of equal length, each twice as large as the one before: sizes that suit a machine."""

    def between(self, share: float, full: int) -> float:
        n_stages = math.ceil(math.log2(full / self.start))
        return self.start * 2.0 ** int(share * n_stages)


RAMPS = {"linear": Ramp, "doubling": DoublingRamp}
