"""A feed-forward layer as one operation, its products in 8 bits (`tessera.ops.int8`).

    plain   output(f(input(x)))              gated   output(f(gate(x)) * input(x))

It goes through the rows in pieces that stay near the processor. What autograd would keep in fp32 is kept in fewer bits:
x and what goes into the last product as they were multiplied, in 8; what goes into the activation in bf16, for its
slope alone.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tessera.ops.activation import Activation
from tessera.ops.feedforward import rows_at_once
from tessera.ops.int8 import (
    Map,
    Rounded,
    forward,
    round_rows_into,
    rounded_both,
    rounded_rows,
    rows_of,
    to_input,
    to_weight,
)

ROWS = 256
"""In a piece of the forward pass: what is between two products of so many rows fits a processor's cache."""


def int8_feed_forward(x_BTD: Tensor, into: Sequence[Map], output: Map, activation: Activation) -> Tensor:
    """activation(x Wᵀ + b) through the map `output`; with two maps in `into` the first is the gate of the second."""
    (first, first_bias), (gated, gated_bias) = into[0], into[1] if len(into) > 1 else (None, None)
    tensors = (x_BTD.flatten(0, -2), first, first_bias, gated, gated_bias, *output)
    return _FeedForward.apply(*tensors, activation).view(*x_BTD.shape[:-1], -1)


class _FeedForward(torch.autograd.Function):
    """y = a W_outᵀ, a = f(h) or f(g) u. With da = dy W_out: dh = da f'(h); or dg = da u f'(g) and du = da f(g)."""

    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        first_FD: Tensor,
        first_bias_F: Tensor | None,
        gated_FD: Tensor | None,
        gated_bias_F: Tensor | None,
        out_DF: Tensor,
        out_bias_D: Tensor | None,
        activation: Activation,
    ) -> Tensor:
        N, F = len(x_ND), len(first_FD)
        x, first, out = (rounded_rows(one) for one in (x_ND, first_FD, out_DF))
        gated = None if gated_FD is None else rounded_rows(gated_FD)
        a = Rounded(torch.empty(N, F, dtype=torch.int8), torch.empty(N))
        h_NF = torch.empty(N, F, dtype=torch.bfloat16)
        u_NF = None if gated is None else torch.empty_like(h_NF)
        y_ND = torch.empty(N, len(out_DF))
        h_room, a_room = (torch.empty(min(N, ROWS), F) for _ in range(2))
        for part in _parts(N, ROWS):
            x_R, a_R = rows_of(x, part), rows_of(a, part)
            h_RF, a_RF = h_room[: len(y_ND[part])], a_room[: len(y_ND[part])]
            h_NF[part] = _map(x_R, first, first_bias_F, h_RF)
            activation.into(h_RF, a_RF)
            if gated is not None and u_NF is not None:
                u_NF[part] = _map(x_R, gated, gated_bias_F, h_RF)
                a_RF.mul_(h_RF)
            round_rows_into(a_RF, a_R)
            _map(a_R, out, out_bias_D, y_ND[part])
        ctx.save_for_backward(*x, *first, *(gated or (None, None)), *out, *a, h_NF, u_NF)
        ctx.activation = activation
        return y_ND

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor | None, ...]:
        *saved, h_NF, u_NF = ctx.saved_tensors
        x, first, gated, out, a = (Rounded(*saved[i : i + 2]) for i in range(0, 10, 2))
        wants_x, *wants, _ = ctx.needs_input_grad
        (N, F), D = h_NF.shape, len(out.x8_NK)
        shapes = ((F, x.x8_NK.shape[1]), (F,), (F, x.x8_NK.shape[1]), (F,), (D, F), (D,))
        learned = [torch.empty(shape) if wanted else None for shape, wanted in zip(shapes, wants, strict=True)]
        grad_x_ND = torch.empty(x.x8_NK.shape) if wants_x else None
        grad_ND = grad_ND.contiguous()
        rows = min(N, rows_at_once(F))
        da_room, du_room = torch.empty(rows, F), None if u_NF is None else torch.empty(rows, F)
        h_room, u_room = (torch.empty(min(N, ROWS), F) for _ in range(2))
        for whole in _parts(N, rows):
            add, x_R, a_R, dy_RD = whole.start > 0, rows_of(x, whole), rows_of(a, whole), grad_ND[whole]
            by_rows, by_columns = rounded_both(dy_RD, a_R.scale_N, out.scale_N)
            _learn(learned[4:], dy_RD, by_columns, a_R, add=add)
            da_RF, du_RF = da_room[: len(dy_RD)], None if du_room is None else du_room[: len(dy_RD)]
            for part in _parts(len(dy_RD), ROWS):
                da = to_input(rows_of(by_rows, part), out, da_RF[part], add=False)
                h = h_room[: len(da)].copy_(h_NF[whole][part])
                if u_NF is not None and du_RF is not None:
                    torch.mul(ctx.activation.into(h, u_room[: len(da)]), da, out=du_RF[part])
                    da.mul_(u_room[: len(da)].copy_(u_NF[whole][part]))
                ctx.activation.gradient_into(da, h, da)
            into = None if grad_x_ND is None else grad_x_ND[whole]
            _back(da_RF, x_R, first, learned[:2], into, add=(add, False))
            if du_RF is not None:
                _back(du_RF, x_R, gated, learned[2:4], into, add=(add, True))
        return grad_x_ND, *learned, None


def _parts(n: int, rows: int) -> list[slice]:
    return [slice(start, start + rows) for start in range(0, n, rows)]


def _map(x: Rounded, weight: Rounded, bias: Tensor | None, out: Tensor) -> Tensor:
    forward(x, weight, out)
    return out if bias is None else out.add_(bias)


def _back(
    grad_RO: Tensor,
    x: Rounded,
    weight: Rounded,
    learned: Sequence[Tensor | None],
    grad_RI: Tensor | None,
    *,
    add: tuple[bool, bool],
) -> None:
    """The share of some rows in the gradients of a map and of what went into it; `add`: of each, whether to add it."""
    by_rows, by_columns = rounded_both(grad_RO, x.scale_N, weight.scale_N)
    _learn(learned, grad_RO, by_columns, x, add=add[0])
    if grad_RI is not None:
        to_input(by_rows, weight, grad_RI, add=add[1])


def _learn(learned: Sequence[Tensor | None], grad_RO: Tensor, by_columns: Rounded, x: Rounded, *, add: bool) -> None:
    weight, bias = learned
    if weight is not None:
        to_weight(by_columns, x, weight, add=add)
    if bias is not None:
        sums = grad_RO.sum(dim=0)
        bias.copy_(bias + sums if add else sums)
