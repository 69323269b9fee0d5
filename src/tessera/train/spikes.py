"""Loss spikes: a loss far above those before it, told from noise by what noise there has been.

    z = 0.6745 (loss - median) / MAD          MAD: the median distance from the median, both over a window

which for normal noise is in standard deviations, and which a few outliers in the window do not move (Iglewicz and
Hoaglin 1993, "How to Detect and Handle Outliers", section 3.3; PaLM, Chowdhery et al. 2022, section 5.1, tells of the
spikes). Only a rise counts: a loss that falls quickly is no spike.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

NORMAL = 0.6745  # the MAD of normal noise, in standard deviations
LEAST_SPREAD = 1e-3  # of the median: losses that are all but the same are not noise to measure by


def robust_z(value: float, window: Sequence[float]) -> float:
    """How far `value` is above the middle of `window`, in standard deviations of normal noise.

    >>> round(robust_z(3.5, [3.0, 3.1, 2.9, 3.2, 2.8]), 2)
    3.37
    """
    middle = median(window)
    spread = median(abs(one - middle) for one in window)
    least = LEAST_SPREAD * abs(middle)
    return NORMAL * (value - middle) / max(spread, least, math.ulp(0.0))


class SpikeDetector:
    """Sees each step's loss; says when one begins a spike.

    `threshold` is in standard deviations, `window` in steps; before half a window is there it says nothing. A level
    that stays up is the new normal when it has filled half of the window.
    """

    def __init__(self, *, threshold: float = 8.0, window: int = 64) -> None:
        self.threshold = threshold
        self.window = window
        self._losses: deque[float] = deque(maxlen=window)
        self._is_up = False

    def measure(self, loss: float) -> float | None:
        """The z of a loss that begins a spike, else None; nothing is remembered of it."""
        if len(self._losses) < max(2, self.window // 2):
            return None
        z = robust_z(loss, self._losses)
        return z if z > self.threshold and not self._is_up else None

    def remember(self, loss: float) -> None:
        """Take a loss that the run has learned from into the window."""
        if len(self._losses) >= max(2, self.window // 2):
            self._is_up = robust_z(loss, self._losses) > self.threshold
        self._losses.append(loss)

    def state(self) -> dict[str, Any]:
        """What the next answer depends on, as JSON-able data."""
        return {"losses": list(self._losses), "is_up": self._is_up}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._losses = deque(state["losses"], maxlen=self.window)
        self._is_up = bool(state["is_up"])
