"""Random numbers that are a function of (seed, purpose, counter), so that a cursor is two integers.

Philox is a counter-based generator (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): draw number
`counter` is computed directly, without the draws before it. Its raw words are used, not NumPy's distributions, whose
streams may change between versions.
"""

from enum import IntEnum

import numpy as np

from tessera.errors import SettingError


class Purpose(IntEnum):
    """What the numbers are for: equal seeds give unrelated numbers for different purposes."""

    SPLIT = 1
    RANDOM_WINDOWS = 2
    EPOCH = 3
    SOURCE = 4
    ANSWERS = 5
    MINIBATCHES = 6


def random_words(n: int, *, seed: int, purpose: Purpose, counter: int = 0) -> np.ndarray:
    """`n` uniform uint64."""
    if not 0 <= seed < 2**64:
        raise SettingError("seed", seed, "a whole number from 0 to 2**64 - 1")
    generator = np.random.Philox(
        key=np.array([seed, purpose], dtype=np.uint64), counter=np.array([0, counter, 0, 0], dtype=np.uint64)
    )
    return generator.random_raw(n)


def permutation(n: int, *, seed: int, purpose: Purpose, counter: int = 0) -> np.ndarray:
    """0 .. n - 1 in a random order: the order of `n` random words (equal words, all but impossible, keep theirs)."""
    order = np.argsort(random_words(n, seed=seed, purpose=purpose, counter=counter), kind="stable")
    return order.astype(np.int32) if n <= 2**31 else order
