"""The key and value cache: what generation keeps of the past, so that each new token costs one row and not a triangle.

All memory is taken once, at the length that will be needed; appending copies the new rows into place and returns a
view of everything so far. A sliding window masks old rows, it does not free them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tessera.errors import InputError
from tessera.model.flow import Flow

Attend = Callable[..., Tensor]
"""`attend(flow, cache, *parts_BT)`: what an attention layer gathers, (B, T, width), from a cache that takes the new
tokens with `append`. Each part has a row for each token: queries, keys, values."""


class LayerCache:
    """The keys and values of one attention layer: rows of two widths, either of which may be 0."""

    def __init__(
        self,
        *,
        batch_size: int,
        n_kv_heads: int,
        length: int,
        d_key: int,
        d_value: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        shape = (batch_size, n_kv_heads, length)
        self._keys_BGSK = torch.zeros(*shape, d_key, dtype=dtype, device=device)
        self._values_BGSK = torch.zeros(*shape, d_value, dtype=dtype, device=device)
        self.length = 0

    @property
    def memory(self) -> tuple[Tensor, Tensor]:
        """All of it, (B, heads, S, width of keys) and (B, heads, S, width of values)."""
        return self._keys_BGSK, self._values_BGSK

    @property
    def capacity(self) -> int:
        return self._keys_BGSK.shape[2]

    @property
    def n_bytes(self) -> int:
        return sum(rows.numel() * rows.element_size() for rows in (self._keys_BGSK, self._values_BGSK))

    def append(self, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        """Add the newest tokens; returns all keys and all values, oldest first, as views of the cache."""
        end = self.length + k_BGTK.shape[2]
        check_room(end, self.capacity)
        self._keys_BGSK[:, :, self.length : end] = k_BGTK
        self._values_BGSK[:, :, self.length : end] = v_BGTK
        self.length = end
        return self._keys_BGSK[:, :, :end], self._values_BGSK[:, :, :end]

    def through(self, attend: Attend, flow: Flow, *parts_BT: Tensor) -> Tensor:
        """What a layer gathers for these tokens: one call, as all rows go on at the same position."""
        return attend(flow, self, *parts_BT)

    def take(self, rows_B: Tensor) -> None:
        """Hold the rows of these numbers, in this order; one may be taken several times."""
        self._keys_BGSK, self._values_BGSK = self._keys_BGSK[rows_B], self._values_BGSK[rows_B]


class Cache:
    """One `LayerCache` a layer; made by `Decoder.new_cache`, filled by calling the decoder with it.

    `ids_BS` is room for the tokens themselves, for an embedding that looks back at them.
    """

    def __init__(self, layers: Sequence[LayerCache], ids_BS: Tensor | None = None) -> None:
        self.layers = layers
        self._ids_BS = ids_BS

    @property
    def looks_back(self) -> bool:
        """Whether it holds the tokens themselves."""
        return self._ids_BS is not None

    @property
    def length(self) -> int:
        """How many tokens are in it: the position of the next one."""
        return self.layers[0].length

    @property
    def capacity(self) -> int:
        """How many tokens fit."""
        return self.layers[0].capacity

    @property
    def n_bytes(self) -> int:
        ids = 0 if self._ids_BS is None else self._ids_BS.numel() * self._ids_BS.element_size()
        return ids + sum(layer.n_bytes for layer in self.layers)

    def embedded(self, embedding: Any, ids_BT: Tensor, flow: Flow) -> Tensor:
        """The vectors of the tokens, (B, T, D), by an embedding that may look back at those that are in the cache."""
        return embedding(ids_BT, flow, self.tokens_before(ids_BT, embedding.n_before))

    def tokens_before(self, ids_BT: Tensor, n: int) -> Tensor | None:
        """The last `n` tokens, or all if there are fewer, before `ids_BT`, which are noted; None if none are kept."""
        if self._ids_BS is None:
            return None
        start, end = self.length, self.length + ids_BT.shape[1]
        check_room(end, self.capacity)
        self._ids_BS[:, start:end] = ids_BT
        return self._ids_BS[:, max(0, start - n) : start]

    def take(self, rows_B: Tensor) -> None:
        """Hold the rows of these numbers, in this order; one may be taken several times."""
        for layer in self.layers:
            layer.take(rows_B)
        if self._ids_BS is not None:
            self._ids_BS = self._ids_BS[rows_B]

    def reset(self) -> None:
        """Forget everything, keep the memory."""
        for layer in self.layers:
            layer.length = 0


def check_room(needed: int, capacity: int) -> None:
    if needed > capacity:
        raise InputError(f"the cache is full: it holds {capacity} tokens and {needed} are needed")
