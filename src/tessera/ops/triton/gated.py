"""SwiGLU as two kernels: y = silu(g) x, and its gradients from g and x alone."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 1024


def swiglu(gate: Tensor, input: Tensor) -> Tensor:
    """silu(gate) * input, of two contiguous tensors of one shape and type."""
    return _Swiglu.apply(gate, input)


class _Swiglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, input: Tensor) -> Tensor:
        ctx.save_for_backward(gate, input)
        y = torch.empty_like(gate)
        n = gate.numel()
        _swiglu_forward[(triton.cdiv(n, BLOCK),)](gate, input, y, n, BLOCK=BLOCK)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, input = ctx.saved_tensors
        grad_gate, grad_input = torch.empty_like(gate), torch.empty_like(input)
        n = gate.numel()
        _swiglu_backward[(triton.cdiv(n, BLOCK),)](
            grad.contiguous(), gate, input, grad_gate, grad_input, n, BLOCK=BLOCK
        )
        return grad_gate, grad_input


@triton.jit
def _swiglu_forward(gate, input, out, n, BLOCK: tl.constexpr):
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = places < n
    g = tl.load(gate + places, mask=inside, other=0.0).to(tl.float32)
    x = tl.load(input + places, mask=inside, other=0.0).to(tl.float32)
    y = g * tl.sigmoid(g) * x
    tl.store(out + places, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _swiglu_backward(grad, gate, input, grad_gate, grad_input, n, BLOCK: tl.constexpr):
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = places < n
    dy = tl.load(grad + places, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(gate + places, mask=inside, other=0.0).to(tl.float32)
    x = tl.load(input + places, mask=inside, other=0.0).to(tl.float32)
    s = tl.sigmoid(g)
    dx = dy * g * s
    dg = dy * x * s * (1.0 + g * (1.0 - s))
    tl.store(grad_input + places, dx.to(grad_input.dtype.element_ty), mask=inside)
    tl.store(grad_gate + places, dg.to(grad_gate.dtype.element_ty), mask=inside)
