"""Some rows at a time: a formula of several passes over a large array, each of whose parts stays in the cache.

NumPy makes one pass over memory for each operator. Where the rows do not look at each other, it is the same to go
through all passes with a few rows and then with the next, in as little as half the time (GELU).
"""

from collections.abc import Iterator

import numpy as np

SLICE = 2**15
"""How many numbers of the widest array are done at once: what a core keeps close for four or five such parts."""


def slices(*arrays: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """Views of the same few rows (the first dimension) of each array.

    >>> [part.tolist() for (part,) in slices(np.array([1, 2]))]
    [[1, 2]]
    """
    n_rows = len(arrays[0])
    widest = max(array.size for array in arrays) // n_rows
    step = max(1, SLICE // widest)
    for start in range(0, n_rows, step):
        yield tuple(array[start : start + step] for array in arrays)


def rows_of(x: np.ndarray) -> np.ndarray:
    """As a matrix, (N, width); a view where that can be."""
    return x.reshape(-1, x.shape[-1])
