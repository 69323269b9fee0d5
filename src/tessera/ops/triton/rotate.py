"""The rotation of pairs as one kernel, which is its own backward with the angle turned round."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable


def rotate_heads(x_BTHK: Tensor, cos_BT1C: Tensor, sin_BT1C: Tensor, interleaved: bool) -> Tensor:
    """As `ops.rotate`: pairs of neighbours if `interleaved`, else of halves; angles (T, 1, C) or (B or 1, T, 1, C)."""
    return _Rotation.apply(x_BTHK, cos_BT1C.contiguous(), sin_BT1C.contiguous(), interleaved)


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BTHK: Tensor, cos_BT1C: Tensor, sin_BT1C: Tensor, interleaved: bool) -> Tensor:
        ctx.save_for_backward(cos_BT1C, sin_BT1C)
        ctx.interleaved = interleaved
        return _turn(x_BTHK, cos_BT1C, sin_BT1C, 1, interleaved)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BTHK: Tensor) -> tuple[Tensor, None, None, None]:
        cos_BT1C, sin_BT1C = ctx.saved_tensors
        return _turn(grad_BTHK, cos_BT1C, sin_BT1C, -1, ctx.interleaved), None, None, None


def _turn(x_BTHK: Tensor, cos_BT1C: Tensor, sin_BT1C: Tensor, way: int, interleaved: bool) -> Tensor:
    B, T, H, K = x_BTHK.shape
    C = cos_BT1C.shape[-1]
    y_BTHK = torch.empty(x_BTHK.shape, dtype=x_BTHK.dtype, device=x_BTHK.device)
    per_row = T * C if cos_BT1C.ndim == 4 and len(cos_BT1C) > 1 else 0
    _rotate_kernel[(B * T, H)](
        x_BTHK,
        cos_BT1C,
        sin_BT1C,
        y_BTHK,
        *x_BTHK.stride(),
        per_row,
        T,
        H,
        K,
        C,
        WAY=way,
        INTERLEAVED=interleaved,
        BLOCK=triton.next_power_of_2(C),
        REST=triton.next_power_of_2(K - 2 * C) if K > 2 * C else 0,
    )
    return y_BTHK


@triton.jit
def _rotate_kernel(
    x,
    cos,
    sin,
    out,
    stride_b,
    stride_t,
    stride_h,
    stride_k,
    per_row,
    T,
    H,
    K,
    C,
    WAY: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    BLOCK: tl.constexpr,
    REST: tl.constexpr,
):
    """One head of one token."""
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    batch, time = token // T, token % T
    x += batch * stride_b + time * stride_t + head * stride_h
    out += (token * H + head) * K
    pairs = tl.arange(0, BLOCK)
    inside = pairs < C
    angles = batch * per_row + time * C + pairs
    c = tl.load(cos + angles, mask=inside, other=0.0).to(tl.float32)
    s = tl.load(sin + angles, mask=inside, other=0.0).to(tl.float32) * WAY
    if INTERLEAVED:
        first = 2 * pairs
        second = first + 1
    else:
        first = pairs
        second = pairs + C
    a = tl.load(x + first * stride_k, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(x + second * stride_k, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + first, (a * c - b * s).to(out.dtype.element_ty), mask=inside)
    tl.store(out + second, (b * c + a * s).to(out.dtype.element_ty), mask=inside)
    if REST:
        rest = 2 * C + tl.arange(0, REST)
        left = tl.load(x + rest * stride_k, mask=rest < K, other=0.0)
        tl.store(out + rest, left, mask=rest < K)
