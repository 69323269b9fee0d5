"""What one answer needs to choose its next token: settings, a stream of random numbers, the ids before, a constraint.

An engine has a `Chooser` for each answer and gives it the logits of its row, whatever else is in the step: what it
chooses depends on those logits and on its own past alone. One uniform number is drawn for each token that is not
greedy, also where tokens were guessed beforehand (speculative.py).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tessera.errors import InputError
from tessera.generate.constrain.constraint import Constraint
from tessera.generate.logits import check_logits, guided, log_probabilities
from tessera.generate.mirostat import Bound
from tessera.generate.sampling import Sampling, draw, edited, in_float32, pick, shaped


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

    With `guidance` each call needs `negative_V`, the logits of the same answer after the negative prompt.
    """

    def __init__(
        self,
        sampling: Sampling,
        generator: torch.Generator,
        *,
        prompt: Sequence[int] = (),
        ends: Collection[int] = (),
        constraint: Constraint | None = None,
    ) -> None:
        if constraint is None and (sampling.regex is not None or sampling.json_schema is not None):
            raise InputError("these settings constrain the output: the chooser needs the compiled constraint")
        self.sampling, self.constraint, self.ends = sampling, constraint, frozenset(ends)
        self.ids: list[int] = []
        self._generator = generator
        self._n_prompt = len(prompt)
        self._previous = list(prompt)
        self._state = 0 if constraint is None else constraint.start
        mirostat = sampling.mirostat
        self._bound = None if mirostat is None else Bound(tau=mirostat.tau, eta=mirostat.eta)

    @property
    def finished(self) -> bool:
        """Whether the constraint leaves nothing to add: the answer is whole, and no end token need be drawn."""
        return self.constraint is not None and self.constraint.finished(self._state)

    def distribution(self, logits_V: Tensor, negative_V: Tensor | None = None) -> Tensor:
        """The logits that the next token is drawn from; -inf is what cannot be."""
        logits_V = shaped(self._edited(logits_V, negative_V)[None], self.sampling)[0]
        return logits_V if self._bound is None else self._bound.cut(logits_V)

    def choose(self, logits_V: Tensor, negative_V: Tensor | None = None) -> Choice:
        """Draw the next token and add it."""
        if self._bound is None:
            edited_V = self._edited(logits_V, negative_V)
            id = int(pick(edited_V[None], self.sampling, [self._generator])[0])
        else:
            id = int(draw(self.distribution(logits_V, negative_V)[None], [self._generator])[0])
        return self.take(id, logits_V, negative_V)

    def take(self, id: int, logits_V: Tensor, negative_V: Tensor | None = None) -> Choice:
        """Add a token that was drawn elsewhere from `distribution(logits_V, negative_V)`."""
        if self._bound is not None:
            self._bound.take(shaped(self._edited(logits_V, negative_V)[None], self.sampling)[0], id)
        if self.constraint is not None:
            self._state = self.constraint.advance(self._state, id)
        self.ids.append(id)
        self._previous.append(id)
        if self.sampling.logprobs is None:
            return Choice(id)
        return Choice(id, *log_probabilities(in_float32(logits_V), id, self.sampling.logprobs))

    def _edited(self, logits_V: Tensor, negative_V: Tensor | None) -> Tensor:
        """The logits before temperature and filters."""
        logits_V = in_float32(logits_V)
        check_logits(logits_V)
        guidance = self.sampling.guidance
        if guidance is not None:
            if negative_V is None:
                raise InputError("guidance needs the logits after the negative prompt")
            logits_V = guided(logits_V, in_float32(negative_V).to(logits_V.device), guidance.scale)
        logits_V = edited(logits_V, self.sampling, self._previous, self._n_prompt, self.ends)
        return logits_V if self.constraint is None else self.constraint.masked(logits_V, self._state)
