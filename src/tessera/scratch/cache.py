"""The key and value cache: what generation keeps of the past, so that each new token costs one row and not a triangle.

All memory is taken once; appending copies the new rows into place and returns a view of everything so far.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tessera.errors import InputError


class LayerCache:
    """The keys and values of one attention layer."""

    def __init__(self, *, batch_size: int, length: int, n_kv_heads: int, d_head: int, dtype: Any) -> None:
        shape = (batch_size, length, n_kv_heads, d_head)
        self._keys_BSGK, self._values_BSGK = np.zeros(shape, dtype), np.zeros(shape, dtype)
        self.length = 0

    @property
    def capacity(self) -> int:
        return self._keys_BSGK.shape[1]

    def append(self, k_BTGK: np.ndarray, v_BTGK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Add the newest tokens; returns all keys and all values, oldest first, as views of the cache."""
        end = self.length + k_BTGK.shape[1]
        self._keys_BSGK[:, self.length : end] = k_BTGK
        self._values_BSGK[:, self.length : end] = v_BTGK
        self.length = end
        return self._keys_BSGK[:, :end], self._values_BSGK[:, :end]


class Cache:
    """One `LayerCache` a layer; made by `Decoder.new_cache`, filled by `Decoder.logits`."""

    def __init__(self, layers: Sequence[LayerCache]) -> None:
        self.layers = layers

    @property
    def length(self) -> int:
        """How many tokens are in it: the position of the next one."""
        return self.layers[0].length

    @property
    def capacity(self) -> int:
        """How many tokens fit."""
        return self.layers[0].capacity

    def check_room(self, n_new: int) -> None:
        needed = self.length + n_new
        if needed > self.capacity:
            raise InputError(f"the cache is full: it holds {self.capacity} tokens and {needed} are needed")

    def reset(self) -> None:
        """Forget everything, keep the memory."""
        for layer in self.layers:
            layer.length = 0
