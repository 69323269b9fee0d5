"""The matrix products: panels of packed weights by the rows of a batch, one kernel a storage.

Of blocks of 32 numbers the products are of bytes. With w = d (q - c) (or d q + m) and x = s x8 rounded block by block,

    sum w x = d s (sum q x8 - c sum x8)          sum w x = d s sum q x8 + m s sum x8

where q is unsigned and the sum over x8 is known before: it is the start of the accumulator. Of floats the products are
of floats. A tile is 16 rows of weights by 1 row of the batch, or 32 by 4 (of floats 32 by 1, 4 or 8); each element is
summed over the columns in the same order in all of them, so a row alone gives the same bits as in any batch. Where a
row is alone, its sums of bytes are made in two halves, as no other work fills the time between them: of whole numbers
that is the same. Weights are asked for ahead of their use where few rows do not leave the time to read them.

Rows in 8 bits lie in groups of 8. For each block of 32 columns a group has

    0    8 x 32 bytes x8      256  8 floats s      288  8 ints -128 sum x8      320  8 floats s sum x8

All kernels have the arguments (weights, bytes of scales and of all in a panel, n_blocks, rows, stride of rows or
groups, out, its stride, first and last panel, n_rows). Panels come in pairs; `out` is float32, and has room for whole
groups.
"""

from typing import Any

from tessera.generate.cpu.products import (
    add_products,
    add_scaled,
    dot,
    first_bf16,
    high_nibbles,
    load_halves,
    load_rows,
    low_nibbles,
    second_bf16,
    starts,
    store_rows,
)
from tessera.generate.cpu.vectors import add_ints, load, load_ints, no_ints, store, zero, zeros
from tessera.native.jit import compiled, inner
from tessera.native.memory import prefetch

GROUP = 8
NEAR = 4
"""Blocks of columns of two panels of floats that stay in the nearest cache while many rows are multiplied by them."""
GROUP_BLOCK = 384
"""Bytes of a group of rows in 8 bits for a block of columns."""
SCALES, STARTS, OFFSETS = 256, 288, 320
AHEAD = 4096
"""How far ahead of a single row's product its weights are asked for, scales and numbers in the order of the memory.
To ask for what is beyond the memory is no error."""


def _q8_0_tile(rows: int, *, asks: bool = True) -> Any:
    """`asks`: ask for the weights of the next panels."""
    zero, nothing, start, alone = zeros(rows), no_ints(rows), starts(rows), rows == 1

    @inner
    def tile(scales, numbers, s_panel, n_blocks, x, own, out, out_stride):  # type: ignore[no-untyped-def]
        total, total_2, ahead = zero(), zero(), scales + AHEAD
        for _ in range(n_blocks):
            found = start(own + STARTS, 4, 0)
            found_2 = nothing() if alone else found
            for group in range(0, 8, 2):
                here, x_2 = numbers + 64 * group, x + 4 * group + 4
                found = dot(found, load_ints(here), x + 4 * group, 32)
                if alone:
                    prefetch(ahead + 64 * group)
                    prefetch(ahead + 64 * group + 64)
                    found_2 = dot(found_2, load_ints(here + 64), x_2, 32)
                else:
                    if asks:
                        prefetch(here + 2 * s_panel)
                        prefetch(here + 2 * s_panel + 64)
                        prefetch(here + 3 * s_panel)
                        prefetch(here + 3 * s_panel + 64)
                    found_2 = dot(found_2, load_ints(here + s_panel), x + 4 * group, 32)
                    found = dot(found, load_ints(here + 64), x_2, 32)
                    found_2 = dot(found_2, load_ints(here + s_panel + 64), x_2, 32)
            if alone:
                prefetch(ahead + 512)
                found, ahead = add_ints(found, found_2), ahead + 544
            else:
                total_2 = add_scaled(total_2, found_2, load_halves(scales + s_panel), own + SCALES, 4)
            total = add_scaled(total, found, load_halves(scales), own + SCALES, 4)
            scales, numbers, x, own = scales + 32, numbers + 512, x + GROUP_BLOCK, own + GROUP_BLOCK
        store_rows(out, out_stride, total)
        if not alone:
            store_rows(out + 64, out_stride, total_2)

    return tile


