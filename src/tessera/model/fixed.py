"""Tables that are computed, not learned.

On `meta`, where a model has shapes and no numbers, PyTorch computes in Python, and its first sum there loads seconds of
code (its compiler among it). A model is built there for every check of its settings; so nothing is computed there.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def _without_numbers() -> bool:
    return torch.get_default_device().type == "meta"


@contextmanager
def small_sums() -> Iterator[None]:
    """Around what is little and decides whether settings fit: it is computed, on the CPU if not on the device."""
    if _without_numbers():
        with torch.device("cpu"):
            yield
    else:
        yield


def fixed_table(shape: tuple[int, ...], make: Callable[[], Tensor]) -> Tensor:
    """The table that `make` computes; on `meta` its shape alone."""
    return torch.empty(shape) if _without_numbers() else make()
