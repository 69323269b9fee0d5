"""A backend whose cache is cut into slots, one a sequence, behind the scheduler: a slot is one long block.

So the accounts are the same: a request is promised one block, and nobody shares.
"""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from tessera.generate.requests import StepRows


class Slots(Protocol):
    """What `generate.cpu.CpuModel` is: each row says its slot."""

    n_vocab: int
    context: int
    n_slots: int

    def step(self, rows: StepRows) -> Tensor: ...


class SlotStep:
    """`Backend` for what has slots. `n_vocab`: ids beyond, those of a padded head, are left out of the logits."""

    shares = False

    def __init__(self, model: Slots, *, n_vocab: int | None = None) -> None:
        self._model = model
        self.n_vocab = model.n_vocab if n_vocab is None else n_vocab
        self.context = self.block_size = model.context
        self.n_blocks = model.n_slots

    def step(self, rows: StepRows, tables: Sequence[Sequence[int]]) -> Tensor:
        """The logits after each wanted row, (wanted, V)."""
        slots = [tables[sequence][0] for sequence in rows.sequences]
        return self._model.step(rows._replace(sequences=slots))[:, : self.n_vocab]
