"""Filters: which tokens may still be drawn, as pure functions on logits.

Each sets what it drops to -inf and judges what the one before it left: the probabilities that a filter looks at are
those of the tokens still there. Where two are equal the lower id comes first, so that a filter keeps the same tokens
everywhere. `logits_BV` may have any leading shape.

Here they are as their formulas say. `rows.py` does the same for one row at a time, in a fraction of the time, and is
what answers are made by.
"""

import math

import numpy as np

from tessera.errors import SettingError
from tessera.generate.logits import log_softmax
from tessera.generate.settings import Sampling


def shaped_plainly(logits_BV: np.ndarray, sampling: Sampling) -> np.ndarray:
    """The temperature, which is not 0, and the filters, in their order."""
    if sampling.temperature != 1.0:
        logits_BV = temperature(logits_BV, sampling.temperature)
    if sampling.top_k is not None:
        logits_BV = top_k(logits_BV, sampling.top_k)
    if sampling.top_p is not None:
        logits_BV = top_p(logits_BV, sampling.top_p)
    if sampling.min_p is not None:
        logits_BV = min_p(logits_BV, sampling.min_p)
    if sampling.typical is not None:
        logits_BV = typical(logits_BV, sampling.typical)
    return logits_BV


def temperature(logits_BV: np.ndarray, temperature: float) -> np.ndarray:
    """(logits - max) / temperature: the maximum is taken off, which changes no probability, so that none is too
    small."""
    if not 0.0 < temperature < math.inf:
        raise SettingError("temperature", temperature, "a number greater than 0")
    kind = logits_BV.dtype.type
    smallest = float(np.finfo(kind).tiny)  # below it the quotient of two zeros would come up
    with np.errstate(over="ignore"):  # a difference that is too large to write is impossible
        return (logits_BV - _largest(logits_BV)) / kind(max(temperature, smallest))


def top_k(logits_BV: np.ndarray, k: int) -> np.ndarray:
    """Keep exactly the k largest of each row (Fan et al. 2018)."""
    if k < 1:
        raise SettingError("top_k", k, "a whole number, 1 or greater")
    if k >= logits_BV.shape[-1]:
        return logits_BV
    least_B1 = np.partition(logits_BV, -k, axis=-1)[..., -k, None]
    return _keep_first(logits_BV, least_B1, np.full(least_B1.shape, k))


def top_p(logits_BV: np.ndarray, p: float) -> np.ndarray:
    """Keep the fewest largest of each row whose probabilities reach p (nucleus sampling, Holtzman et al. 2020).

    A token is kept if the tokens before it add up to less than p, so that one always is.
    """
    if not 0.0 < p <= 1.0:
        raise SettingError("top_p", p, "a share, greater than 0 and at most 1")
    if p == 1.0:
        return logits_BV
    sorted_BV = np.sort(logits_BV, axis=-1)[..., ::-1]
    probs_BV = np.exp(log_softmax(sorted_BV.astype(np.float64)))
    before_BV = probs_BV.cumsum(axis=-1) - probs_BV
    n_kept_B1 = (before_BV < p).sum(axis=-1, keepdims=True)
    return _keep_first(logits_BV, np.take_along_axis(sorted_BV, n_kept_B1 - 1, axis=-1), n_kept_B1)


def min_p(logits_BV: np.ndarray, p: float) -> np.ndarray:
    """Keep those with probability >= p times the largest (Nguyen et al. 2024): logit >= max + log(p)."""
    if not 0.0 <= p <= 1.0:
        raise SettingError("min_p", p, "a share, from 0 to 1")
    if p == 0.0:
        return logits_BV
    least_B1 = _largest(logits_BV) + logits_BV.dtype.type(math.log(p))
    return _only(logits_BV, logits_BV >= least_B1)


def typical(logits_BV: np.ndarray, p: float) -> np.ndarray:
    """Keep the fewest tokens nearest to the expected surprise that reach p (Meister et al. 2023).

    Sorted by |-log q(v) - H(q)|, where H is the entropy of the row's distribution q; a token is kept if those before it
    add up to less than p. The most probable token may be dropped.
    """
    if not 0.0 < p <= 1.0:
        raise SettingError("typical", p, "a share, greater than 0 and at most 1")
    if p == 1.0:
        return logits_BV
    surprise_BV = -log_softmax(logits_BV.astype(np.float64))
    probs_BV = np.exp(-surprise_BV)
    # What is impossible adds nothing to the entropy: 0 times infinity is 0 here.
    parts_BV = np.multiply(probs_BV, surprise_BV, out=np.zeros_like(probs_BV), where=probs_BV > 0)
    order_BV = np.abs(surprise_BV - parts_BV.sum(axis=-1, keepdims=True)).argsort(axis=-1, kind="stable")
    sorted_BV = np.take_along_axis(probs_BV, order_BV, axis=-1)
    kept_BV = np.zeros(logits_BV.shape, dtype=bool)
    np.put_along_axis(kept_BV, order_BV, sorted_BV.cumsum(axis=-1) - sorted_BV < p, axis=-1)
    return _only(logits_BV, kept_BV)


def _largest(logits_BV: np.ndarray) -> np.ndarray:
    return logits_BV.max(axis=-1, keepdims=True)


def _only(logits_BV: np.ndarray, kept_BV: np.ndarray) -> np.ndarray:
    return np.where(kept_BV, logits_BV, logits_BV.dtype.type(-np.inf))


def _keep_first(logits_BV: np.ndarray, least_B1: np.ndarray, n_kept_B1: np.ndarray) -> np.ndarray:
    """The `n_kept_B1` largest of each row, of which the least is `least_B1`; of those equal to it, the lowest ids."""
    above_BV, equal_BV = logits_BV > least_B1, logits_BV == least_B1
    room_B1 = n_kept_B1 - above_BV.sum(axis=-1, keepdims=True)
    return _only(logits_BV, above_BV | (equal_BV & (equal_BV.cumsum(axis=-1) <= room_B1)))
