"""What a model reads in one go, and what it should say.

Batches are made as NumPy arrays, which every engine reads; `Batch.to` makes torch tensors of them, of the same memory
where the device is the CPU. B batch, T time (the context).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

IGNORE = -100
"""The target that `cross_entropy` leaves out."""


@dataclass(frozen=True)
class Batch:
    """What the model reads, and what it should say next at each place; all int64, NumPy arrays or torch tensors.

    `documents_BT`, where it is there, numbers the documents of each row: a token then sees its own document only.
    """

    inputs_BT: Any
    targets_BT: Any
    documents_BT: Any = None

    @property
    def n_targets(self) -> int:
        """How many tokens are predicted: what a loss is averaged over."""
        return int((self.targets_BT != IGNORE).sum())

    def to(self, device: Any) -> "Batch":
        """As torch tensors on a device."""
        return self._changed(lambda one: as_tensor(one).to(device, non_blocking=True))

    def pinned(self) -> "Batch":
        """As torch tensors in memory that a GPU fetches from by itself, while the processor goes on."""
        return self._changed(lambda one: as_tensor(one).pin_memory())

    def in_rows_of(self, length: int) -> "Batch":
        """The same tokens in shorter rows: of `length`, or of the largest divisor of the context below it.

        >>> batch = Batch(np.array([[1, 2, 3, 4]]), np.array([[2, 3, 4, 5]]))
        >>> batch.in_rows_of(2).targets_BT
        array([[2, 3],
               [4, 5]])
        """
        context = self.inputs_BT.shape[1]
        length = next(size for size in range(min(length, context), 0, -1) if context % size == 0)
        return self._changed(lambda one: one.reshape(-1, length))

    def _changed(self, change: Callable[[Any], Any]) -> "Batch":
        arrays = (self.inputs_BT, self.targets_BT, self.documents_BT)
        return Batch(*(None if one is None else change(one) for one in arrays))


def as_tensor(array: Any) -> Any:
    """A torch tensor of an array's memory; a tensor as it is."""
    if not isinstance(array, np.ndarray):
        return array
    import torch

    return torch.from_numpy(array)


def windows(tokens: np.ndarray, starts_B: np.ndarray, context: int, separate_at: int | None = None) -> Batch:
    """The windows that begin at `starts_B`; past the end, targets are IGNORE and inputs repeat the last token.

    With `separate_at`, the id of the end token, each such token begins another document of its row: the first word of
    a document is then predicted from the end token alone, as it is when a text is generated from nothing.
    """
    place_BS = starts_B.astype(np.int64)[:, None] + np.arange(context + 1)  # S = T + 1
    token_BS = np.asarray(tokens[np.minimum(place_BS, len(tokens) - 1)]).astype(np.int64)
    targets_BT = np.where(place_BS[:, 1:] < len(tokens), token_BS[:, 1:], IGNORE)
    inputs_BT = token_BS[:, :-1].copy()
    documents_BT = None if separate_at is None else (inputs_BT == separate_at).cumsum(axis=1)
    return Batch(inputs_BT, targets_BT, documents_BT)
