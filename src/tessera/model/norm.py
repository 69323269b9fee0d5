"""Norms: keep the scale of the residual stream in hand."""

import torch
from torch import Tensor, nn

from tessera.errors import SettingError
from tessera.ops.norm import layer_norm, rms_norm


class NoNorm(nn.Module):
    """The identity: for the ablation that shows what a norm is for."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        return x_BTD


class LayerNorm(nn.Module):
    """(x - mean(x)) / sqrt(var(x) + eps) * weight + bias (Ba et al. 2016); no shift if `bias` is off."""

    def __init__(self, *, d_model: int, eps: float = 1e-5, bias: bool = True) -> None:
        super().__init__()
        self.eps = _positive(eps)
        self.weight = nn.Parameter(torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model)) if bias else None

    def forward(self, x_BTD: Tensor) -> Tensor:
        return layer_norm(x_BTD, self.weight, self.bias, self.eps)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich 2019)."""

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
