"""Activations: f(x) number by number, so dx = dy f'(x); and the gated product that is made of one."""

import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from tessera.scratch.ops.slices import rows_of, slices


class Activation(NamedTuple):
    """A pair that belongs together: `forward(x) -> (y, saved)` and `backward(dy, saved) -> dx`."""

    forward: Callable[[np.ndarray], tuple[np.ndarray, Any]]
    backward: Callable[[np.ndarray, Any], np.ndarray]


def _like(x: np.ndarray) -> np.ndarray:
    """Room for as many numbers, side by side even where those of `x` are not."""
    return np.empty(x.shape, x.dtype)


def relu_forward(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """max(0, x)."""
    y = np.maximum(x, 0)
    return y, y


def relu_backward(dy: np.ndarray, y: np.ndarray) -> np.ndarray:
    """dy where x > 0, which is where y > 0; 0 elsewhere, and at 0 itself, where the slope is a matter of choice."""
    return dy * (y > 0)


def squared_relu_forward(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """max(0, x)^2 (So et al. 2021, "Primer")."""
    root = np.maximum(x, 0)
    return root * root, root


def squared_relu_backward(dy: np.ndarray, root: np.ndarray) -> np.ndarray:
    """dy 2 max(0, x)."""
    dx = dy * root
    dx *= 2
    return dx


def silu_forward(x: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """x s with s = sigmoid(x) = 1 / (1 + exp(-x)) = (1 + tanh(x / 2)) / 2, which never overflows."""
    y, s = _like(x), _like(x)
    for x_n, y_n, s_n in slices(*map(rows_of, (x, y, s))):
        np.tanh(x_n * 0.5, out=s_n)
        s_n += 1
        s_n *= 0.5
        np.multiply(x_n, s_n, out=y_n)
    return y, (x, s)


def silu_backward(dy: np.ndarray, saved: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """ds/dx = s (1 - s), so (x s)' = s + x s (1 - s) = s (1 + x (1 - s))."""
    dx = _like(dy)
    for dy_n, x_n, s_n, dx_n in slices(*map(rows_of, (dy, *saved, dx))):
        np.subtract(1, s_n, out=dx_n)
        dx_n *= x_n
        dx_n += 1
        dx_n *= s_n
        dx_n *= dy_n
    return dx


A = math.sqrt(2 / math.pi)
B = 0.044715 * A


def tanh_gelu_forward(x: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """x (1 + t) / 2 with t = tanh(a x + b x^3), a = sqrt(2 / pi), b = 0.044715 a: GPT-2's way to `gelu_forward`."""
    y, t = _like(x), _like(x)
    for x_n, y_n, t_n in slices(*map(rows_of, (x, y, t))):
        np.multiply(x_n, x_n, out=t_n)
        t_n *= B
        t_n += A
        t_n *= x_n
        np.tanh(t_n, out=t_n)
        np.add(t_n, 1, out=y_n)
        y_n *= x_n
        y_n *= 0.5
    return y, (x, t)


def tanh_gelu_backward(dy: np.ndarray, saved: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """tanh' = 1 - t^2 = (1 + t)(1 - t), so the slope is

    (1 + t) / 2 + x / 2 (1 - t^2) (a + 3 b x^2) = (1 + t) / 2 (1 + (1 - t) (a x + 3 b x^3))
    """
    dx = _like(dy)
    for dy_n, x_n, t_n, dx_n in slices(*map(rows_of, (dy, *saved, dx))):
        np.multiply(x_n, x_n, out=dx_n)
        dx_n *= 3 * B
        dx_n += A
        dx_n *= x_n
        dx_n *= 1 - t_n
        dx_n += 1
        dx_n *= 1 + t_n
        dx_n *= dy_n
        dx_n *= 0.5
    return dx


def gelu_forward(x: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """x Phi(x), Phi the distribution function of the normal distribution (Hendrycks and Gimpel 2016)."""
    share = normal_cdf(x)
    return x * share, (x, share)


def gelu_backward(dy: np.ndarray, saved: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Phi'(x) = exp(-x^2 / 2) / sqrt(2 pi), so (x Phi)' = Phi + x Phi'(x)."""
    x, share = saved
    slope = _bell(x)
    slope *= x
    slope += share
    slope *= dy
    return slope


FAR = 9
"""Beyond it Phi is 0 or 1 to all 16 digits."""
CELLS = 128
"""So many places of the table from one whole number to the next."""


def normal_cdf(x: np.ndarray) -> np.ndarray:
    """Phi(x), which NumPy has not: from the nearest place x0 of a table, by Taylor's series for the way d = x - x0.

    The n-th derivative of Phi is (-1)^(n-1) He_(n-1)(x0) Phi'(x0), He the Hermite polynomials 1, x, x^2 - 1, ...; with
    d at most 1/256, five terms leave an error below 1e-15.
    """
    near = np.fmax(np.fmin(x, FAR), -FAR)
    place = np.rint(near * CELLS)
    x0 = place / CELLS
    d = near - x0
    square = x0 * x0
    series = d * (square * (square - 6) + 3) / 5 - x0 * (square - 3)
    series = d * series / 4 + (square - 1)
    series = d * series / 3 - x0
    series = d * series / 2 + 1
    table = _cdf_table().astype(x.dtype, copy=False)
    return table[place.astype(np.int64) + FAR * CELLS] + _bell(x0) * d * series


def _bell(x: np.ndarray) -> np.ndarray:
    """Phi'(x) = exp(-x^2 / 2) / sqrt(2 pi)."""
    y = x * x
    y *= -0.5
    np.exp(y, out=y)
    y *= 1 / math.sqrt(2 * math.pi)
    return y


@cache
def _cdf_table() -> np.ndarray:
    places = np.arange(-FAR * CELLS, FAR * CELLS + 1) / CELLS
    table = np.array([math.erfc(-x / math.sqrt(2)) / 2 for x in places])
    table[0] = 0.0  # what is further is read here, and x 0 stays 0 however large x is
    return table


RELU = Activation(relu_forward, relu_backward)
SQUARED_RELU = Activation(squared_relu_forward, squared_relu_backward)
SILU = Activation(silu_forward, silu_backward)
GELUS = {"tanh": Activation(tanh_gelu_forward, tanh_gelu_backward), "none": Activation(gelu_forward, gelu_backward)}


class Gated(NamedTuple):
    opened: np.ndarray
    x: np.ndarray
    activation: Activation
    saved: Any


def gated_forward(gate: np.ndarray, x: np.ndarray, activation: Activation) -> tuple[np.ndarray, Gated]:
    """f(gate) x (Shazeer 2020, "GLU Variants Improve Transformer"): SwiGLU where f is SiLU, GeGLU where it is GELU."""
    opened, saved = activation.forward(gate)
    return opened * x, Gated(opened, x, activation, saved)


def gated_backward(dy: np.ndarray, saved: Gated) -> tuple[np.ndarray, np.ndarray]:
    """By the product rule dgate = dy x f'(gate) and dx = dy f(gate)."""
    return saved.activation.backward(dy * saved.x, saved.saved), dy * saved.opened
