"""From a tree of `syntax.py` to an automaton over bytes."""

from collections.abc import Callable
from typing import Any

from tessera.generate.constrain.automaton import Automaton, Limit, combined
from tessera.generate.constrain.encoding import Encoder, json_string, utf8
from tessera.generate.constrain.nfa import Nfa, determined
from tessera.generate.constrain.syntax import (
    Anchor,
    Both,
    Characters,
    Choice,
    Members,
    Node,
    Quoted,
    Repeat,
    Sequence,
    Text,
    Whole,
    Without,
)


def automaton(node: Node, limit: Limit, encoder: Encoder = utf8) -> Automaton:
    """The automaton of the texts that match the whole of `node`."""
    builder = _Builder(limit, encoder)
    start, final = builder.nfa.node(), builder.nfa.node()
    builder.add(node, start, final)
    return determined(builder.nfa, start, final, limit)


class _Builder:
    """Adds nodes of the tree to an `Nfa`, each between two of its nodes."""

    def __init__(self, limit: Limit, encoder: Encoder) -> None:
        self.nfa = Nfa(limit)
        self._limit, self._encoder = limit, encoder
        self._adders: dict[type, Callable[[Any, int, int], None]] = {
            Characters: self._characters,
            Text: self._text,
            Sequence: self._sequence,
            Choice: self._choice,
            Repeat: self._repeat,
            Members: self._members,
            Anchor: self._anchor,
            Whole: self._whole,
            Quoted: self._quoted,
            Both: self._both,
            Without: self._without,
        }

    def add(self, node: Node, first: int, second: int) -> None:
        """The texts of `node` lead from `first` to `second`."""
        self._adders[type(node)](node, first, second)

    def _characters(self, node: Characters, first: int, second: int) -> None:
        self.nfa.read(self._encoder(node.ranges), first, second)

    def _text(self, node: Text, first: int, second: int) -> None:
        self._sequence(Sequence(tuple(Characters(((ord(c), ord(c)),)) for c in node.text)), first, second)

    def _sequence(self, node: Sequence, first: int, second: int) -> None:
        for part in node.parts:
            after = self.nfa.node()
            self.add(part, first, after)
            first = after
        self.nfa.join(first, second)

    def _choice(self, node: Choice, first: int, second: int) -> None:
        for option in node.options:
            # Nodes of its own, lest a loop inside of one option lead into another.
            begin, end = self.nfa.node(), self.nfa.node()
            self.nfa.join(first, begin)
            self.add(option, begin, end)
            self.nfa.join(end, second)

    def _repeat(self, node: Repeat, first: int, second: int) -> None:
        if node.least == 0:
            self.nfa.join(first, second)
        if node.most == 0:
            return
        times = 0
        while True:
            times += 1
            begin, end = self.nfa.node(), self.nfa.node()
            self.nfa.join(first, begin)
            self.add(node.node, begin, end)
            if times >= node.least:
                self.nfa.join(end, second)
            if node.most is None and times >= node.least:
                self._between(node.separator, end, begin)
                return
            if times == node.most:
                return
            first = self.nfa.node()
            self._between(node.separator, end, first)

    def _between(self, separator: Node | None, first: int, second: int) -> None:
        if separator is None:
            self.nfa.join(first, second)
        else:
            self.add(separator, first, second)

    def _members(self, node: Members, first: int, second: int) -> None:
        """Two tracks: `nothing` until an item has been written, `some` after that, when a separator must come first."""
        nothing, some = first, self.nfa.node()
        for item, required in node.items:
            begin, after_nothing, after_some = self.nfa.node(), self.nfa.node(), self.nfa.node()
            self.nfa.join(nothing, begin)
            self.add(node.separator, some, begin)
            self.add(item, begin, after_some)
            if not required:
                self.nfa.join(nothing, after_nothing)
                self.nfa.join(some, after_some)
            nothing, some = after_nothing, after_some
        self.nfa.join(nothing, second)
        self.nfa.join(some, second)

    def _anchor(self, node: Anchor, first: int, second: int) -> None:
        edges = self.nfa.at_begin if node.at == "begin" else self.nfa.at_end
        edges.setdefault(first, []).append(second)

    def _whole(self, node: Whole, first: int, second: int) -> None:
        self.nfa.embed(self._automaton(node.node), first, second)

    def _quoted(self, node: Quoted, first: int, second: int) -> None:
        self.nfa.embed(automaton(node.node, self._limit, json_string), first, second)

    def _both(self, node: Both, first: int, second: int) -> None:
        both = combined(self._automaton(node.first), self._automaton(node.second), lambda a, b: a and b, self._limit)
        self.nfa.embed(both, first, second)

    def _without(self, node: Without, first: int, second: int) -> None:
        rest = combined(
            self._automaton(node.first), self._automaton(node.second), lambda a, b: a and not b, self._limit
        )
        self.nfa.embed(rest, first, second)

    def _automaton(self, node: Node) -> Automaton:
        return automaton(node, self._limit, self._encoder)
