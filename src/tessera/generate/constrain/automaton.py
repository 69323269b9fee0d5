"""A deterministic automaton over bytes, and what can be made of two of them.

State 0 is dead: no text leads out of it to an accepting state, and every other state can still accept. So a text that
has not led to state 0 can always be completed.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from tessera.errors import InputError

DEAD = 0


@dataclass(frozen=True)
class Automaton:
    """`table[state, byte]` is the next state; `accepting[state]` says whether a text may end there."""

    table: np.ndarray
    accepting: np.ndarray
    start: int

    @property
    def empty(self) -> bool:
        """Whether no text at all is accepted."""
        return self.start == DEAD

    def run(self, text: bytes, state: int | None = None) -> int:
        """The state that `text` leads to."""
        state = self.start if state is None else state
        for byte in text:
            state = int(self.table[state, byte])
        return state

    def accepts(self, text: bytes) -> bool:
        """Whether the whole of `text` matches."""
        return bool(self.accepting[self.run(text)])


class Limit:
    """How many states an automaton may have, and the error when it would have more."""

    def __init__(self, states: int, what: str) -> None:
        self.states, self.what = states, what

    def check(self, n: int) -> None:
        """Raise if `n` are too many."""
        if n > self.states:
            raise InputError(
                f"{self.what} needs more than {self.states} states: make its counted repeats, bounds or depth smaller, "
                "or allow more states"
            )


def from_rows(rows: Sequence[Iterable[tuple[int, int, int]]], accepting: Sequence[bool], start: int) -> Automaton:
    """An automaton of the states' edges (first byte, last byte, next state), without those that can never accept."""
    before: list[list[int]] = [[] for _ in rows]
    for state, edges in enumerate(rows):
        for target in {target for _, _, target in edges}:
            before[target].append(state)
    live = {state for state, accepts in enumerate(accepting) if accepts}
    waiting = list(live)
    while waiting:
        for state in before[waiting.pop()]:
            if state not in live:
                live.add(state)
                waiting.append(state)
    number = {state: place for place, state in enumerate(sorted(live), 1)}
    table = np.zeros((len(live) + 1, 256), dtype=np.int32)
    for state, place in number.items():
        for first, last, target in rows[state]:
            table[place, first : last + 1] = number.get(target, DEAD)
    accepts = np.array([False, *(accepting[state] for state in number)])
    return Automaton(table, accepts, number.get(start, DEAD))


def combined(first: Automaton, second: Automaton, accept: Callable[[bool, bool], bool], limit: Limit) -> Automaton:
    """The automaton that runs both at once; `accept` says of which of them a text must be."""
    pairs = {(first.start, second.start): 0}
    order = [(first.start, second.start)]
    rows: list[list[tuple[int, int, int]]] = []
    for a, b in order:  # grows as it is read
        cuts = np.flatnonzero(np.diff(first.table[a]) | np.diff(second.table[b])) + 1
        edges = []
        for begin, end in zip([0, *cuts.tolist()], [*cuts.tolist(), 256], strict=True):
            pair = (int(first.table[a, begin]), int(second.table[b, begin]))
            if pair == (DEAD, DEAD):
                continue
            if pair not in pairs:
                pairs[pair] = len(order)
                order.append(pair)
                limit.check(len(order))
            edges.append((begin, end - 1, pairs[pair]))
        rows.append(edges)
    accepting = [accept(bool(first.accepting[a]), bool(second.accepting[b])) for a, b in order]
    return from_rows(rows, accepting, 0)
