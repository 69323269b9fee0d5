"""RMSNorm as two kernels, a row at a time: y = r x w with r = 1 / sqrt(mean(x^2) + eps)."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

PROGRAMS = 512
"""Among how many programs the rows of a backward pass are shared: each has a row of sums for the weight's gradient."""


def rms_norm(x_ND: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight of the last dimension; any leading shape."""
    return _RMSNorm.apply(x_ND, weight_D, eps)


class _RMSNorm(torch.autograd.Function):
    """With u = r x: dx = r (g w - u mean(g w u)), dw = sum(g u)."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        width = x_ND.shape[-1]
        rows_ND = x_ND.reshape(-1, width).contiguous()
        weight_D = weight_D.contiguous()
        y_ND = torch.empty_like(rows_ND)
        scales_N = torch.empty(len(rows_ND), dtype=torch.float32, device=x_ND.device)
        _rms_norm_forward[(len(rows_ND),)](
            rows_ND, weight_D, y_ND, scales_N, width, eps, BLOCK=triton.next_power_of_2(width)
        )
        ctx.save_for_backward(rows_ND, weight_D, scales_N)
        return y_ND.view(x_ND.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor, Tensor, None]:
        rows_ND, weight_D, scales_N = ctx.saved_tensors
        n_rows, width = rows_ND.shape
        programs = min(PROGRAMS, n_rows)
        grad_rows_ND = torch.empty_like(rows_ND)
        sums_PD = torch.empty(programs, width, dtype=torch.float32, device=rows_ND.device)
        grad = grad_ND.reshape(-1, width).contiguous()
        _rms_norm_backward[(programs,)](
            grad, rows_ND, weight_D, scales_N, grad_rows_ND, sums_PD, n_rows, width, BLOCK=triton.next_power_of_2(width)
        )
        return grad_rows_ND.view(grad_ND.shape), sums_PD.sum(dim=0).to(weight_D.dtype), None


@triton.jit
def _rms_norm_forward(rows, weight, out, scales, width, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    x = tl.load(rows + row * width + columns, mask=inside, other=0.0).to(tl.float32)
    w = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(x * x, axis=0) / width + eps)
    tl.store(scales + row, scale)
    tl.store(out + row * width + columns, (x * scale * w).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _rms_norm_backward(grad, rows, weight, scales, grad_rows, sums, n_rows, width, BLOCK: tl.constexpr):
    program = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    w = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for row in range(program, n_rows, tl.num_programs(0)):
        x = tl.load(rows + row * width + columns, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(grad + row * width + columns, mask=inside, other=0.0).to(tl.float32)
        scale = tl.load(scales + row)
        unit = x * scale
        total += g * unit
        g = g * w
        dx = scale * (g - unit * (tl.sum(g * unit, axis=0) / width))
        tl.store(grad_rows + row * width + columns, dx.to(grad_rows.dtype.element_ty), mask=inside)
    tl.store(sums + program * width + columns, total, mask=inside)
