"""Norms: keep the scale of the residual stream in hand."""

from typing import Any

import numpy as np

from tessera.errors import SettingError
from tessera.scratch.ops.norm import layer_norm_backward, layer_norm_forward, rms_norm_backward, rms_norm_forward
from tessera.scratch.parameter import Parameter


class NoNorm:
    """The identity. Base of the others, which override all."""

    @property
    def parameters(self) -> dict[str, Parameter]:
        return {}

    def forward(self, x: np.ndarray) -> tuple[np.ndarray, Any]:
        return x, None

    def backward(self, dy: np.ndarray, saved: Any) -> np.ndarray:
        return dy


class LayerNorm(NoNorm):
    """(x - mean(x)) / sqrt(var(x) + eps) * weight + bias (Ba et al. 2016); no shift if `bias` is off."""

    def __init__(self, *, d_model: int, eps: float = 1e-5, bias: bool = True, dtype: Any = np.float32) -> None:
        self.eps = _positive(eps)
        self.weight = Parameter(np.ones(d_model, dtype))
        self.bias = Parameter(np.zeros(d_model, dtype)) if bias else None

    @property
    def parameters(self) -> dict[str, Parameter]:
        return {"weight": self.weight} | ({} if self.bias is None else {"bias": self.bias})

    def forward(self, x: np.ndarray) -> tuple[np.ndarray, Any]:
        return layer_norm_forward(x, self.weight.data, None if self.bias is None else self.bias.data, self.eps)

    def backward(self, dy: np.ndarray, saved: Any) -> np.ndarray:
        dx, dweight, dbias = layer_norm_backward(dy, saved)
        self.weight.add_grad(dweight)
        if self.bias is not None and dbias is not None:
            self.bias.add_grad(dbias)
        return dx


class RMSNorm(NoNorm):
    """x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich 2019)."""

    def __init__(self, *, d_model: int, eps: float = 1e-5, dtype: Any = np.float32) -> None:
        self.eps = _positive(eps)
        self.weight = Parameter(np.ones(d_model, dtype))

    @property
    def parameters(self) -> dict[str, Parameter]:
        return {"weight": self.weight}

    def forward(self, x: np.ndarray) -> tuple[np.ndarray, Any]:
        return rms_norm_forward(x, self.weight.data, self.eps)

    def backward(self, dy: np.ndarray, saved: Any) -> np.ndarray:
        dx, dweight = rms_norm_backward(dy, saved)
        self.weight.add_grad(dweight)
        return dx


def _positive(eps: float) -> float:
    if eps <= 0:
        raise SettingError("eps", eps, "a positive number")
    return eps


NORMS = {"layer": LayerNorm, "rms": RMSNorm, "none": NoNorm}
