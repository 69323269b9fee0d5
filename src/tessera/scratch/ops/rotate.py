"""Rotation of pairs: the arithmetic of rotary positions (Su et al. 2021, RoFormer).

Each pair (a, b) of a head is turned by an angle of its own:

    (a, b) -> (a cos - b sin, a sin + b cos)

A rotation is a matrix R whose transpose is its inverse. With y = R x the gradient is dx = R^T dy: dy turned back, by
minus the angle. So nothing but the angles is kept.

    halves        (x_0, x_C), (x_1, x_C+1) ...    as transformers lays Llama out
    interleaved   (x_0, x_1), (x_2, x_3) ...      as the paper, GPT-J and DeepSeek lay it out
"""

from typing import Literal, NamedTuple

import numpy as np

from tessera.scratch.ops.slices import slices

Layout = Literal["halves", "interleaved"]


class Angles(NamedTuple):
    """Cosine and sine of each pair's angle, (T, C) or (B, T, C), and what a pair is."""

    cos: np.ndarray
    sin: np.ndarray
    layout: Layout = "halves"


def rotate_forward(x_BTHK: np.ndarray, angles: Angles) -> tuple[np.ndarray, Angles]:
    """Every head turned; what a head has beyond 2C stays as it is."""
    return _turned(x_BTHK, angles, 1), angles


def rotate_backward(dy_BTHK: np.ndarray, angles: Angles) -> np.ndarray:
    """dx_BTHK: turned back."""
    return _turned(dy_BTHK, angles, -1)


def _turned(x_BTHK: np.ndarray, angles: Angles, way: int) -> np.ndarray:
    """Turned by `way` times the angle."""
    C = angles.cos.shape[-1]
    y_BTHK = np.empty(x_BTHK.shape, x_BTHK.dtype)
    y_BTHK[..., 2 * C :] = x_BTHK[..., 2 * C :]
    cos, sin = (np.broadcast_to(table, (*x_BTHK.shape[:2], C)) for table in angles[:2])
    for x, y, cos_bTC, sin_bTC in slices(x_BTHK, y_BTHK, cos, sin):
        cos_bT1C, sin_bT1C = cos_bTC[:, :, None], way * sin_bTC[:, :, None]
        a, b = _members(x, C, angles.layout)
        y_a, y_b = _members(y, C, angles.layout)
        np.multiply(a, cos_bT1C, out=y_a)
        y_a -= b * sin_bT1C
        np.multiply(b, cos_bT1C, out=y_b)
        y_b += a * sin_bT1C
    return y_BTHK


def _members(x_BTHK: np.ndarray, C: int, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """The first and the second of each pair, as views."""
    if layout == "halves":
        return x_BTHK[..., :C], x_BTHK[..., C : 2 * C]
    return x_BTHK[..., 0 : 2 * C : 2], x_BTHK[..., 1 : 2 * C : 2]
