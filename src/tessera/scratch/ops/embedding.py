"""The embedding: row `id` of a table for each token.

y_n = W_{id_n} is the product of W with a vector that is 1 at id_n and 0 elsewhere, so the gradient of row v is the sum
of dy over the places where v stood:

    dW_v = sum over n with id_n = v of dy_n

Sorted by id, the rows of one token stand side by side, and each sum is of a run.
"""

from typing import NamedTuple

import numpy as np

from tessera.scratch.ops.slices import rows_of


class Saved(NamedTuple):
    ids_N: np.ndarray
    n_rows: int


def embedding_forward(ids: np.ndarray, weight_VD: np.ndarray) -> tuple[np.ndarray, Saved]:
    """A vector for each id, whatever the shape of `ids`."""
    return weight_VD[ids], Saved(ids.reshape(-1), len(weight_VD))


def embedding_backward(dy: np.ndarray, saved: Saved) -> np.ndarray:
    """dweight_VD; ids have no gradient."""
    dy_ND = rows_of(dy)
    dweight_VD = np.zeros((saved.n_rows, dy_ND.shape[1]), dtype=dy.dtype)
    order_N = np.argsort(saved.ids_N, kind="stable")
    sorted_N = saved.ids_N[order_N]
    begins = np.flatnonzero(np.diff(sorted_N, prepend=-1))
    dweight_VD[sorted_N[begins]] = np.add.reduceat(dy_ND[order_N], begins, axis=0)
    return dweight_VD
