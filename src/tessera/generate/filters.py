"""Filters: which tokens may still be drawn, as pure functions on logits.

Each sets what it drops to -inf and judges what the one before it left: the probabilities that a filter looks at are
those of the tokens still there. Where two are equal the lower id comes first, so that a filter keeps the same tokens
everywhere. `logits_BV` may have any leading shape. `rows.py` does the same for one row on a CPU, faster.
"""

import math

import torch
from torch import Tensor

from tessera.errors import SettingError


def greedy(logits_BV: Tensor) -> Tensor:
    """The id of the largest logit in each row."""
    return logits_BV.argmax(dim=-1)


def temperature(logits_BV: Tensor, temperature: float) -> Tensor:
    """(logits - max) / temperature: the maximum is taken off, which changes no probability, so that none is too
    small."""
    if not 0.0 < temperature < math.inf:
        raise SettingError("temperature", temperature, "a number greater than 0")
    smallest = torch.finfo(logits_BV.dtype).tiny  # below it the quotient of two zeros would come up
    return (logits_BV - logits_BV.amax(dim=-1, keepdim=True)) / max(temperature, smallest)


def top_k(logits_BV: Tensor, k: int) -> Tensor:
    """Keep exactly the k largest of each row (Fan et al. 2018)."""
    if k < 1:
        raise SettingError("top_k", k, "a whole number, 1 or greater")
    if k >= logits_BV.shape[-1]:
        return logits_BV
    least_B1 = logits_BV.topk(k, dim=-1).values[..., -1:]
    return _keep_first(logits_BV, least_B1, torch.full_like(least_B1, k, dtype=torch.long))


def top_p(logits_BV: Tensor, p: float) -> Tensor:
    """Keep the fewest largest of each row whose probabilities reach p (nucleus sampling, Holtzman et al. 2020).

    A token is kept if the tokens before it add up to less than p, so that one always is.
    """
    if not 0.0 < p <= 1.0:
        raise SettingError("top_p", p, "a share, greater than 0 and at most 1")
    if p == 1.0:
        return logits_BV
    sorted_BV = logits_BV.sort(dim=-1, descending=True).values
    probs_BV = sorted_BV.double().softmax(dim=-1)
    before_BV = probs_BV.cumsum(dim=-1) - probs_BV
    n_kept_B1 = (before_BV < p).sum(dim=-1, keepdim=True)
    return _keep_first(logits_BV, sorted_BV.gather(-1, n_kept_B1 - 1), n_kept_B1)


def min_p(logits_BV: Tensor, p: float) -> Tensor:
    """Keep those with probability >= p times the largest (Nguyen et al. 2024): logit >= max + log(p)."""
    if not 0.0 <= p <= 1.0:
        raise SettingError("min_p", p, "a share, from 0 to 1")
    if p == 0.0:
        return logits_BV
    least_B1 = logits_BV.amax(dim=-1, keepdim=True) + math.log(p)
    return logits_BV.masked_fill(logits_BV < least_B1, -math.inf)


def typical(logits_BV: Tensor, p: float) -> Tensor:
    """Keep the fewest tokens nearest to the expected surprise that reach p (Meister et al. 2023).

    Sorted by |-log q(v) - H(q)|, where H is the entropy of the row's distribution q; a token is kept if those before it
    add up to less than p. The most probable token may be dropped.
    """
    if not 0.0 < p <= 1.0:
        raise SettingError("typical", p, "a share, greater than 0 and at most 1")
    if p == 1.0:
        return logits_BV
    probs_BV = logits_BV.double().softmax(dim=-1)
    surprise_BV = -logits_BV.double().log_softmax(dim=-1)
    entropy_B1 = (probs_BV * surprise_BV).nansum(dim=-1, keepdim=True)
    order_BV = (surprise_BV - entropy_B1).abs().argsort(dim=-1, stable=True)
    sorted_BV = probs_BV.gather(-1, order_BV)
    kept_BV = torch.zeros_like(order_BV, dtype=torch.bool)
    kept_BV.scatter_(-1, order_BV, sorted_BV.cumsum(dim=-1) - sorted_BV < p)
    return logits_BV.masked_fill(~kept_BV, -math.inf)


def _keep_first(logits_BV: Tensor, least_B1: Tensor, n_kept_B1: Tensor) -> Tensor:
    """The `n_kept_B1` largest of each row, of which the least is `least_B1`; of those equal to it, the lowest ids."""
    above_BV, equal_BV = logits_BV > least_B1, logits_BV == least_B1
    room_B1 = n_kept_B1 - above_BV.sum(dim=-1, keepdim=True)
    kept_BV = above_BV | (equal_BV & (equal_BV.cumsum(dim=-1) <= room_B1))
    return logits_BV.masked_fill(~kept_BV, -math.inf)
