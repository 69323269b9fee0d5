"""Gated activations: f(gate) * input, the middle of a gated feed-forward (Shazeer 2020, "GLU Variants").

The backward pass is written by hand and keeps the two inputs alone, where autograd keeps f(gate) as well: a third less
memory. On a CPU it goes slice by slice, so that what lies between the passes stays in the processor's cache. Measured
beside autograd, 4,096 x 1,536, two threads, forward and backward: SwiGLU in fp32 takes 0.8 times as long, in bf16 1.3
times; GeGLU, whose f is dear and is computed twice, 1.35 times. There it is kept for the memory.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tessera.errors import InputError
from tessera.ops.activation import Activation, Approximate, Gelu, Silu
from tessera.ops.kernels import kernels_for

SLICE = 2**18
"""How many numbers are done at once on a CPU."""


def plain_swiglu(gate: Tensor, input: Tensor) -> Tensor:
    """silu(gate) * input, with silu(x) = x sigmoid(x)."""
    return Silu()(gate) * input


def plain_geglu(gate: Tensor, input: Tensor, approximate: Approximate = "tanh") -> Tensor:
    """gelu(gate) * input, with gelu(x) = x Phi(x); "tanh" is GPT-2's approximation of Phi, "none" is exact."""
    return Gelu(approximate)(gate) * input


def swiglu(gate: Tensor, input: Tensor) -> Tensor:
    """`plain_swiglu` of two tensors of one shape, with its backward written by hand."""
    gate, input = _alike(gate, input)
    kernels = kernels_for(gate)
    if kernels is not None:
        return kernels.swiglu(gate, input)
    return _Gated.apply(gate, input, Silu())


def geglu(gate: Tensor, input: Tensor, approximate: Approximate = "tanh") -> Tensor:
    """`plain_geglu` of two tensors of one shape, with its backward written by hand."""
    return _Gated.apply(*_alike(gate, input), Gelu(approximate))


def _alike(gate: Tensor, input: Tensor) -> tuple[Tensor, Tensor]:
    if gate.shape != input.shape:
        raise InputError(f"a gate of shape {tuple(gate.shape)} for an input of shape {tuple(input.shape)}")
    dtype = torch.promote_types(gate.dtype, input.dtype)
    return gate.to(dtype).contiguous(), input.to(dtype).contiguous()


class _Gated(torch.autograd.Function):
    """y = f(g) x: dx = dy f(g), dg = dy x f'(g). f(g) is made again."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, input: Tensor, activation: Activation) -> Tensor:
        ctx.save_for_backward(gate, input)
        ctx.activation = activation
        y = torch.empty_like(gate)
        for g, x, out in zip(*map(_slices, (gate, input, y)), strict=True):
            activation.into(g, out).mul_(x)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        gate, input = ctx.saved_tensors
        grad_gate, grad_input = torch.empty_like(gate), torch.empty_like(input)
        tensors = (gate, input, grad.contiguous(), grad_gate, grad_input)
        for g, x, dy, dg, dx in zip(*map(_slices, tensors), strict=True):
            ctx.activation.into(g, dx).mul_(dy)
            ctx.activation.gradient_into(dy * x, g, dg)
        return grad_gate, grad_input, None


def _slices(x: Tensor) -> tuple[Tensor, ...]:
    """Views of the numbers in order; one where the memory is that of a GPU."""
    return x.view(-1).split(SLICE if x.device.type == "cpu" else max(1, x.numel()))
