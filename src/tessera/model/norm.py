"""Norms: keep the scale of the residual stream in hand.

LayerNorm centres and scales (Ba et al. 2016), RMSNorm only scales (Zhang and Sennrich 2019). Both work on the last
dimension; the statistics are taken in fp32 whatever the type of the input.
"""

import torch
from torch import Tensor, nn

from tessera.errors import SettingError


def layer_norm(x_BTD: Tensor, weight_D: Tensor, bias_D: Tensor | None, eps: float) -> Tensor:
    """(x - mean(x)) / sqrt(var(x) + eps) * weight + bias, with the biased variance."""
    x = _at_least_fp32(x_BTD)
    variance, mean = torch.var_mean(x, dim=-1, correction=0, keepdim=True)
    y = ((x - mean) * torch.rsqrt(variance + eps)).to(x_BTD.dtype) * weight_D
    return y if bias_D is None else y + bias_D


def rms_norm(x_BTD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight."""
    x = _at_least_fp32(x_BTD)
    return (x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps)).to(x_BTD.dtype) * weight_D


def _at_least_fp32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


class NoNorm(nn.Module):
    """The identity: for the ablation that shows what a norm is for."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        return x_BTD


class LayerNorm(nn.Module):
    """Zero mean, unit variance, then a learned scale and (unless `bias` is off) shift."""

    def __init__(self, *, d_model: int, eps: float = 1e-5, bias: bool = True) -> None:
        super().__init__()
        self.eps = _positive(eps)
        self.weight = nn.Parameter(torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model)) if bias else None

    def forward(self, x_BTD: Tensor) -> Tensor:
        return layer_norm(x_BTD, self.weight, self.bias, self.eps)


class RMSNorm(nn.Module):
    """Unit root mean square, then a learned scale."""

    def __init__(self, *, d_model: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = _positive(eps)
        self.weight = nn.Parameter(torch.ones(d_model))

    def forward(self, x_BTD: Tensor) -> Tensor:
        return rms_norm(x_BTD, self.weight, self.eps)


def _positive(eps: float) -> float:
    if eps <= 0:
        raise SettingError("eps", eps, "a positive number")
    return eps


NORMS = {"layer": LayerNorm, "rms": RMSNorm, "none": NoNorm}
