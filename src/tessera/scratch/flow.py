"""What goes beside the residual stream in one pass: where the tokens stand, and what layers leave for one another."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from tessera.errors import InputError


@dataclass
class Flow:
    """One pass of `length` tokens, of which the first stands at `start` (a cache holds those before).

    With `documents_BT`, a row is several documents one after the other, each a run of one number: a token sees its own
    document only, and positions begin anew in each. With `rng`, the pass is one of training and dropout draws from it.
    """

    start: int
    length: int
    documents_BT: np.ndarray | None = None
    rng: np.random.Generator | None = None
    first_value_BTGK: np.ndarray | None = None
    """The values of the first layer, for the layers that mix them in."""
    dfirst_value_BTGK: np.ndarray | None = None
    """The gradient that those layers have for them; the first layer, which comes last in the backward pass, adds it."""

    _made: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.documents_BT is not None and self.start:
            raise InputError("several documents in a row cannot go on from a cache")

    @cached_property
    def places(self) -> np.ndarray | None:
        """The position of each token in its own document; None where they are `start`, `start` + 1, ... in each row.

        >>> Flow(0, 5, np.array([[7, 7, 8, 8, 8]])).places
        array([[0, 1, 0, 1, 2]])
        """
        if self.documents_BT is None:
            return None
        places_T = np.arange(self.length)
        begins_BT = np.ones(self.documents_BT.shape, dtype=bool)
        begins_BT[:, 1:] = self.documents_BT[:, 1:] != self.documents_BT[:, :-1]
        return places_T - np.maximum.accumulate(np.where(begins_BT, places_T, 0), axis=1)

    def take(self, table_SC: np.ndarray) -> np.ndarray:
        """The rows of a table of positions: (T, C), a view; (B, T, C) where each row of the batch has its own."""
        if self.places is None:
            return table_SC[self.start : self.start + self.length]
        return table_SC[self.places]

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` makes, made at the first call with this key: for what the layers of a pass share."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]
