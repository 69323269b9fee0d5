"""Short texts -> batches: each text is a row of its own, padded, so that none is learned as another's continuation.

`tessera.data.batches` cuts one long row of tokens into windows, which is right for a corpus; here are the rows for a
handful of sentences. A text longer than the context becomes several rows, each token after its first a target once.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tessera.data.batches import IGNORE, Batch
from tessera.data.shuffle import Purpose, permutation
from tessera.errors import InputError, SettingError


class DocumentRows:
    """Each row once an epoch, in an order that (seed, epoch) decides, without end; an epoch's last batch may be short.

    With `end_id` each text is closed by it, so that the model learns where texts end.
    """

    kind = "rows"

    def __init__(
        self, texts: Sequence[Sequence[int]], *, context: int, batch_size: int, end_id: int | None = None, seed: int = 0
    ) -> None:
        for name, value in (("context", context), ("batch_size", batch_size)):
            if value < 1:
                raise SettingError(name, value, "a whole number from 1")
        end = [] if end_id is None else [end_id]
        closed = [[*ids, *end] for ids in texts if len(ids)]
        self._rows = [ids[i : i + context + 1] for ids in closed for i in range(0, len(ids) - 1, context)]
        if not self._rows:
            raise InputError("there is no text to learn from: each one is shorter than two tokens")
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        self.position = 0

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self._rows) // self.batch_size)

    def __next__(self) -> Batch:
        order = permutation(len(self._rows), seed=self.seed, purpose=Purpose.EPOCH, counter=self.epoch)
        rows = [self._rows[i] for i in order[self.position : self.position + self.batch_size]]
        self.position += len(rows)
        if self.position == len(self._rows):
            self.epoch, self.position = self.epoch + 1, 0
        width = max(len(row) for row in rows) - 1
        inputs_BT = np.zeros((len(rows), width), dtype=np.int64)
        targets_BT = np.full((len(rows), width), IGNORE, dtype=np.int64)
        for i, row in enumerate(rows):
            inputs_BT[i, : len(row) - 1] = row[:-1]
            targets_BT[i, : len(row) - 1] = row[1:]
        return Batch(inputs_BT, targets_BT)

    def state(self) -> dict[str, Any]:
        """The cursor, as JSON-able data."""
        return {"kind": self.kind, "seed": self.seed, "epoch": self.epoch, "position": self.position}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on exactly where the rows that gave `state` stood."""
        if (state.get("kind"), state.get("seed")) != (self.kind, self.seed):
            raise InputError("the data cursor belongs to other batches")
        self.epoch, self.position = int(state["epoch"]), int(state["position"])
