"""Guesses of a smaller model with the same vocabulary, which has a cache of its own.

It reads what the answers have got since it last looked, and then goes on one token at a time, all answers together. A
guess is drawn with the answer's temperature and filters and by the number that will decide the answer's token there;
penalties and constraints it leaves out, which costs a guess at the worst.
"""

from collections.abc import Sequence

import numpy as np

from tessera.generate.chooser import Chooser
from tessera.generate.logits import best_ids, check_logits
from tessera.generate.requests import Backend, StepRows
from tessera.generate.rows import candidates
from tessera.generate.speculative import Pace

READ = 256
"""So many tokens of an answer does it read in a step; a longer prompt is read over several, without guesses."""


class Drafted:
    """One answer as the draft model sees it: of its tokens from `first` on, and the guesses, `n_read` are cached."""

    def __init__(self, model: "DraftModel", prompt: Sequence[int], chooser: Chooser) -> None:
        self._model, self.chooser = model, chooser
        self.pace = Pace(model.k)
        self.ids = list(prompt)
        self.first = self.n_read = 0
        self.guesses: list[int] = []
        self.blocks: list[int] = []

    @property
    def n_in_sight(self) -> int:
        return len(self.ids) - self.first

    def unread(self) -> list[int]:
        """What comes next into the cache."""
        n_old = self.n_read - self.n_in_sight
        rest = self.guesses[n_old:] if n_old >= 0 else self.ids[n_old:] + self.guesses
        return rest[:READ]

    def forget(self, n_right: int = 0) -> None:
        """The guesses are over; the first of them came true and stay in the cache."""
        self.n_read = min(self.n_read, self.n_in_sight + n_right)
        self.guesses = []

    def look_from(self, first: int) -> None:
        """Leave out what stands before, and read the rest again."""
        self.first, self.n_read = first, 0

    def add(self, ids: Sequence[int], n_guessed: int) -> None:
        n_right = min(n_guessed, len(ids) - 1)
        self.forget(n_right)
        self.ids += ids
        self.pace.told(n_guessed, n_right)

    def close(self) -> None:
        self._model.give_back(self)


class DraftModel:
    """Up to `k` tokens of the model behind `backend`. An answer for which there is no block left is not guessed at."""

    def __init__(self, backend: Backend, k: int = 5) -> None:
        Pace(k)  # for its SettingError
        self.backend, self.k, self.n_vocab = backend, k, backend.n_vocab
        self._free = list(range(backend.n_blocks))

    @property
    def n_free(self) -> int:
        """How many blocks nobody holds."""
        return len(self._free)

    def start(self, prompt: Sequence[int], chooser: Chooser) -> Drafted:
        return Drafted(self, prompt, chooser)

    def guess(self, asked: Sequence[tuple[Drafted, int]]) -> list[list[int]]:
        going = []
        for drafted, most in asked:
            drafted.forget()
            n = min(most, drafted.pace.next())
            if n and self._has_room(drafted, n):
                going.append((drafted, n))
        while going:
            chosen = self._step([drafted for drafted, _ in going])
            for (drafted, _), id in zip(going, chosen, strict=True):
                if id is not None:
                    drafted.guesses.append(id)
            going = [
                (drafted, n)
                for (drafted, n), id in zip(going, chosen, strict=True)
                if id is not None and len(drafted.guesses) < n
            ]
        return [list(drafted.guesses) for drafted, _ in asked]

    def give_back(self, drafted: Drafted) -> None:
        """Its blocks are free."""
        self._free += drafted.blocks
        drafted.blocks = []

    def _has_room(self, drafted: Drafted, n: int) -> bool:
        """Whether n more tokens can be looked at, what came long ago left out if need be."""
        context, size = self.backend.context, self.backend.block_size
        if drafted.n_in_sight + n > context:
            drafted.look_from(len(drafted.ids) - max(1, context // 2))
        n_missing = -(-(drafted.n_in_sight + n) // size) - len(drafted.blocks)
        if drafted.n_in_sight + n > context or n_missing > len(self._free):
            return False
        drafted.blocks += [self._free.pop() for _ in range(n_missing)]
        return True

    def _step(self, answers: Sequence[Drafted]) -> list[int | None]:
        """The next guess for each; None if it has not been read to its end."""
        rows = StepRows([], [], [], [])
        is_read = []
        for number, drafted in enumerate(answers):
            ids = drafted.unread()
            rows.ids.extend(ids)
            rows.sequences.extend([number] * len(ids))
            rows.positions.extend(range(drafted.n_read, drafted.n_read + len(ids)))
            drafted.n_read += len(ids)
            is_read.append(drafted.n_read == drafted.n_in_sight + len(drafted.guesses))
            if is_read[-1]:
                rows.wanted.append(len(rows.ids) - 1)
        logits_WV = self.backend.step(rows, [drafted.blocks for drafted in answers])
        if not rows.wanted:
            return [None] * len(answers)
        check_logits(logits_WV)
        found = zip(logits_WV, best_ids(logits_WV), strict=True)
        return [
            _guess(drafted, *next(found)) if ready else None for drafted, ready in zip(answers, is_read, strict=True)
        ]


def _guess(drafted: Drafted, logits_V: np.ndarray, best: int | None) -> int:
    assert best is not None
    sampling = drafted.chooser.sampling
    if sampling.temperature == 0.0:
        return best
    return candidates(logits_V, sampling).pick(drafted.chooser.peek(len(drafted.guesses)))
