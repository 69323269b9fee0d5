"""Beam search: the most probable answers, not drawn ones.

At each step every running beam is continued by every token; the best of all of these go on. The score of an answer that
has ended is its log-probability over length ** `length_penalty` (Wu et al. 2016, eq. 14, without their constant): 0 is
the sum, 1 the mean, more favours longer ones. The rules of when answers count as ended and when to stop are those of
transformers' `generate(num_beams=...)`.

`BeamSearch` takes log-probabilities and says what to go on with; who computes them keeps a cache or not. R running
beams, V vocabulary.
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tessera.errors import InputError, SettingError

EarlyStopping = bool | Literal["never"]
Score = Callable[[list[list[int]], list[int]], np.ndarray]


@dataclass(frozen=True)
class Beam:
    """The ids of an answer, its end token too, and its score."""

    ids: tuple[int, ...]
    score: float


class BeamSearch:
    """The running and the finished beams of one prompt, the best first.

    `early_stopping`: True stops when there are as many finished answers as beams; False when the best running beam, at
    its present length, is no better than the worst of these; "never" when none of them can be at any length.
    """

    def __init__(
        self,
        *,
        beams: int,
        max_tokens: int,
        ends: Collection[int] = (),
        length_penalty: float = 1.0,
        early_stopping: EarlyStopping = False,
    ) -> None:
        for name, value in (("beams", beams), ("max_tokens", max_tokens)):
            if value < 1:
                raise SettingError(name, value, "a whole number, 1 or greater")
        if early_stopping not in (True, False, "never"):
            raise SettingError("early_stopping", early_stopping, "true, false or 'never'")
        self.beams, self.max_tokens, self.ends = beams, max_tokens, frozenset(ends)
        self.length_penalty, self.early_stopping = length_penalty, early_stopping
        self.running = [Beam((), 0.0)]
        self.finished: list[Beam] = []
        self.done = False

    def step(self, logprobs_RV: np.ndarray) -> list[int]:
        """Continue each running beam; for each that runs now, the row that it came from."""
        if self.done:
            raise InputError("the beam search is over")
        if len(logprobs_RV) != len(self.running):
            raise InputError(f"{len(self.running)} beams are running, not {len(logprobs_RV)}")
        scores_RV = logprobs_RV.astype(np.float64) + np.array([[beam.score] for beam in self.running])
        if np.isnan(scores_RV).any():
            raise InputError("the log-probabilities are not numbers (NaN): the model is damaged or has diverged")
        # So many that enough of them go on even if every other one ends.
        candidates = _largest(scores_RV.ravel(), max(2, 1 + len(self.ends)) * self.beams)
        if not len(candidates):
            raise InputError("no token is left to choose from: every log-probability is -inf")
        going: list[tuple[int, Beam]] = []
        ended: list[Beam] = []
        for rank, (row, id) in enumerate(zip(*np.unravel_index(candidates, scores_RV.shape), strict=True)):
            beam = Beam((*self.running[row].ids, int(id)), float(scores_RV[row, id]))
            if len(beam.ids) < self.max_tokens and int(id) not in self.ends:
                going.append((int(row), beam))
            elif rank < self.beams:  # further down it only counts as room that others did not take
                ended.append(Beam(beam.ids, self.scored(beam.score, len(beam.ids))))
        self.finished = sorted([*self.finished, *ended], key=lambda beam: -beam.score)[: self.beams]
        length = len(self.running[0].ids) + 1
        self.running = [beam for _, beam in going[: self.beams]]
        self.done = not self.running or self._hopeless(length)
        return [row for row, _ in going[: self.beams]]

    def scored(self, logprob: float, length: int) -> float:
        """The score of an ended answer."""
        return logprob / length**self.length_penalty

    def _hopeless(self, length: int) -> bool:
        """Whether to stop although some beams could go on."""
        if len(self.finished) < self.beams:
            return False
        if self.early_stopping is True:
            return True
        if self.early_stopping == "never" and self.length_penalty > 0.0:
            length = self.max_tokens
        return self.scored(self.running[0].score, length) <= self.finished[-1].score


def beam_search(score: Score, prompt: Sequence[int] = (), *, n: int = 1, **settings: object) -> list[Beam]:
    """The `n` best answers to `prompt`, the best first; `settings` are those of `BeamSearch`.

    `score(prefixes, rows)` gives the log-probabilities after each prefix (R, V); `rows` says which of the prefixes of
    the call before each one continues, so that a cache can follow.
    """
    search = BeamSearch(**settings)  # type: ignore[arg-type]
    if not 1 <= n <= search.beams:
        raise SettingError("n", n, f"from 1 to the number of beams, {search.beams}")
    rows = [0]
    while not search.done:
        rows = search.step(score([[*prompt, *beam.ids] for beam in search.running], rows))
    return search.finished[:n]


def _largest(values: np.ndarray, k: int) -> np.ndarray:
    """The places of the k largest, the largest first, equal ones in their order; what is -inf is left out."""
    k = min(k, len(values))
    least = np.partition(values, len(values) - k)[len(values) - k]
    places = np.flatnonzero((values >= least) & (values > -math.inf))
    return places[np.argsort(-values[places], kind="stable")][:k]
