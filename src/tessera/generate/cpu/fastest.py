"""Which of the products of bytes is the fastest here: each that the processor has multiplies what lies in its nearest
cache, and the clock decides. They give the same bits, so nothing but time depends on it."""

import time
from typing import Any

import numba
import numpy as np
from numba.core.registry import cpu_target

from tessera.generate.cpu.products import dot_by
from tessera.generate.cpu.vectors import add_ints, features_of, load_ints, no_ints, possible_products, sum_of_ints

VECTORS, REPEATS, ROUNDS = 128, 64, 50
"""Vectors of 64 bytes that are multiplied, how often in a measurement, and of how many the best counts."""


def fastest_product() -> str:
    """The name of the one that took the least time; of one alone nothing is measured."""
    possible = possible_products(features_of(cpu_target.target_context))
    if len(possible) == 1:
        return possible[0]
    times = {name: _seconds(name) for name in possible}
    return min(times, key=lambda name: times[name])


def _seconds(name: str) -> float:
    """Of one product over the vectors, the best of some rounds."""
    dot, nothing = dot_by(name), no_ints(1)

    @numba.njit(nogil=True)
    def multiply(weights, x):  # type: ignore[no-untyped-def]
        """As the kernels do it: in blocks, whose sums do not wait for each other."""
        total = nothing()
        for repeat in range(REPEATS):
            here = x + 4 * repeat  # others each time, so that nothing can be made once for all
            for block in range(weights, weights + 64 * VECTORS, 512):
                found, other = nothing(), nothing()
                for place in range(block, block + 512, 128):
                    found = dot(found, load_ints(place), here, 0)
                    other = dot(other, load_ints(place + 64), here, 0)
                total = add_ints(total, add_ints(found, other))
        return sum_of_ints(total)

    weights, x = np.ones(64 * VECTORS, np.uint8), np.ones(4 * REPEATS, np.uint8)
    arguments: Any = weights.ctypes.data, x.ctypes.data
    multiply(*arguments)
    best = float("inf")
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        multiply(*arguments)
        best = min(best, time.perf_counter() - begin)
    return best
