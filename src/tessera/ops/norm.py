"""Normalisation of the last dimension: LayerNorm (Ba et al. 2016) and RMSNorm (Zhang and Sennrich 2019).

Each is the plain formula and a faster twin, which on a CPU is one with fewer passes over memory: LayerNorm is PyTorch's
kernel, and RMSNorm borrows its backward pass. Statistics are taken in fp32 whatever the type of the input.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from tessera.ops.kernels import DTYPES, kernels_for


def plain_layer_norm(x_ND: Tensor, weight_D: Tensor, bias_D: Tensor | None, eps: float) -> Tensor:
    """(x - mean(x)) / sqrt(var(x) + eps) * weight + bias, with the biased variance."""
    x = _at_least_fp32(x_ND)
    variance, mean = torch.var_mean(x, dim=-1, correction=0, keepdim=True)
    y = (x - mean) * torch.rsqrt(variance + eps) * weight_D
    return (y if bias_D is None else y + bias_D).to(x_ND.dtype)


def plain_rms_norm(x_ND: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight."""
    x = _at_least_fp32(x_ND)
    return (x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps) * weight_D).to(x_ND.dtype)


def layer_norm(x_ND: Tensor, weight_D: Tensor, bias_D: Tensor | None, eps: float) -> Tensor:
    """`plain_layer_norm` by PyTorch's kernel; any leading shape."""
    x = _at_least_fp32(x_ND)
    bias_D = None if bias_D is None else bias_D.to(x.dtype)
    return F.layer_norm(x, weight_D.shape, weight_D.to(x.dtype), bias_D, eps).to(x_ND.dtype)


def rms_norm(x_ND: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """`plain_rms_norm`, with its backward written by hand; any leading shape."""
    kernels = kernels_for(x_ND)
    if kernels is not None and weight_D.dtype in DTYPES:
        return kernels.rms_norm(x_ND, weight_D, eps)
    return _RMSNorm.apply(x_ND, weight_D, eps)


class _RMSNorm(torch.autograd.Function):
    """y = u w with u = r x and r = 1 / sqrt(mean(x^2) + eps); dx = r (g w - u mean(g w u)), dw = sum(g u).

    LayerNorm's kernel, told that the mean is 0, gives dw and r (g w - u mean(g w u) - mean(g w)): the last term is put
    back.
    """

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        x = _at_least_fp32(x_ND)
        scale_N1 = _inverse_rms(x, eps)
        ctx.save_for_backward(x, scale_N1, weight_D)
        ctx.dtype = x_ND.dtype
        return (x * scale_N1).mul_(weight_D).to(x_ND.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor, Tensor, None]:
        x_ND, scale_N1, weight_D = ctx.saved_tensors
        grad, weight = grad_ND.to(x_ND.dtype).contiguous(), weight_D.to(x_ND.dtype)
        grad_x, grad_weight, _ = torch.ops.aten.native_layer_norm_backward(
            grad, x_ND, weight.shape, torch.zeros_like(scale_N1), scale_N1, weight, None, [True, True, False]
        )
        grad_x.add_((grad @ weight).unsqueeze(-1) * scale_N1 / len(weight))
        return grad_x.to(ctx.dtype), grad_weight.to(weight_D.dtype), None


def _inverse_rms(x_ND: Tensor, eps: float) -> Tensor:
    """1 / sqrt(mean(x^2) + eps), (N, 1), reading x once."""
    norm_N1 = torch.linalg.vector_norm(x_ND, dim=-1, keepdim=True)
    return norm_N1.square_().div_(x_ND.shape[-1]).add_(eps).rsqrt_()


def _at_least_fp32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
