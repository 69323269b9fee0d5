"""What a model reads in one go, and what it should say.

B batch, T time (the context).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

IGNORE = -100
"""The target that `cross_entropy` leaves out."""


@dataclass(frozen=True)
class Batch:
    """What the model reads, and what it should say next at each place; all int64.

    `documents_BT`, where it is there, numbers the documents of each row: a token then sees its own document only.
    """

    inputs_BT: Tensor
    targets_BT: Tensor
    documents_BT: Tensor | None = None

    @property
    def n_targets(self) -> int:
        """How many tokens are predicted: what a loss is averaged over."""
        return int((self.targets_BT != IGNORE).sum())

    def to(self, device: torch.device | str) -> "Batch":
        tensors = (self.inputs_BT, self.targets_BT, self.documents_BT)
        return Batch(*(None if one is None else one.to(device, non_blocking=True) for one in tensors))  # type: ignore[arg-type]

    def pinned(self) -> "Batch":
        """In memory that a GPU fetches from by itself, while the processor goes on."""
        tensors = (self.inputs_BT, self.targets_BT, self.documents_BT)
        return Batch(*(None if one is None else one.pin_memory() for one in tensors))  # type: ignore[arg-type]

    def in_rows_of(self, length: int) -> "Batch":
        """The same tokens in shorter rows: of `length`, or of the largest divisor of the context below it.

        >>> batch = Batch(torch.tensor([[1, 2, 3, 4]]), torch.tensor([[2, 3, 4, 5]]))
        >>> batch.in_rows_of(2).targets_BT
        tensor([[2, 3],
                [4, 5]])
        """
        context = self.inputs_BT.shape[1]
        length = next(size for size in range(min(length, context), 0, -1) if context % size == 0)
        tensors = (self.inputs_BT, self.targets_BT, self.documents_BT)
        return Batch(*(None if one is None else one.reshape(-1, length) for one in tensors))  # type: ignore[arg-type]


def windows(tokens: np.ndarray, starts_B: np.ndarray, context: int, separate_at: int | None = None) -> Batch:
    """The windows that begin at `starts_B`; past the end, targets are IGNORE and inputs repeat the last token.

    With `separate_at`, the id of the end token, each such token begins another document of its row: the first word of
    a document is then predicted from the end token alone, as it is when a text is generated from nothing.
    """
    place_BS = starts_B.astype(np.int64)[:, None] + np.arange(context + 1)  # S = T + 1
    token_BS = np.asarray(tokens[np.minimum(place_BS, len(tokens) - 1)]).astype(np.int64)
    targets_BT = np.where(place_BS[:, 1:] < len(tokens), token_BS[:, 1:], IGNORE)
    inputs_BT = torch.from_numpy(token_BS[:, :-1].copy())
    documents_BT = None if separate_at is None else (inputs_BT == separate_at).cumsum(dim=1)
    return Batch(inputs_BT, torch.from_numpy(targets_BT), documents_BT)
