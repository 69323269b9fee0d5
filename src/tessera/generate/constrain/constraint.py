"""A compiled constraint: which tokens may come next, for each state that an answer can be in.

The automaton is over bytes and the tokens are laid along it, so a token may end in the middle of a character, of a
number, of a key. End tokens are allowed only where the text is complete. All masks are made when they are first needed
and kept as packed bits; one compiled constraint serves any number of answers, each of which holds only its state.
"""

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tessera.errors import InputError
from tessera.generate.constrain.automaton import DEAD, Automaton, Limit
from tessera.generate.constrain.build import automaton
from tessera.generate.constrain.json_schema import parse_schema
from tessera.generate.constrain.regex import parse_regex
from tessera.generate.constrain.syntax import Node
from tessera.generate.constrain.vocabulary import Vocabulary
from tessera.generate.logits import allowed_only
from tessera.generate.settings import Sampling

STATES = 20_000
"""The most states that an automaton may have: 20 MB of table."""
MASKS = 4_096
"""So many masks are kept, at most: 25 MB for 50,000 tokens."""


class Constraint:
    """An automaton and a vocabulary. States are numbers; -1 is the state after an end token."""

    ENDED = -1

    def __init__(self, automaton: Automaton, vocabulary: Vocabulary) -> None:
        self.automaton, self.vocabulary = automaton, vocabulary
        self.start = automaton.start
        self._masks: OrderedDict[int, np.ndarray] = OrderedDict()

    @classmethod
    def regex(cls, pattern: str, vocabulary: Vocabulary, *, states: int = STATES) -> "Constraint":
        """The whole text matches `pattern`."""
        limit = Limit(states, f"the pattern {pattern!r}")
        made = _compiled(lambda: parse_regex(pattern), limit)
        if made.empty:
            raise InputError(f"the pattern {pattern!r} matches no text at all")
        return cls(made, vocabulary)

    @classmethod
    def json_schema(
        cls,
        schema: Mapping[str, Any] | bool,
        vocabulary: Vocabulary,
        *,
        depth: int = 4,
        space: str = "[ ]?",
        states: int = STATES,
    ) -> "Constraint":
        """The whole text is a JSON document that is valid under `schema`; see `json_schema.py` for `depth`, `space`."""
        limit = Limit(states, "the JSON schema")
        made = _compiled(lambda: parse_schema(schema, limit=limit, depth=depth, space=space), limit)
        if made.empty:
            raise InputError(
                f"the JSON schema allows no document, or none that nests its references at most {depth} deep"
            )
        return cls(made, vocabulary)

    @classmethod
    def of(cls, sampling: Sampling, vocabulary: Vocabulary) -> "Constraint | None":
        """What `sampling` asks for; None if the output is free."""
        if sampling.regex is not None:
            return cls.regex(sampling.regex, vocabulary)
        if sampling.json_schema is not None:
            return cls.json_schema(sampling.json_schema, vocabulary)
        return None

    def accepts(self, state: int) -> bool:
        """Whether the text may end here."""
        return state == self.ENDED or bool(self.automaton.accepting[state])

    def finished(self, state: int) -> bool:
        """Whether the text must end here: it is complete, and nothing can follow."""
        return state == self.ENDED or (self.accepts(state) and not self.automaton.table[state].any())

    def allowed(self, state: int) -> np.ndarray:
        """The ids that may come next, end tokens too, in order."""
        return np.flatnonzero(self.mask(state))

    def mask(self, state: int) -> np.ndarray:
        """True for each id that may come next, (n_vocab of the vocabulary,)."""
        if state == self.ENDED:
            return self._bits(np.zeros(0, dtype=np.int64), ends=True)
        if state in self._masks:
            self._masks.move_to_end(state)
        else:
            ids = self.vocabulary.allowed(self.automaton, state)
            self._masks[state] = np.packbits(self._bits(ids, ends=self.accepts(state)))
            if len(self._masks) > MASKS:
                self._masks.popitem(last=False)
        return np.unpackbits(self._masks[state], count=self.vocabulary.n_vocab).view(bool)

    def masked(self, logits_V: np.ndarray, state: int) -> np.ndarray:
        """-inf at every id that may not come next. A model's head may be longer than the vocabulary."""
        if len(logits_V) < self.vocabulary.n_vocab:
            raise InputError(f"{len(logits_V)} logits for a vocabulary of {self.vocabulary.n_vocab}")
        mask = self.mask(state)
        if not mask.any():
            raise InputError(self._stuck(state))
        return allowed_only(logits_V, mask)

    def advance(self, state: int, id: int) -> int:
        """The state after the token `id`, which must be allowed."""
        if id in self.vocabulary.ends and self.accepts(state):
            return self.ENDED
        spelled = self.vocabulary.tokens.get(id)
        after = DEAD if spelled is None or state == self.ENDED else self.automaton.run(spelled, state)
        if after == DEAD:
            raise InputError(f"the token {id} ({spelled!r}) is not allowed here by the constraint")
        return after

    def _bits(self, ids: np.ndarray, *, ends: bool) -> np.ndarray:
        bits = np.zeros(self.vocabulary.n_vocab, dtype=bool)
        bits[ids] = True
        if ends:
            bits[sorted(self.vocabulary.ends)] = True
        return bits

    def _stuck(self, state: int) -> str:
        if self.accepts(state):
            return "the constrained answer is complete and the vocabulary has no end token: end it there"
        return "no token of this vocabulary can continue the constrained answer: it cannot spell what must follow"


def _compiled(parse: Callable[[], Node], limit: Limit) -> Automaton:
    """The automaton of what `parse` gives; both follow the nesting of what they read by recursion."""
    try:
        return automaton(parse(), limit)
    except RecursionError:
        raise InputError(f"{limit.what} is nested too deeply") from None


class Constraints:
    """The constraints of a vocabulary, compiled once each: requests that ask for the same share one."""

    def __init__(self, vocabulary: Vocabulary, *, most: int = 32) -> None:
        self.vocabulary, self._most = vocabulary, most
        self._made: OrderedDict[tuple[str, str], Constraint] = OrderedDict()

    def of(self, sampling: Sampling) -> Constraint | None:
        """What `sampling` asks for; None if the output is free."""
        key = ("regex", sampling.regex) if sampling.regex is not None else ("schema", json.dumps(sampling.json_schema))
        if key not in self._made:
            made = Constraint.of(sampling, self.vocabulary)
            if made is None:
                return None
            self._made[key] = made
            if len(self._made) > self._most:
                self._made.popitem(last=False)
        self._made.move_to_end(key)
        return self._made[key]
