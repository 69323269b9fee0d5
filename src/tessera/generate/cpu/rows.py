"""What happens to single rows between the products: norm, rounding to 8 bits, rotation, SiLU.

Sums run over 16 lanes and are joined at the end, always in the same order. All addresses are of float32; widths are
filled up with zeros.
"""

import numpy as np

from tessera.generate.cpu.kernels import GROUP_BLOCK, OFFSETS, SCALES, STARTS
from tessera.generate.cpu.vectors import (
    add,
    divide,
    fma,
    greater,
    largest,
    lesser,
    load,
    load_float,
    multiply,
    power_of_two,
    rounded,
    splat,
    store,
    store_bytes,
    store_float,
    subtract,
    sum_of,
    sum_of_ints,
    whole,
    zero,
)
from tessera.native.jit import inner
from tessera.native.memory import store32
from tessera.ops.compiled.bits import number_of

LARGEST = np.float32(127)
ONE = np.float32(1)
INFINITE, SMALLEST = 0x7F800000, 0x0D800000
"""The bits of infinity, and of 2^-100: a block without anything larger is as good as zero."""
NAN = np.float32(np.nan)
LOG2_E = np.float32(1.4426950408889634)
LN2_HIGH, LN2_LOW = np.float32(-0.693359375), np.float32(2.12194440e-4)
"""-ln 2 in two parts, of which the first times a small whole number is exact."""
C5, C4, C3, C2, C1 = (np.float32(1 / n) for n in (720, 120, 24, 6, 2))
LEAST, MOST = np.float32(-87), np.float32(88)


@inner
def exponential(x):  # type: ignore[no-untyped-def]
    """e^x of 16 numbers: 2^n e^r with |r| <= ln 2 / 2, the latter by its series."""
    x = lesser(splat(MOST), greater(splat(LEAST), x))
    n = whole(multiply(x, splat(LOG2_E)))
    r = fma(n, splat(LN2_LOW), fma(n, splat(LN2_HIGH), x))
    series = fma(splat(C5), r, splat(C4))
    series = fma(series, r, splat(C3))
    series = fma(series, r, splat(C2))
    series = fma(series, r, splat(C1))
    series = fma(series, r, splat(ONE))
    series = fma(series, r, splat(ONE))
    return multiply(series, power_of_two(n))


@inner
def norm_row(x, weight, out, width, eps):  # type: ignore[no-untyped-def]
    """x / sqrt(mean(x^2) + eps) * weight."""
    total = zero()
    for place in range(0, 4 * width, 64):
        numbers = load(x + place)
        total = fma(numbers, numbers, total)
    scale = splat(ONE / np.sqrt(sum_of(total) / np.float32(width) + eps))
    for place in range(0, 4 * width, 64):
        store(out + place, multiply(multiply(load(x + place), scale), load(weight + place)))


@inner
def round_blocks(x, group, lane, first, last):  # type: ignore[no-untyped-def]
    """The blocks `first` to `last` of a row in 8 bits, as row `lane` of a group: x ~ s x8, s = max |x| / 127."""
    for block in range(first, last):
        a, b = load(x + 128 * block), load(x + 128 * block + 64)
        size = largest(a, b)
        up, scale = np.float32(0), np.float32(0)
        if size >= INFINITE:
            scale = NAN
        elif size >= SMALLEST:
            up, scale = LARGEST / number_of(np.int32(size)), number_of(np.int32(size)) / LARGEST
        a8, b8 = rounded(multiply(a, splat(up))), rounded(multiply(b, splat(up)))
        total = sum_of_ints(a8) + sum_of_ints(b8)
        to = group + GROUP_BLOCK * block
        store_bytes(to + 32 * lane, a8)
        store_bytes(to + 32 * lane + 16, b8)
        store_float(to + SCALES + 4 * lane, scale)
        store32(to + STARTS + 4 * lane, -128 * np.int64(total))
        store_float(to + OFFSETS + 4 * lane, scale * np.float32(total))


@inner
def rotate_halves(x, cos, sin, n_pairs):  # type: ignore[no-untyped-def]
    """Each pair (x_i, x_i+n) turned, (a cos - b sin, b cos + a sin)."""
    vectors = n_pairs // 16 * 64
    for place in range(0, vectors, 64):
        a, b = load(x + place), load(x + 4 * n_pairs + place)
        c, s = load(cos + place), load(sin + place)
        store(x + place, subtract(multiply(a, c), multiply(b, s)))
        store(x + 4 * n_pairs + place, add(multiply(b, c), multiply(a, s)))
    for place in range(vectors, 4 * n_pairs, 4):
        turn(x + place, x + 4 * n_pairs + place, load_float(cos + place), load_float(sin + place))


@inner
def rotate_pairs(x, cos, sin, n_pairs):  # type: ignore[no-untyped-def]
    """Each pair (x_2i, x_2i+1) turned."""
    for place in range(0, 4 * n_pairs, 4):
        turn(x + 2 * place, x + 2 * place + 4, load_float(cos + place), load_float(sin + place))


@inner
def turn(first, second, c, s):  # type: ignore[no-untyped-def]
    a, b = load_float(first), load_float(second)
    store_float(first, a * c - b * s)
    store_float(second, b * c + a * s)


@inner
def gate_row(gate, x, first, last):  # type: ignore[no-untyped-def]
    """x * silu(gate) into x, silu(g) = g / (1 + e^-g), for the vectors `first` to `last`."""
    for place in range(64 * first, 64 * last, 64):
        g = load(gate + place)
        silu = divide(g, add(splat(ONE), exponential(subtract(zero(), g))))
        store(x + place, multiply(silu, load(x + place)))


@inner
def add_row(x, other, first, last):  # type: ignore[no-untyped-def]
    """x + other into x, for the vectors `first` to `last`."""
    for place in range(64 * first, 64 * last, 64):
        store(x + place, add(load(x + place), load(other + place)))
