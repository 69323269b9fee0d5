"""What one answer needs to choose its next token: settings, a stream of random numbers, the ids before, a constraint.

An engine has a `Chooser` for each answer and gives it the logits of its row, whatever else is in the step: what it
chooses depends on those logits and on its own past alone. One uniform number is drawn for each token that is not
greedy; who guesses tokens (speculative.py) may look at the next ones, which moves nothing.
"""

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from tessera.errors import InputError
from tessera.generate.logits import check_logits, guided, in_float32, log_probabilities
from tessera.generate.mirostat import Bound
from tessera.generate.rows import Candidates, candidates
from tessera.generate.sampling import Sampling, edited, uniform

if TYPE_CHECKING:
    from tessera.generate.constrain.constraint import Constraint


@dataclass(frozen=True)
class Choice:
    """A token that was chosen. Log-probabilities are the model's own: before bias, penalties and filters."""

    id: int
    logprob: float | None = None
    """Of `id`; None where `logprobs` is not set."""
    top: list[tuple[int, float]] = field(default_factory=list)
    """The `logprobs` most probable ids with theirs."""


class Chooser:
    """The state of one answer. `ids` are those chosen so far; `ends` are the tokens that end an answer.

    With `guidance` each call needs `negative_V`, the logits of the same answer after the
    negative prompt.
    """

    def __init__(
        self,
        sampling: Sampling,
        generator: np.random.Generator,
        *,
        prompt: Sequence[int] = (),
        ends: Collection[int] = (),
        constraint: "Constraint | None" = None,
    ) -> None:
        if constraint is None and (sampling.regex is not None or sampling.json_schema is not None):
            raise InputError("these settings constrain the output: the chooser needs the compiled constraint")
        self.sampling, self.constraint, self.ends = sampling, constraint, frozenset(ends)
        self.ids: list[int] = []
        self._generator = generator
        self._uniforms: deque[float] = deque()
        self._n_prompt = len(prompt)
        self._previous = list(prompt)
        self._state = 0 if constraint is None else constraint.start
        mirostat = sampling.mirostat
        self._bound = None if mirostat is None else Bound(tau=mirostat.tau, eta=mirostat.eta)
        special = (sampling.guidance, constraint, mirostat)
        self._plain = not sampling.logit_bias and not sampling.looks_back and all(each is None for each in special)

    @property
    def finished(self) -> bool:
        """Whether the constraint leaves nothing to add: the answer is whole, and no end token need be drawn."""
        return self.constraint is not None and self.constraint.finished(self._state)

    def peek(self, n: int) -> float:
        """The uniform number that decides the token after the next n."""
        while len(self._uniforms) <= n:
            self._uniforms.append(uniform(self._generator))
        return self._uniforms[n]

    def choose(self, logits_V: np.ndarray, negative_V: np.ndarray | None = None, *, best: int | None = None) -> Choice:
        """Draw the next token and add it. `best`: what `best_ids` said of the row, if it was asked."""
        greedy = self.sampling.temperature == 0.0
        if best is None or not self._plain or (self._ends_wait and not (greedy and best not in self.ends)):
            id = self._drawn(self._edited(logits_V, negative_V))
        elif greedy:
            id = best
        else:
            id = candidates(in_float32(logits_V), self.sampling).pick(self._uniform())
        return self._take(id, logits_V)

    def _drawn(self, edited_V: np.ndarray) -> int:
        check_logits(edited_V)
        if self.sampling.temperature == 0.0:
            return int(edited_V.argmax())
        found = candidates(edited_V, self.sampling)
        if self._bound is None:
            return found.pick(self._uniform())
        shaped_V = found.row()
        id = Candidates(self._bound.cut(shaped_V)).pick(self._uniform())
        self._bound.take(shaped_V, id)
        return id

    def _take(self, id: int, logits_V: np.ndarray) -> Choice:
        if self.constraint is not None:
            self._state = self.constraint.advance(self._state, id)
        self.ids.append(id)
        self._previous.append(id)
        if self.sampling.logprobs is None:
            return Choice(id)
        return Choice(id, *log_probabilities(in_float32(logits_V), id, self.sampling.logprobs))

    def _uniform(self) -> float:
        return self._uniforms.popleft() if self._uniforms else uniform(self._generator)

    @property
    def _ends_wait(self) -> bool:
        """Whether an end token may not be drawn yet."""
        return bool(self.ends) and (self.sampling.ignore_eos or len(self.ids) < self.sampling.min_tokens)

    def _edited(self, logits_V: np.ndarray, negative_V: np.ndarray | None) -> np.ndarray:
        """The logits before temperature and filters."""
        logits_V = in_float32(logits_V)
        check_logits(logits_V)
        guidance = self.sampling.guidance
        if guidance is not None:
            if negative_V is None:
                raise InputError("guidance needs the logits after the negative prompt")
            logits_V = guided(logits_V, in_float32(negative_V), guidance.scale)
        logits_V = edited(logits_V, self.sampling, self._previous, self._n_prompt, self.ends)
        return logits_V if self.constraint is None else self.constraint.masked(logits_V, self._state)
