"""What goes beside the residual stream in one pass through the decoder.

The stream carries what each token means; a `Flow` carries what all layers share: where the tokens stand, which document
each is in, what an early layer leaves for a later one, and the losses and figures that pieces add. It is made for one
pass and dropped after it, so that no piece keeps a state between two.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from tessera.errors import InputError

T = TypeVar("T")


@dataclass
class Flow:
    """One pass of `length` tokens, of which the first stands at `start` (a cache holds those before).

    With `documents_BT`, a row is several documents one after the other, each a run of one number: a token sees its own
    document only, and positions begin anew in each. That is for training; a cache knows no documents.
    """

    start: int
    length: int
    documents_BT: Tensor | None = None
    layer: int = 0
    """The number of the layer that is at work, for the names of figures."""
    first_value_BTGK: Tensor | None = None
    """The values of the first layer, for the layers that mix them in."""
    losses: list[Tensor] = field(default_factory=list)
    """What pieces want to have small, each weighted already: a loss adds their sum to its own."""
    figures: dict[str, Tensor] = field(default_factory=dict)
    """What pieces have measured, by name; without gradients."""
    again: bool = False
    """Whether this pass was made before and is made again for its gradients: what it counts has been counted."""
    _made: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, ids_BT: Tensor, start: int = 0, documents_BT: Tensor | None = None) -> Self:
        """The flow of a batch of ids (or of vectors: only the first two sizes are read)."""
        if documents_BT is not None:
            if documents_BT.shape != ids_BT.shape[:2]:
                raise InputError(f"documents of shape {tuple(documents_BT.shape)} for {tuple(ids_BT.shape[:2])} tokens")
            if start:
                raise InputError("several documents in a row cannot go on from a cache")
        return cls(start=start, length=ids_BT.shape[1], documents_BT=documents_BT)

    @property
    def end(self) -> int:
        """The position after the last one."""
        return self.start + self.length

    @cached_property
    def places(self) -> Tensor | None:
        """The position of each token in its own document; None where they are `start`, `start` + 1, ... in each row.

        >>> Flow.of(ids := torch.zeros(1, 5), documents_BT=torch.tensor([[7, 7, 8, 8, 8]])).places
        tensor([[0, 1, 0, 1, 2]])
        """
        if self.documents_BT is None:
            return None
        places_BT = torch.arange(self.length, device=self.documents_BT.device).expand_as(self.documents_BT)
        begins_BT = torch.ones_like(self.documents_BT, dtype=torch.bool)
        begins_BT[:, 1:] = self.documents_BT[:, 1:] != self.documents_BT[:, :-1]
        return places_BT - torch.where(begins_BT, places_BT, 0).cummax(dim=1).values

    def take(self, table_SC: Tensor) -> Tensor:
        """The rows of a table of positions: (T, C), a view; (B, T, C) where each row of the batch has its own."""
        if self.places is None:
            return table_SC[self.start : self.start + self.length]
        return table_SC[self.places]

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` makes, made at the first call with this key: for what the layers of a pass share."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]
