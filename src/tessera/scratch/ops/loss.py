"""Cross-entropy: the average surprise, -log p(target), in nats.

With the logits x of a row, Z = sum_j exp(x_j) and p = softmax(x), the loss of the row is

    l = -log p_target = log Z - x_target
    dl/dx_j = exp(x_j)/Z - [j = target] = p_j - [j = target]

what the model said minus what was right. The loss is the mean over the n targets that count, so each row's gradient is
divided by n; rows whose target is IGNORE have neither loss nor gradient.
"""

from typing import NamedTuple

import numpy as np

from tessera.errors import InputError

IGNORE = -100
"""The target that stands where there is nothing to learn."""


class Saved(NamedTuple):
    p_NV: np.ndarray
    targets_N: np.ndarray


def counted(targets: np.ndarray, n_vocab: int) -> np.ndarray:
    """The places in the flattened `targets` that count.

    No such place (the mean would be 0 / 0) or an id that does not exist is an `InputError`.
    """
    targets_N = targets.reshape(-1)
    places = np.flatnonzero(targets_N != IGNORE)
    if len(places) == 0:
        raise InputError(f"all {len(targets_N)} targets of the batch are ignored: there is nothing to learn from")
    low, high = int(targets_N[places].min()), int(targets_N[places].max())
    if low < 0 or high >= n_vocab:
        raise InputError(f"target {low if low < 0 else high} is outside of the vocabulary of {n_vocab}")
    return places


def cross_entropy_forward(logits_NV: np.ndarray, targets_N: np.ndarray) -> tuple[float, Saved]:
    """The mean loss of the rows; every target counts (see `counted`)."""
    rows = np.arange(len(targets_N))
    p_NV = logits_NV - logits_NV.max(axis=1, keepdims=True)
    right_N = p_NV[rows, targets_N]
    np.exp(p_NV, out=p_NV)
    total_N1 = p_NV.sum(axis=1, keepdims=True)
    p_NV /= total_N1
    losses_N = np.log(total_N1[:, 0]) - right_N
    return float(losses_N.mean(dtype=np.float64)), Saved(p_NV, targets_N)


def cross_entropy_backward(dloss: float, saved: Saved) -> np.ndarray:
    """dlogits_NV; `dloss` is 1 where the loss is the end of it all."""
    p_NV, targets_N = saved
    share = dloss / len(targets_N)
    dlogits_NV = p_NV * share
    dlogits_NV[np.arange(len(targets_N)), targets_N] -= share
    return dlogits_NV
