"""Normalisation of the last dimension: LayerNorm (Ba et al. 2016) and RMSNorm (Zhang and Sennrich 2019).

Both scale by r and then by a weight, y = u w + b with u = r (x - m). For LayerNorm m = mean(x) and r = 1 /
sqrt(mean((x - m)^2) + eps); RMSNorm has m = 0 and no b. With g = dy w, the gradient at u, and D numbers in a row:

    dr/dx_j   = -r^3 (x_j - m) / D             = -r^2 u_j / D
    du_i/dx_j = r [i = j] - r dm/dx_j + (x_i - m) dr/dx_j
              = r ([i = j] - 1/D - u_i u_j / D)             without the 1/D where m = 0

    dx_j = sum_i g_i du_i/dx_j = r (g_j - mean(g) - u_j mean(g u))
    dw_j = sum over rows of dy_j u_j           db_j = sum over rows of dy_j

So a norm takes two directions out of the gradient: the one that shifts the row and the one that stretches it.
"""

from typing import NamedTuple

import numpy as np

from tessera.scratch.ops.slices import rows_of, slices


class Saved(NamedTuple):
    u_ND: np.ndarray
    r_N1: np.ndarray
    weight_D: np.ndarray
    has_bias: bool = False


def layer_norm_forward(
    x: np.ndarray, weight_D: np.ndarray, bias_D: np.ndarray | None, eps: float
) -> tuple[np.ndarray, Saved]:
    """(x - mean(x)) / sqrt(var(x) + eps) * weight + bias, with the biased variance; any leading shape."""
    x_ND = rows_of(x)
    y_ND, u_ND, r_N1 = _room(x_ND)
    for x_nD, y_nD, u_nD, r_n1 in slices(x_ND, y_ND, u_ND, r_N1):
        np.subtract(x_nD, x_nD.mean(axis=1, keepdims=True), out=u_nD)
        r_n1[:] = _inverse_root(u_nD, eps)
        u_nD *= r_n1
        np.multiply(u_nD, weight_D, out=y_nD)
        if bias_D is not None:
            y_nD += bias_D
    return y_ND.reshape(x.shape), Saved(u_ND, r_N1, weight_D, bias_D is not None)


def layer_norm_backward(dy: np.ndarray, saved: Saved) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """dx, dweight and dbias (None without a bias)."""
    u_ND, r_N1, weight_D, has_bias = saved
    dy_ND = rows_of(dy)
    dx_ND, dweight_D = np.empty_like(u_ND), np.zeros_like(weight_D)
    for dy_nD, u_nD, r_n1, dx_nD in slices(dy_ND, u_ND, r_N1, dx_ND):
        g_nD = dy_nD * weight_D
        np.subtract(g_nD, _stretch(g_nD, u_nD), out=dx_nD)
        dx_nD -= g_nD.mean(axis=1, keepdims=True)
        dx_nD *= r_n1
        dweight_D += (dy_nD * u_nD).sum(axis=0)
    return dx_ND.reshape(dy.shape), dweight_D, dy_ND.sum(axis=0) if has_bias else None


def rms_norm_forward(x: np.ndarray, weight_D: np.ndarray, eps: float) -> tuple[np.ndarray, Saved]:
    """x / sqrt(mean(x^2) + eps) * weight; any leading shape."""
    x_ND = rows_of(x)
    y_ND, u_ND, r_N1 = _room(x_ND)
    for x_nD, y_nD, u_nD, r_n1 in slices(x_ND, y_ND, u_ND, r_N1):
        r_n1[:] = _inverse_root(x_nD, eps)
        np.multiply(x_nD, r_n1, out=u_nD)
        np.multiply(u_nD, weight_D, out=y_nD)
    return y_ND.reshape(x.shape), Saved(u_ND, r_N1, weight_D)


def rms_norm_backward(dy: np.ndarray, saved: Saved) -> tuple[np.ndarray, np.ndarray]:
    """dx and dweight."""
    u_ND, r_N1, weight_D, _ = saved
    dx_ND, dweight_D = np.empty_like(u_ND), np.zeros_like(weight_D)
    for dy_nD, u_nD, r_n1, dx_nD in slices(rows_of(dy), u_ND, r_N1, dx_ND):
        np.multiply(dy_nD, weight_D, out=dx_nD)
        dx_nD -= _stretch(dx_nD, u_nD)
        dx_nD *= r_n1
        dweight_D += (dy_nD * u_nD).sum(axis=0)
    return dx_ND.reshape(dy.shape), dweight_D


def _room(x_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For y, u and r."""
    return np.empty_like(x_ND), np.empty_like(x_ND), np.empty((len(x_ND), 1), x_ND.dtype)


def _inverse_root(x_ND: np.ndarray, eps: float) -> np.ndarray:
    """1 / sqrt(mean(x^2) + eps) of each row, (N, 1)."""
    return 1 / np.sqrt(np.vecdot(x_ND, x_ND)[:, None] / x_ND.shape[1] + eps)


def _stretch(g_ND: np.ndarray, u_ND: np.ndarray) -> np.ndarray:
    """u mean(g u): what of g would stretch the row."""
    return u_ND * (np.vecdot(g_ND, u_ND)[:, None] / u_ND.shape[1])
