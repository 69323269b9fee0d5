"""Linear maps in numbers of 8 bits, on processors that multiply them several times faster than those of fp32 (VNNI).

    y = x Wᵀ           x, W by rows                     y  = (x8 w8ᵀ) s_x s_w
    dx = dy W          dy s_w by rows                   dx = (g8 w8) s_g              g8 = 8 bits of dy s_w
    dW = dyᵀ x         dy s_x by columns, some rows     dW = (g8ᵀ x8) s_g             g8 = 8 bits of dy s_x

Each row is rounded by a scale of its own, its largest number (Dettmers et al. 2022, "LLM.int8()", section 3.1). All
three products are in 8 bits, the last with scales for blocks of rows (Xi et al. 2024, "Jetfire"), where SwitchBack
keeps it in fp32 (Wortsman et al. 2023). The scales that a product would sum over are multiplied into the gradient
before it is rounded, so that x and W are rounded once and are kept for the backward pass in 8 bits.

The sums are exact, in int32: the same on every machine, for any number of threads. What is not finite makes NaN.
"""

import importlib
import importlib.util
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tessera.ops import int8_plain

log = logging.getLogger(__name__)
SUMS_AT_ONCE = 2**18
"""How many numbers of a product are made before they are scaled back, while they are near the processor ..."""
LEAST_ROWS = 256
"""... but never fewer rows than this."""
ROWS_TOGETHER = 2048
"""Rows of a gradient whose columns have a scale in common. 127^2 times as many are far below 2^31."""
SHARED = 2**17
"""Numbers below which a pass is not worth a second thread."""


class Rounded(NamedTuple):
    """Rows in 8 bits, and the scale of each: x ~ x8 * scale."""

    x8_NK: Tensor
    scale_N: Tensor


@lru_cache
def compiled_kernels() -> ModuleType | None:
    if importlib.util.find_spec("numba") is None:
        log.warning("numba is not installed (pip install numba): numbers are rounded to 8 bits slowly")
        return None
    return importlib.import_module("tessera.ops.compiled.int8")


@lru_cache
def is_exact() -> bool:
    """Whether this processor's products of 8 bits are those of integers, also of the largest: told once a process.

    Instructions older than VNNI add two products up in 16 bits, where the largest do not fit.
    """
    random = torch.Generator().manual_seed(0)
    a_NK, b_KM = (
        torch.randint(-127, 128, sizes, generator=random, dtype=torch.int8) for sizes in ((96, 1024), (1024, 80))
    )
    a_NK[:32], b_KM[:, :32] = 127, 127
    a_NK[16:32], b_KM[:, 16:32] = -127, -127
    exact = (a_NK.double() @ b_KM.double()).to(torch.int32)
    ways = ((a_NK, b_KM), (a_NK, b_KM.t().contiguous().t()), (a_NK.t().contiguous().t(), b_KM))
    try:
        return all(torch.equal(torch._int_mm(*way), exact) for way in ways)
    except RuntimeError as error:
        log.info("no products of 8 bits on this machine: %s", error)
        return False


@lru_cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads - 1, thread_name_prefix="int8")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # no thread lives on there: its work would never be done