def _q4_tile(rows: int, shift: int, *, offsets: bool, asks: bool = True) -> Any:
    """`shift` makes 16 of 128, as 8 is to be taken off each number where it has no offset of its own."""
    zero, nothing, start, alone = zeros(rows), no_ints(rows), starts(rows), rows == 1
    s_scales = 64 if offsets else 32

    @inner
    def tile(scales, numbers, s_panel, n_blocks, x, own, out, out_stride):  # type: ignore[no-untyped-def]
        total, total_2, ahead = zero(), zero(), scales + AHEAD
        for _ in range(n_blocks):
            found = nothing() if offsets else start(own + STARTS, 4, shift)
            found_2 = nothing() if alone else found
            for group in range(4):
                both, x_2 = load_ints(numbers + 64 * group), x + 4 * group + 16
                found = dot(found, low_nibbles(both), x + 4 * group, 32)
                if alone:
                    prefetch(ahead + 64 * group)
                    found_2 = dot(found_2, high_nibbles(both), x_2, 32)
                else:
                    if asks:
                        prefetch(numbers + 2 * s_panel + 64 * group)
                        prefetch(numbers + 3 * s_panel + 64 * group)
                    both_2 = load_ints(numbers + s_panel + 64 * group)
                    found_2 = dot(found_2, low_nibbles(both_2), x + 4 * group, 32)
                    found = dot(found, high_nibbles(both), x_2, 32)
                    found_2 = dot(found_2, high_nibbles(both_2), x_2, 32)
            if alone:
                prefetch(ahead + 256)
                found, ahead = add_ints(found, found_2), ahead + 256 + s_scales
            else:
                total_2 = add_scaled(total_2, found_2, load_halves(scales + s_panel), own + SCALES, 4)
                if offsets:
                    total_2 = add_products(total_2, load_halves(scales + s_panel + 32), own + OFFSETS, 4)
            total = add_scaled(total, found, load_halves(scales), own + SCALES, 4)
            if offsets:
                total = add_products(total, load_halves(scales + 32), own + OFFSETS, 4)
            scales, numbers, x, own = scales + s_scales, numbers + 256, x + GROUP_BLOCK, own + GROUP_BLOCK
        store_rows(out, out_stride, total)
        if not alone:
            store_rows(out + 64, out_stride, total_2)

    return tile


def _bf16_tile(rows: int) -> Any:
    load_sums = load_rows(rows)

    @inner
    def tile(numbers, s_panel, n_blocks, x, stride, out, out_stride):  # type: ignore[no-untyped-def]
        total, total_2 = load_sums(out, out_stride), load_sums(out + 64, out_stride)
        for _ in range(16 * n_blocks):
            prefetch(numbers + 2 * s_panel)
            prefetch(numbers + 3 * s_panel)
            both, both_2 = load_ints(numbers), load_ints(numbers + s_panel)
            total = add_products(total, first_bf16(both), x, stride)
            total_2 = add_products(total_2, first_bf16(both_2), x, stride)
            total = add_products(total, second_bf16(both), x + 4, stride)
            total_2 = add_products(total_2, second_bf16(both_2), x + 4, stride)
            numbers, x = numbers + 64, x + 8
        store_rows(out, out_stride, total)
        store_rows(out + 64, out_stride, total_2)

    return tile


def _fp32_tile(rows: int) -> Any:
    load_sums = load_rows(rows)

    @inner
    def tile(numbers, s_panel, n_blocks, x, stride, out, out_stride):  # type: ignore[no-untyped-def]
        total, total_2 = load_sums(out, out_stride), load_sums(out + 64, out_stride)
        for _ in range(32 * n_blocks):
            prefetch(numbers + 2 * s_panel)
            prefetch(numbers + 3 * s_panel)
            total = add_products(total, load(numbers), x, stride)
            total_2 = add_products(total_2, load(numbers + s_panel), x, stride)
            numbers, x = numbers + 64, x + 4
        store_rows(out, out_stride, total)
        store_rows(out + 64, out_stride, total_2)

    return tile


