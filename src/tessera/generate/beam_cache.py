"""What beam search asks of a model, by steps over a cache in blocks: each running beam has a table of blocks.

A beam that goes on once keeps its table. One that goes on several times is shared: the others hold its full blocks too,
and compute the few tokens behind these again, so that no block is ever copied. R running beams, V vocabulary.
"""

from collections.abc import Sequence
from types import TracebackType
from typing import Self

import numpy as np

from tessera.errors import InputError, SettingError
from tessera.generate.blocks import Blocks
from tessera.generate.logits import log_softmax
from tessera.generate.requests import Backend, StepRows

READ = 512
"""So many tokens of the prompt are read in a step."""


def blocks_needed(n_prompt: int, max_tokens: int, width: int, size: int) -> int:
    """How many blocks, at the most: the full ones of the prompt are shared by all beams."""
    n_shared = (n_prompt - 1) // size
    n_each = -(-(n_prompt + max_tokens - 1) // size)
    return n_shared + width * (n_each - n_shared)


class BeamCache:
    """The `score` of `beam_search`, within `with`: it holds blocks of `blocks` until the end."""

    def __init__(self, backend: Backend, blocks: Blocks, prompt: Sequence[int], *, width: int, max_tokens: int) -> None:
        for name, value in (("width", width), ("max_tokens", max_tokens)):
            if value < 1:
                raise SettingError(name, value, "a whole number, 1 or greater")
        if len(prompt) + max_tokens - 1 > backend.context:
            raise InputError(
                f"the prompt is {len(prompt)} tokens long, {max_tokens} may follow, and the model's context is "
                f"{backend.context}: beams cannot go past it; shorten the prompt or lower max_tokens"
            )
        self._backend, self._blocks, self._prompt = backend, blocks, prompt
        self._needed = blocks_needed(len(prompt), max_tokens, width, blocks.size)
        if not blocks.admits(self._needed):
            raise InputError(
                f"{width} beams may need {self._needed * blocks.size} positions of the cache, and "
                f"{(blocks.n_available - blocks.promised) * blocks.size} are free: "
                f"shorten the prompt ({len(prompt)} tokens), lower max_tokens ({max_tokens}) or width"
            )
        self._promised = 0
        self._tables: list[list[int]] = [[]]
        self._lengths = [0]

    def __enter__(self) -> Self:
        self._settle()
        for begin in range(0, len(self._prompt) - 1, READ):
            self._step([self._prompt[: min(begin + READ, len(self._prompt) - 1)]], wanted=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for table in self._tables:
            self._blocks.release(table)
        self._blocks.promised -= self._promised

    def __call__(self, prefixes: Sequence[Sequence[int]], rows: Sequence[int]) -> np.ndarray:
        """The log-probabilities after each prefix, (R, V); it continues that of the call before with the number of its
        row."""
        self._follow(rows)
        return log_softmax(self._step(prefixes).astype(np.float64))

    def _follow(self, rows: Sequence[int]) -> None:
        """Tables for the beams that go on."""
        for row, table in enumerate(self._tables):
            if row not in rows:
                self._blocks.release(table)
                self._tables[row] = []
        size, taken = self._blocks.size, set()
        tables, lengths = [], []
        for row in rows:
            table, length = self._tables[row], self._lengths[row]
            if row in taken:
                table, length = table[: length // size], length // size * size
                for block in table:
                    self._blocks.promised += 1  # it takes the place of none that was promised
                    self._blocks.share(block)
            taken.add(row)
            tables.append(table)
            lengths.append(length)
        self._tables, self._lengths = tables, lengths
        self._settle()

    def _settle(self) -> None:
        """Whatever is not held is promised."""
        promised = self._needed - len({block for table in self._tables for block in table})
        self._blocks.promised += promised - self._promised
        self._promised = promised

    def _step(self, prefixes: Sequence[Sequence[int]], *, wanted: bool = True) -> np.ndarray:
        """Read what is new of each prefix; the logits after the last of it."""
        made = StepRows([], [], [], [])
        for number, (ids, table, length) in enumerate(zip(prefixes, self._tables, self._lengths, strict=True)):
            while len(table) * self._blocks.size < len(ids):
                table.append(self._blocks.take())
                self._promised -= 1
            made.ids.extend(ids[length:])
            made.sequences.extend([number] * (len(ids) - length))
            made.positions.extend(range(length, len(ids)))
            if wanted:
                made.wanted.append(len(made.ids) - 1)
        self._lengths = [len(ids) for ids in prefixes]
        return self._backend.step(made, self._tables)