def _by_parts(n_rows: int, n_numbers: int, action: Callable[[int, int, int], None]) -> None:
    """action(part, start, stop) for the rows, shared by as many threads as PyTorch has."""
    threads = torch.get_num_threads() if n_numbers >= SHARED else 1
    if threads == 1:
        action(0, 0, n_rows)
        return
    each = -(-n_rows // threads)
    others = [_pool(threads).submit(action, i, i * each, min(n_rows, (i + 1) * each)) for i in range(1, threads)]
    action(0, 0, each)
    for one in others:
        one.result()


def rounded_rows(x_NK: Tensor) -> Rounded:
    """Each row in 8 bits."""
    x_NK = x_NK.detach().contiguous()
    out = Rounded(torch.empty(x_NK.shape, dtype=torch.int8), x_NK.new_empty(len(x_NK)))
    round_rows_into(x_NK, out)
    return out


def round_rows_into(x_NK: Tensor, out: Rounded) -> None:
    kernels = compiled_kernels()
    if kernels is None:
        int8_plain.round_rows(x_NK, *out)
        return
    arrays = x_NK.numpy(), out.x8_NK.numpy(), out.scale_N.numpy()
    _by_parts(len(x_NK), x_NK.numel(), lambda _, start, stop: kernels.round_rows(*arrays, start, stop))


def rounded_both(g_NO: Tensor, by_N: Tensor, by_O: Tensor) -> tuple[Rounded, Rounded]:
    """g * by_O by rows; and g * by_N by columns, with a scale for each column."""
    n_rows, n_columns = g_NO.shape
    rows = Rounded(torch.empty(g_NO.shape, dtype=torch.int8), g_NO.new_empty(n_rows))
    columns = Rounded(torch.empty(g_NO.shape, dtype=torch.int8), g_NO.new_empty(n_columns))
    kernels = compiled_kernels()
    if kernels is None:
        int8_plain.round_both(g_NO, by_N, by_O, rows=rows, columns=columns)
        return rows, columns
    g, by, row8, row_scales = g_NO.numpy(), by_N.numpy(), rows.x8_NK.numpy(), rows.scale_N.numpy()
    largest_PO = torch.zeros(torch.get_num_threads(), n_columns, dtype=torch.int32)
    found, of_columns = largest_PO.numpy(), by_O.numpy()
    _by_parts(
        n_rows,
        g_NO.numel(),
        lambda part, start, stop: kernels.round_rows_times(
            g, by, of_columns, row8, row_scales, found[part], start, stop
        ),
    )
    largest = largest_PO.amax(dim=0).numpy()
    column8, column_scales = columns.x8_NK.numpy(), columns.scale_N.numpy()
    _by_parts(
        n_rows,
        g_NO.numel(),
        lambda _, start, stop: kernels.round_columns_times(g, by, largest, column8, column_scales, start, stop),
    )
    return rows, columns


def _bring_back(sum_NO: Tensor, scale_N: Tensor, scale_O: Tensor | None, y_NO: Tensor, *, add: bool = False) -> None:
    """y = sums times the scales of rows and columns; or y += sums times those of rows."""
    kernels = compiled_kernels()
    if kernels is None:
        int8_plain.bring_back(sum_NO, scale_N, scale_O, y_NO, add=add)
        return
    kernel = kernels.scale_both if scale_O is not None else kernels.add_scaled if add else kernels.scale_rows
    scales = (scale_N,) if scale_O is None else (scale_N, scale_O)
    arrays = [one.numpy() for one in (sum_NO, *scales, y_NO)]
    _by_parts(len(y_NO), y_NO.numel(), lambda _, start, stop: kernel(*arrays, start, stop))


def _rows_at_once(n_rows: int, n_columns: int) -> int:
    return min(n_rows, max(LEAST_ROWS, SUMS_AT_ONCE // n_columns))


def rows_of(one: Rounded, part: slice) -> Rounded:
    return Rounded(one.x8_NK[part], one.scale_N[part])


def turned(x8: Tensor) -> Tensor:
    """The transpose. PyTorch reads that of one row or column wrongly, unless it has the strides of a fresh tensor."""
    return x8.reshape(x8.shape[1], x8.shape[0]) if 1 in x8.shape else x8.t()


def forward(x: Rounded, weight: Rounded, out_NO: Tensor) -> Tensor:
    """x Wᵀ of what the two stand for."""
    weight_KO, at_once = turned(weight.x8_NK), _rows_at_once(*out_NO.shape)
    room = torch.empty(at_once, out_NO.shape[1], dtype=torch.int32)
    for start in range(0, len(out_NO), at_once):
        part = slice(start, start + at_once)
        sums = torch._int_mm(x.x8_NK[part], weight_KO, out=room[: len(out_NO[part])])
        _bring_back(sums, x.scale_N[part], weight.scale_N, out_NO[part])
    return out_NO


def to_input(gradient: Rounded, weight: Rounded, grad_NI: Tensor, *, add: bool) -> Tensor:
    """dy W into `grad_NI`, or added to it; the weight's scales are in the gradient already."""
    at_once = _rows_at_once(*grad_NI.shape)
    room = torch.empty(at_once, grad_NI.shape[1], dtype=torch.int32)
    for start in range(0, len(grad_NI), at_once):
        part = slice(start, start + at_once)
        sums = torch._int_mm(gradient.x8_NK[part], weight.x8_NK, out=room[: len(grad_NI[part])])
        _bring_back(sums, gradient.scale_N[part], None, grad_NI[part], add=add)
    return grad_NI


def to_weight(gradient: Rounded, x: Rounded, grad_OI: Tensor, *, add: bool) -> None:
    """dyᵀ x into `grad_OI`, or added to it; the input's scales are in the gradient already."""
    _bring_back(torch._int_mm(turned(gradient.x8_NK), x.x8_NK), gradient.scale_N, None, grad_OI, add=add)


Map = tuple[Tensor, Tensor | None]
"""The weight (out, in) and the bias of a linear map."""


def int8_linears(x: Tensor, maps: Sequence[Map]) -> tuple[Tensor, ...]:
    """x Wᵀ + b for each map; x is rounded once for all of them."""
    ys = _Linears.apply(x, *(weight for weight, _ in maps))
    return tuple(y if bias is None else y + bias for y, (_, bias) in zip(ys, maps, strict=True))


class _Linears(torch.autograd.Function):
    """Several maps of the same input. For the backward pass only numbers of 8 bits are kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        rounded = [rounded_rows(x.flatten(0, -2)), *(rounded_rows(weight) for weight in weights)]
        ctx.save_for_backward(*(tensor for one in rounded for tensor in one))
        ctx.shape = x.shape
        return tuple(
            forward(rounded[0], weight, x.new_empty(len(rounded[0].x8_NK), len(weight.x8_NK))).view(*x.shape[:-1], -1)
            for weight in rounded[1:]
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        x, *weights = (Rounded(*saved[i : i + 2]) for i in range(0, len(saved), 2))
        wants_x, *wants = ctx.needs_input_grad
        grad_NI = torch.empty(x.x8_NK.shape) if wants_x else None
        found: list[Tensor | None] = []
        for grad, weight, wanted in zip(grads, weights, wants, strict=True):
            grad_OI = torch.empty(weight.x8_NK.shape) if wanted else None
            grad_NO, others = grad.reshape(len(x.x8_NK), -1).contiguous(), bool(found)
            for start in range(0, len(grad_NO), ROWS_TOGETHER):
                part = slice(start, start + ROWS_TOGETHER)
                x_R = rows_of(x, part)
                by_rows, by_columns = rounded_both(grad_NO[part], x_R.scale_N, weight.scale_N)
                if grad_NI is not None:
                    to_input(by_rows, weight, grad_NI[part], add=others)
                if grad_OI is not None:
                    to_weight(by_columns, x_R, grad_OI, add=start > 0)
            found.append(grad_OI)
        return None if grad_NI is None else grad_NI.view(ctx.shape), *found
