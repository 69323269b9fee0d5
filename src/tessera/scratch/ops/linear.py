"""The linear map, where nearly all multiplications of the model are.

Row n of the output is y_o = sum_i x_i W_oi + b_o. With dy_no the gradient at output o of row n:

    dx_i  = sum_o dy_o  dy_o/dx_i              = sum_o dy_o W_oi       dx = dy W
    dW_oi = sum_n dy_no dy_no/dW_oi            = sum_n dy_no x_ni      dW = dy^T x
    db_o  = sum_n dy_no dy_no/db_o             = sum_n dy_no           db = the sum of the rows of dy

A weight and a bias serve all rows, so their gradients are sums over the rows.
"""

from typing import NamedTuple

import numpy as np

from tessera.scratch.ops.slices import rows_of


class Saved(NamedTuple):
    x_NI: np.ndarray
    weight_OI: np.ndarray
    has_bias: bool


def linear_forward(x: np.ndarray, weight_OI: np.ndarray, bias_O: np.ndarray | None = None) -> tuple[np.ndarray, Saved]:
    """x W^T + b over the last dimension; any leading shape, as one product of two matrices."""
    x_NI = rows_of(x)
    y_NO = x_NI @ weight_OI.T
    if bias_O is not None:
        y_NO += bias_O
    return y_NO.reshape(*x.shape[:-1], -1), Saved(x_NI, weight_OI, bias_O is not None)


def linear_backward(dy: np.ndarray, saved: Saved) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """dx, dweight and dbias (None without a bias)."""
    dy_NO = rows_of(dy)
    dx_NI = dy_NO @ saved.weight_OI
    dweight_OI = dy_NO.T @ saved.x_NI
    dbias_O = dy_NO.sum(axis=0) if saved.has_bias else None
    return dx_NI.reshape(*dy.shape[:-1], -1), dweight_OI, dbias_O
