"""What the scheduler holds of a request: its answer, and the tokens in sight of the model, with their place in memory.

S rows of a step, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from tessera.generate.blocks import Key, block_key
from tessera.generate.requests import Answer
from tessera.generate.speculative import Guesses


class Said(NamedTuple):
    """What the model says after the last token of a sequence, and after each guess behind it."""

    logits_SV: np.ndarray
    best_S: Sequence[int | None]
    """What `best_ids` says of the rows."""
    guesses: Sequence[int]


@dataclass(eq=False)
class CachedSequence:
    """Tokens in sight of the model: `ids`, of which the first `length` are in the cache."""

    ids: list[int]
    length: int = 0
    blocks: list[int] = field(default_factory=list)
    promised: int = 0
    keys: list[Key] = field(default_factory=list)
    """Of all blocks that `ids` fill."""
    n_published: int = 0
    said: Said | None = None
    """After the last of `ids`, until the next token is chosen."""

    @property
    def pending(self) -> int:
        return len(self.ids) - self.length

    def add_keys(self, size: int) -> None:
        """Keys for those blocks that are filled since the last call."""
        while (end := (len(self.keys) + 1) * size) <= len(self.ids):
            self.keys.append(block_key(self.keys[-1] if self.keys else b"", self.ids[end - size : end]))

    def keys_ahead(self, size: int) -> list[Key]:
        """Of the blocks that could be shared next: at least the last token must be computed."""
        if self.length != len(self.blocks) * size:
            return []
        return self.keys[len(self.blocks) : (len(self.ids) - 1) // size]


@dataclass(eq=False)
class Request:
    """An answer, and the sequences that it is chosen by: its own, and that of a negative prompt under guidance."""

    id: int
    answer: Answer
    sequences: list[CachedSequence]
    fronts: list[int | None]
    """The begin token that stays in front of each sequence, if it had one."""
    guesses: Guesses | None = None


class Chunk(NamedTuple):
    """How a sequence goes on in a step: by its next `n` tokens, and `guesses` behind the last."""

    sequence: CachedSequence
    n: int
    guesses: Sequence[int] = ()
