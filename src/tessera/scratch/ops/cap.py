"""The soft cap: a bound on scores or logits (Gemma 2).

y = c t with t = tanh(x / c); dy/dx = c (1 - t^2) / c, so dx = dy (1 - t^2): the closer to the bound, the less moves it.
"""

import numpy as np


def cap_forward(x: np.ndarray, cap: float) -> tuple[np.ndarray, np.ndarray]:
    """c tanh(x / c), between -c and c."""
    t = x / cap
    np.tanh(t, out=t)
    return cap * t, t


def cap_backward(dy: np.ndarray, t: np.ndarray) -> np.ndarray:
    """dx."""
    return dy * (1 - t * t)
