"""Dropout: silence a random share of the numbers (Srivastava et al. 2014).

y = x m, where m_i is 0 with probability `share` and else 1 / (1 - share), so that the mean stays. The mask is a
constant for the gradient: dx = dy m.
"""

import numpy as np

LEVELS = 2**16


def dropout_mask(shape: tuple[int, ...], share: float, rng: np.random.Generator, dtype: np.dtype) -> np.ndarray:
    """0 for what is dropped, 1 / (1 - share) for what is kept; the share is rounded to 1 / 65,536.

    16 random bits decide on each number, as drawing is the time that dropout takes.
    """
    level = min(max(round(share * LEVELS), 1), LEVELS - 1)
    mask = (rng.integers(0, LEVELS, shape, dtype=np.uint16) >= level).astype(dtype)
    mask *= LEVELS / (LEVELS - level)
    return mask


def dropout_forward(x: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    """x m; None is the mask of a model that does not train: all is kept."""
    return (x if mask is None else x * mask), mask


def dropout_backward(dy: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """dx."""
    return dy if mask is None else dy * mask
