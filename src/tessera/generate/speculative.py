"""Speculative decoding: guess tokens cheaply, look at all guesses in one step of the model, keep those that come true.

The model's logits after each guess are there at once, and from them the answer's tokens are chosen as ever, by its own
stream of random numbers, as long as what is chosen is what was guessed (Leviathan et al. 2023, "Fast Inference from
Transformers via Speculative Decoding", for guesses that are certain). The first one that is not takes the place of the
guess, and all behind it are forgotten. So a guess, right or wrong, changes no token of any answer, drawn or greedy,
whatever its settings are and whatever else is in the step: only how many tokens come out of a step.

A draft model's guesses are drawn, but by the number that will decide the answer's token: where the two distributions
are alike, so are the tokens (Daliri et al. 2024, "Coupling without Communication and Drafter-Invariant Speculative
Decoding"). The other way, to keep a guess drawn from q with probability p / q, keeps some more of them, but the answer
then depends on when there were guesses.

Who guesses is a `Guesser`: `PromptLookup` here, `DraftModel` in draft_model.py.
"""

from collections.abc import Sequence
from typing import Protocol, TypeVar

from tessera.errors import SettingError
from tessera.generate.chooser import Chooser

FIRST = 3
"""So many are guessed at first: a step of 4 rows costs hardly more than one of 1."""
LONGEST_PAUSE = 32
"""So many steps without guesses, at the most, before it is tried again."""


class Guesses(Protocol):
    """What a guesser knows of one answer."""

    def add(self, ids: Sequence[int], n_guessed: int) -> None:
        """These came out of a step; the first of `n_guessed` that were guessed are among them."""
        ...

    def close(self) -> None:
        """The answer has ended."""
        ...


G = TypeVar("G")


class Guesser(Protocol[G]):
    """Guesses what follows, for any number of answers."""

    @property
    def n_vocab(self) -> int | None:
        """The vocabulary that it guesses from; None if it fits any."""
        ...

    def start(self, prompt: Sequence[int], chooser: Chooser) -> G:
        """For a new answer."""
        ...

    def guess(self, asked: Sequence[tuple[G, int]]) -> list[list[int]]:
        """For each of these answers at most so many tokens, none too."""
        ...


class Pace:
    """How many to guess: as many as came true of late, up to `most`; none for a while after several misses.

    A miss costs little, so the pause begins with the second in a row; it doubles with each one more.
    """

    def __init__(self, most: int) -> None:
        if most < 1:
            raise SettingError("k", most, "a whole number, 1 or greater")
        self._most = most
        self._now = min(FIRST, most)
        self._missed = 0
        self._pause = 0

    def next(self) -> int:
        """How many in this step."""
        if self._pause:
            self._pause -= 1
            return 0
        return self._now

    def told(self, n_guessed: int, n_right: int) -> None:
        """So many of the guesses of a step came true."""
        if n_right:
            self._missed = 0
            self._now = min(self._most, 2 * self._now + 1 if n_right == n_guessed else max(FIRST, n_right))
        elif n_guessed:
            self._missed += 1
            self._now = min(FIRST, self._most)
            self._pause = 0 if self._missed == 1 else min(LONGEST_PAUSE, 2**self._missed)


class Lookup:
    """The tokens of one answer and its prompt, and what followed each run of them the last time.

    A run of 3 tokens that has occurred wins over one of 2. What followed is continued into itself, as a text that
    repeats itself does.

    >>> lookup = Lookup([1, 2, 3, 4, 9, 2, 3], k=4)
    >>> lookup.guess(4)
    [4, 9, 2]
    """

    RUNS = (3, 2)

    def __init__(self, ids: Sequence[int], k: int) -> None:
        self._ids = list(ids)
        self._pace = Pace(k)
        self._after: dict[tuple[int, ...], int] = {}
        self._n_known = 0
        """Of so many tokens it is noted what they follow: all at the first guess, then one by one."""

    def guess(self, most: int) -> list[int]:
        """At most so many tokens, and no more than have come true of late."""
        n = min(most, self._pace.next())
        ids, size = self._ids, len(self._ids)
        for place in range(self._n_known, size):
            for run in self.RUNS:
                if run <= place:
                    self._after[tuple(ids[place - run : place])] = place
        self._n_known = size
        if not n:
            return []
        place = next((found for run in self.RUNS if run < size and (found := self._after.get(tuple(ids[-run:])))), size)
        period = ids[place:]
        return [period[i % len(period)] for i in range(n)] if period else []

    def add(self, ids: Sequence[int], n_guessed: int) -> None:
        self._ids += ids
        self._pace.told(n_guessed, min(n_guessed, len(ids) - 1))

    def close(self) -> None:
        """It holds nothing that others could want."""


class PromptLookup:
    """Guesses that a run of tokens that has occurred goes on as it did (Saxena 2023, "Prompt lookup decoding"; Yang et
    al. 2023), up to `k` tokens."""

    n_vocab = None

    def __init__(self, k: int = 7) -> None:
        Pace(k)  # for its SettingError
        self.k = k

    def start(self, prompt: Sequence[int], chooser: Chooser) -> Lookup:
        return Lookup(prompt, self.k)

    def guess(self, asked: Sequence[tuple[Lookup, int]]) -> list[list[int]]:
        return [lookup.guess(most) for lookup, most in asked]
