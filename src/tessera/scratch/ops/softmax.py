"""Softmax: scores to shares of one.

p_i = exp(s_i) / Z with Z = sum_j exp(s_j). The highest score is taken from all of them first, which changes no share
and keeps exp within what a float can hold. A sink is one more score, c, that takes a share and gives nothing (Xiao et
al. 2023, "Efficient Streaming Language Models with Attention Sinks", eq. 2): Z = exp(c) + sum_j exp(s_j).

    dp_i/ds_j = [i = j] exp(s_i)/Z - exp(s_i) exp(s_j)/Z^2 = p_i ([i = j] - p_j)
    ds_j      = sum_i dp_i p_i ([i = j] - p_j)             = p_j (dp_j - sum_i dp_i p_i)

A score gains what its share is worth above the average. The sink's own share p_c = exp(c)/Z is worth 0:
dc = p_c (0 - sum_i dp_i p_i).
"""

from typing import NamedTuple

import numpy as np

from tessera.scratch.ops.slices import rows_of, slices


class Saved(NamedTuple):
    p: np.ndarray
    p_sink: np.ndarray


def softmax_forward(
    scores: np.ndarray, sinks: np.ndarray | float = -np.inf, out: np.ndarray | None = None
) -> tuple[np.ndarray, Saved]:
    """The shares over the last dimension, in `out` if given (it may be `scores`).

    A score of -inf has no share; not all of a row may be -inf. `sinks` has 1 as its last dimension; -inf is none.
    """
    rows = (*scores.shape[:-1], 1)
    p = np.empty(scores.shape, scores.dtype) if out is None else out
    sinks_N1 = np.broadcast_to(np.asarray(sinks, scores.dtype), rows).reshape(-1, 1)
    p_sink_N1 = np.empty_like(sinks_N1)
    for scores_nS, p_nS, sink_n1, p_sink_n1 in slices(rows_of(scores), rows_of(p), sinks_N1, p_sink_N1):
        highest_n1 = np.maximum(scores_nS.max(axis=1, keepdims=True), sink_n1)
        np.subtract(scores_nS, highest_n1, out=p_nS)
        np.exp(p_nS, out=p_nS)
        np.exp(sink_n1 - highest_n1, out=p_sink_n1)
        total_n1 = p_nS.sum(axis=1, keepdims=True)
        total_n1 += p_sink_n1
        p_nS /= total_n1
        p_sink_n1 /= total_n1
    return p, Saved(p, p_sink_N1.reshape(rows))


def softmax_backward(dp: np.ndarray, saved: Saved) -> tuple[np.ndarray, np.ndarray]:
    """dscores and, of each row, dsink."""
    dscores = np.empty(dp.shape, dp.dtype)
    average = np.empty_like(saved.p_sink)
    for dp_nS, p_nS, dscores_nS, average_n1 in slices(*map(rows_of, (dp, saved.p, dscores, average))):
        np.vecdot(dp_nS, p_nS, out=average_n1[:, 0])
        np.subtract(dp_nS, average_n1, out=dscores_nS)
        dscores_nS *= p_nS
    return dscores, -saved.p_sink * average
