"""Dropout: silence a random share of the activations (Srivastava et al. 2014)."""

import torch
from torch import Tensor


def dropout(x: Tensor, share: float) -> Tensor:
    """x * m / (1 - share) with m_i drawn from Bernoulli(1 - share), so that the mean stays; `share` 0 is the identity.

    Pass 0 when the model does not train: there is no flag here to forget.
    """
    if share == 0.0:
        return x
    return x * torch.empty_like(x).bernoulli_(1.0 - share).div_(1.0 - share)
