"""Products in numbers of 8 bits: twice the arithmetic of bf16 on the GPUs that have it, and half the memory traffic.

    e4m3   4 bits of exponent, 3 of mantissa: to 448, no infinity     for what goes forward, weights and activations
    e5m2   5 bits of exponent, 2 of mantissa: to 57,344               for gradients, which need range more than digits

(Micikevicius et al. 2022, "FP8 Formats for Deep Learning", sections 3 and 4.2). Neither has the range of a tensor by
itself, so each tensor is brought into it by a scale of its own, taken from its largest number, at each use:

    x8 = cast(x s),  s = largest of the format / max |x|            a b = (a8 b8) / (s_a s_b), summed up in fp32

A cast rounds to nearest and saturates. What is not finite makes the scale, and by it the whole product, NaN: it is seen
by whoever looks at the loss. Nothing here asks the device for a number.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
MULTIPLE = 16
"""Every size of a product must be a multiple of this: the kernels read 16 bytes at once."""


def scale_of(x: Tensor, dtype: torch.dtype) -> Tensor:
    """What to multiply `x` by, so that its largest number is the format's largest; 1 for zeros, NaN for a NaN.

    >>> scale_of(torch.tensor([0.5, -2.0]), E4M3).item()
    224.0
    """
    largest = x.detach().abs().amax().float()
    # Below it the scale would be infinite; what is so small is as good as zero.
    smallest = torch.finfo(dtype).max / torch.finfo(torch.float32).max
    scale = torch.finfo(dtype).max / largest.clamp(min=2 * smallest)
    return torch.where(largest == 0, torch.ones_like(scale), scale)


def to_float8(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """x * scale in 8 bits; beyond the format's largest number it saturates, and NaN stays NaN."""
    largest = torch.finfo(dtype).max
    return (x.float() * scale).clamp(-largest, largest).to(dtype)


def from_float8(x8: Tensor, scale: Tensor) -> Tensor:
    """The fp32 numbers that `x8` stands for."""
    return x8.float() / scale


def product(a8_NK: Tensor, b8_MK: Tensor, scale_a: Tensor, scale_b: Tensor, dtype: torch.dtype) -> Tensor:
    """a b^T of what the two stand for, (N, M), in `dtype`; both have their rows one after the other in memory."""
    if not a8_NK.is_cuda:
        return plain_product(a8_NK, b8_MK, scale_a, scale_b, dtype)
    # A quick sum rounds what it has added up so far. Good enough forward (e4m3 twice), not for gradients.
    quick = a8_NK.dtype == b8_MK.dtype
    back_a, back_b = scale_a.reciprocal(), scale_b.reciprocal()
    return torch._scaled_mm(a8_NK, b8_MK.t(), scale_a=back_a, scale_b=back_b, out_dtype=dtype, use_fast_accum=quick)


def plain_product(a8_NK: Tensor, b8_MK: Tensor, scale_a: Tensor, scale_b: Tensor, dtype: torch.dtype) -> Tensor:
    """The same in fp32 on any device: the numbers of 8 bits are exact in it."""
    with torch.autocast(a8_NK.device.type, enabled=False):
        return ((a8_NK.float() @ b8_MK.float().t()) / (scale_a * scale_b)).to(dtype)


def float8_linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None, dtype: torch.dtype) -> Tensor:
    """x W^T + b in `dtype`, with this product and the two of its backward pass in 8 bits; `weight_OI` stays as it is.

    All sizes, that of x's rows too, must be multiples of `MULTIPLE` (`fits` tells).
    """
    y = _Float8Linear.apply(x, weight_OI, dtype)
    return y if bias_O is None else y + bias_O.to(dtype)


def fits(n_rows: int, d_in: int, d_out: int) -> bool:
    return not (n_rows % MULTIPLE or d_in % MULTIPLE or d_out % MULTIPLE)


class _Float8Linear(torch.autograd.Function):
    """y = x W^T, dx = dy W, dW = dy^T x. What is kept for the backward pass is in 8 bits already."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_OI: Tensor, dtype: torch.dtype) -> Tensor:
        x_NI = x.reshape(-1, x.shape[-1])
        scale_x, scale_w = scale_of(x_NI, E4M3), scale_of(weight_OI, E4M3)
        x8_NI, w8_OI = to_float8(x_NI, scale_x, E4M3), to_float8(weight_OI, scale_w, E4M3)
        ctx.save_for_backward(x8_NI, w8_OI, scale_x, scale_w)
        ctx.dtypes, ctx.dtype, ctx.shape = (x.dtype, weight_OI.dtype), dtype, x.shape
        return product(x8_NI, w8_OI, scale_x, scale_w, dtype).view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x8_NI, w8_OI, scale_x, scale_w = ctx.saved_tensors
        x_dtype, w_dtype = ctx.dtypes
        grad_NO = grad.reshape(-1, grad.shape[-1])
        scale_g = scale_of(grad_NO, E5M2)
        g8_NO = to_float8(grad_NO, scale_g, E5M2)
        grad_x = grad_w = None
        if ctx.needs_input_grad[0]:
            grad_x = product(g8_NO, _turned(w8_OI), scale_g, scale_w, ctx.dtype).to(x_dtype)
            grad_x = grad_x.view(ctx.shape)
        if ctx.needs_input_grad[1]:
            grad_w = product(_turned(g8_NO), _turned(x8_NI), scale_g, scale_x, torch.float32).to(w_dtype)
        return grad_x, grad_w, None


def _turned(x_NM: Tensor) -> Tensor:
    """The transpose, its rows one after the other."""
    return x_NM.t().contiguous()