def _of_bytes(make: Any, **settings: Any) -> Any:
    """The kernel over pairs of panels and rows in 8 bits: four rows take two panels, which share what is loaded of the
    rows, and the first four of all ask for the next two."""
    one, first_four, four = make(1, **settings), make(4, **settings), make(4, **settings, asks=False)

    @inner
    def kernel(weights, n_scales, n_panel, n_blocks, x, stride, out, out_stride, first, last, n_rows):  # type: ignore[no-untyped-def]
        for panel in range(first, last, 2):
            scales = weights + panel * n_panel
            numbers, column = scales + n_scales, out + 64 * panel
            for row in range(0, n_rows, 4):
                group, lane, to = x + row // GROUP * stride, row % GROUP, column + row * out_stride
                here, own = group + 32 * lane, group + 4 * lane
                if n_rows > 1 and row == 0:
                    first_four(scales, numbers, n_panel, n_blocks, here, own, to, out_stride)
                elif n_rows - row > 1:
                    four(scales, numbers, n_panel, n_blocks, here, own, to, out_stride)
                else:
                    one(scales, numbers, n_panel, n_blocks, here, own, to, out_stride)
                    one(scales + n_panel, numbers + n_panel, n_panel, n_blocks, here, own, to + 64, out_stride)
        return 0

    return kernel


def _of_floats(make: Any) -> Any:
    """The kernel over pairs of panels and rows of floats: a few blocks of columns for all rows before the next ones, so
    that those of the weights stay near; the sums wait in `out`."""
    one, four, eight = make(1), make(4), make(8)

    @inner
    def kernel(weights, n_scales, n_panel, n_blocks, x, stride, out, out_stride, first, last, n_rows):  # type: ignore[no-untyped-def]
        at_once = n_blocks if n_rows <= 8 else NEAR
        s_block = n_panel // n_blocks
        for panel in range(first, last, 2):
            column = out + 64 * panel
            for row in range((n_rows + 7) // 8 * 8 if n_rows > 1 else 1):
                store(column + row * out_stride, zero())
                store(column + row * out_stride + 64, zero())
            for begin in range(0, n_blocks, at_once):
                numbers, n = weights + panel * n_panel + s_block * begin, min(at_once, n_blocks - begin)
                for row in range(0, n_rows, 8):
                    here, to = x + row * stride + 128 * begin, column + row * out_stride
                    if n_rows - row > 4:
                        eight(numbers, n_panel, n, here, stride, to, out_stride)
                    elif n_rows - row > 1:
                        four(numbers, n_panel, n, here, stride, to, out_stride)
                    else:
                        one(numbers, n_panel, n, here, stride, to, out_stride)
        return 0

    return kernel


# What is kept between processes may have no variables of a function around it, so each kernel is a function of its own.
by_q8_0 = _of_bytes(_q8_0_tile)
by_q4_0 = _of_bytes(_q4_tile, shift=4, offsets=False)
by_q4_1 = _of_bytes(_q4_tile, shift=0, offsets=True)
by_bf16 = _of_floats(_bf16_tile)
by_fp32 = _of_floats(_fp32_tile)


@compiled
def multiply_q8_0(weights, n_scales, n_panel, n_blocks, x, stride, out, out_stride, first, last, n_rows):  # type: ignore[no-untyped-def]
    return by_q8_0(weights, n_scales, n_panel, n_blocks, x, stride, out, out_stride, first, last, n_rows)


@compiled
def multiply_q4_0(weights, n_scales, n_panel, n_blocks, x, stride, out, out_stride, first, last, n_rows):  # type: ignore[no-untyped-def]
    return by_q4_0(weights, n_scales, n_panel, n_blocks, x, stride, out, out_stride, first, last, n_rows)


@compiled
def multiply_q4_1(weights, n_scales, n_panel, n_blocks, x, stride, out, out_stride, first, last, n_rows):  # type: ignore[no-untyped-def]
    return by_q4_1(weights, n_scales, n_panel, n_blocks, x, stride, out, out_stride, first, last, n_rows)


@compiled
def multiply_bf16(weights, n_scales, n_panel, n_blocks, x, stride, out, out_stride, first, last, n_rows):  # type: ignore[no-untyped-def]
    return by_bf16(weights, n_scales, n_panel, n_blocks, x, stride, out, out_stride, first, last, n_rows)


@compiled
def multiply_fp32(weights, n_scales, n_panel, n_blocks, x, stride, out, out_stride, first, last, n_rows):  # type: ignore[no-untyped-def]
    return by_fp32(weights, n_scales, n_panel, n_blocks, x, stride, out, out_stride, first, last, n_rows)


MULTIPLY = {
    "q8_0": multiply_q8_0,
    "q4_0": multiply_q4_0,
    "q4_1": multiply_q4_1,
    "bf16": multiply_bf16,
    "fp32": multiply_fp32,
}
