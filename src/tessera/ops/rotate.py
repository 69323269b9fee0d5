"""Rotation of pairs: the arithmetic of rotary positions."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def rotate_halves(x_BTHK: Tensor, cos_TC: Tensor, sin_TC: Tensor) -> Tensor:
    """(a, b) -> (a cos - b sin, a sin + b cos), a and b the halves of each head and C = K / 2."""
    return _Rotation.apply(x_BTHK, cos_TC.unsqueeze(1), sin_TC.unsqueeze(1))


class _Rotation(torch.autograd.Function):
    """Turned forward by the angle and backward by minus the angle, each in four passes over half of the numbers."""

    @staticmethod
    def forward(ctx: Any, x_BTHK: Tensor, cos_T1C: Tensor, sin_T1C: Tensor) -> Tensor:
        ctx.save_for_backward(cos_T1C, sin_T1C)
        return _turn(x_BTHK, cos_T1C, sin_T1C, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BTHK: Tensor) -> tuple[Tensor, None, None]:
        cos_T1C, sin_T1C = ctx.saved_tensors
        return _turn(grad_BTHK, cos_T1C, sin_T1C, -1), None, None


def _turn(x_BTHK: Tensor, cos_T1C: Tensor, sin_T1C: Tensor, way: int) -> Tensor:
    """Turn by `way` times the angle."""
    cos_T1C, sin_T1C = cos_T1C.to(x_BTHK.dtype), sin_T1C.to(x_BTHK.dtype)
    a, b = x_BTHK.chunk(2, dim=-1)
    y_BTHK = torch.empty_like(x_BTHK)
    y_a, y_b = y_BTHK.chunk(2, dim=-1)
    torch.mul(a, cos_T1C, out=y_a).addcmul_(b, sin_T1C, value=-way)
    torch.mul(b, cos_T1C, out=y_b).addcmul_(a, sin_T1C, value=way)
    return y_BTHK
