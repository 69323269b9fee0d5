"""To 8 bits and back in one pass over the numbers: the compiled twins of `tessera.ops.int8_plain`.

All arrays are contiguous, and `start` and `stop` are the rows that a call is for, so that threads can share the work.
The largest number of a row is found in its bits: without the sign they are in the order of the numbers, and what is not
finite is above all others.
"""

import numpy as np

from tessera.native.jit import compiled, inner
from tessera.ops.compiled.bits import bits_of, number_of

LARGEST = np.float32(127)
SMALLEST = np.float32(2.0**-100)
ROUNDER = np.float32(1.5 * 2**23)
"""Added to a small number it leaves the nearest integer in the lowest bits of the sum, ties to even."""
WITHOUT_SIGN, INFINITE = np.int32(0x7FFFFFFF), np.int32(0x7F800000)
NAN = np.float32(np.nan)


@inner
def _factors(largest):  # type: ignore[no-untyped-def]
    """Of the bits of a largest number: what brings it to 127, and what brings it back."""
    if largest >= INFINITE:
        return np.float32(0), NAN
    size = number_of(np.int32(largest))
    if size < SMALLEST:
        return np.float32(0), np.float32(0)
    return LARGEST / size, size / LARGEST


@inner
def round_row(x_K, x8_K):  # type: ignore[no-untyped-def]
    """One row in 8 bits; returns its scale."""
    largest = np.int32(0)
    for k in range(len(x_K)):
        largest = max(largest, bits_of(x_K[k]) & WITHOUT_SIGN)
    up, scale = _factors(largest)
    for k in range(len(x_K)):
        x8_K[k] = bits_of(x_K[k] * up + ROUNDER)
    return scale


@compiled
def round_rows(x_NK, x8_NK, scale_N, start, stop):  # type: ignore[no-untyped-def]
    for n in range(start, stop):
        scale_N[n] = round_row(x_NK[n], x8_NK[n])


@compiled
def round_rows_times(g_NO, by_N, by_O, g8_NO, scale_N, largest_O, start, stop):  # type: ignore[no-untyped-def]
    """The rows of g * by_O in 8 bits. The largest of each column of g * by_N goes to `largest_O`, in bits."""
    n_columns = g_NO.shape[1]
    for n in range(start, stop):
        largest, by = np.int32(0), by_N[n]
        for o in range(n_columns):
            largest = max(largest, bits_of(g_NO[n, o] * by_O[o]) & WITHOUT_SIGN)
        up, scale_N[n] = _factors(largest)
        for o in range(n_columns):
            g8_NO[n, o] = bits_of(g_NO[n, o] * by_O[o] * up + ROUNDER)
        for o in range(n_columns):
            largest_O[o] = max(largest_O[o], bits_of(g_NO[n, o] * by) & WITHOUT_SIGN)


@compiled
def round_columns_times(g_NO, by_N, largest_O, g8_NO, scale_O, start, stop):  # type: ignore[no-untyped-def]
    """The columns of g * by_N in 8 bits, `largest_O` being the largest of each in bits."""
    up_O = np.empty_like(scale_O)
    for o in range(g_NO.shape[1]):
        up_O[o], scale_O[o] = _factors(largest_O[o])
    for n in range(start, stop):
        by = by_N[n]
        for o in range(g_NO.shape[1]):
            g8_NO[n, o] = bits_of(g_NO[n, o] * by * up_O[o] + ROUNDER)


@compiled
def scale_both(sum_NO, scale_N, scale_O, y_NO, start, stop):  # type: ignore[no-untyped-def]
    for n in range(start, stop):
        by = scale_N[n]
        for o in range(sum_NO.shape[1]):
            y_NO[n, o] = np.float32(sum_NO[n, o]) * by * scale_O[o]


@compiled
def scale_rows(sum_NO, scale_N, y_NO, start, stop):  # type: ignore[no-untyped-def]
    for n in range(start, stop):
        by = scale_N[n]
        for o in range(sum_NO.shape[1]):
            y_NO[n, o] = np.float32(sum_NO[n, o]) * by


@compiled
def add_scaled(sum_NO, scale_N, y_NO, start, stop):  # type: ignore[no-untyped-def]
    for n in range(start, stop):
        by = scale_N[n]
        for o in range(sum_NO.shape[1]):
            y_NO[n, o] += np.float32(sum_NO[n, o]) * by
