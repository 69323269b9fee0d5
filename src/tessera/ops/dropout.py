"""Dropout: silence a random share of the activations (Srivastava et al. 2014).

On a CPU nearly all of its time is the drawing of random numbers. A number of 64 bits is drawn for four elements, each
of which is kept if its 16 bits are not below share x 2^16: an eighth of the time of a Bernoulli draw each, from the
same generator. The share is thereby rounded to 1 / 65,536, and the scale is that of the rounded one, so that the mean
stays exactly. For the backward pass a byte an element is kept.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

LEVELS = 2**16
SLICE = 2**16
"""How many elements are done at once, so that what lies between the passes stays in the processor's cache."""


def dropout(x: Tensor, share: float) -> Tensor:
    """x * m / (1 - share) with m_i drawn from Bernoulli(1 - share), so that the mean stays; `share` 0 is the identity.

    Pass 0 when the model does not train: there is no flag here to forget.
    """
    if share == 0.0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, share)
    return _Dropout.apply(x, share)


def keep(shape: tuple[int, ...] | torch.Size, share: float, generator: torch.Generator | None = None) -> Tensor:
    """1 for what is kept and 0 for what is dropped, int8, on the CPU."""
    kept = torch.empty(shape, dtype=torch.int8)
    bound = _level(share) - LEVELS // 2  # the 16 bits are read as a signed number
    words = torch.empty(-(-min(SLICE, kept.numel()) // 4), dtype=torch.int64)
    for part in kept.view(-1).split(SLICE):
        n_words = -(-part.numel() // 4)
        words[:n_words].random_(-(2**63), None, generator=generator)
        part.copy_(words.view(torch.int16)[: part.numel()].ge_(bound))
    return kept


def scale_of(share: float) -> float:
    """What the kept are multiplied by."""
    return LEVELS / (LEVELS - _level(share))


def _level(share: float) -> int:
    return min(max(round(share * LEVELS), 1), LEVELS - 1)


class _Dropout(torch.autograd.Function):
    """y = x m s, dx = dy m s."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, share: float) -> Tensor:
        kept = keep(x.shape, share)
        ctx.save_for_backward(kept)
        ctx.scale = scale_of(share)
        return scaled(x, kept, ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return scaled(grad, ctx.saved_tensors[0], ctx.scale), None


def scaled(x: Tensor, kept: Tensor, scale: float) -> Tensor:
    """x * kept * scale."""
    x = x.contiguous()
    y = torch.empty_like(x)
    for a, m, out in zip(*(each.view(-1).split(SLICE) for each in (x, kept, y)), strict=True):
        out.copy_(m).mul_(a).mul_(scale)
    return y
