"""An automaton with choices (Thompson 1968), and its deterministic form (Rabin and Scott 1959, subset construction).

Nodes are joined by edges that read a byte out of a range, by free edges, and by edges that only hold at the beginning
or the end of the text.
"""

from collections.abc import Iterable
from itertools import pairwise

from tessera.generate.constrain.automaton import Automaton, Limit, from_rows
from tessera.generate.constrain.encoding import Bytes


class Nfa:
    """Nodes and edges, to be added to. A node is a number."""

    def __init__(self, limit: Limit) -> None:
        self._limit = limit
        self.free: list[list[int]] = []
        self.reads: list[list[tuple[int, int, int]]] = []
        self.at_begin: dict[int, list[int]] = {}
        self.at_end: dict[int, list[int]] = {}

    def node(self) -> int:
        """A new node. There may be ten for each state that is allowed."""
        self.free.append([])
        self.reads.append([])
        self._limit.check(len(self.free) // 10)
        return len(self.free) - 1

    def join(self, first: int, second: int) -> None:
        """A free edge."""
        self.free[first].append(second)

    def read(self, sequences: Iterable[Bytes], first: int, second: int) -> None:
        """Each of the sequences of byte ranges leads from `first` to `second`; their common ends are shared."""
        ends: dict[Bytes, int] = {(): second}
        for sequence in sequences:
            for place in range(len(sequence) - 1, 0, -1):
                rest = sequence[place:]
                if rest not in ends:
                    ends[rest] = self.node()
                    self.reads[ends[rest]].append((*rest[0], ends[rest[1:]]))
            self.reads[first].append((*sequence[0], ends[sequence[1:]]))

    def embed(self, automaton: Automaton, first: int, second: int) -> None:
        """Every text of `automaton` leads from `first` to `second`."""
        nodes = [self.node() for _ in automaton.accepting]
        for state, row in enumerate(automaton.table):
            begin = 0
            for byte in range(1, 257):
                if byte == 256 or row[byte] != row[begin]:
                    if row[begin]:
                        self.reads[nodes[state]].append((begin, byte - 1, nodes[row[begin]]))
                    begin = byte
            if automaton.accepting[state]:
                self.join(nodes[state], second)
        self.join(first, nodes[automaton.start])

    def closure(self, items: Iterable[tuple[int, bool]], *, begins: bool) -> frozenset[tuple[int, bool]]:
        """What can be reached without reading. An item is a node, and whether the text must have ended."""
        found = set(items)
        waiting = list(found)
        while waiting:
            node, ended = waiting.pop()
            more = [(target, ended) for target in self.free[node]]
            more += [(target, True) for target in self.at_end.get(node, ())]
            if begins:
                more += [(target, ended) for target in self.at_begin.get(node, ())]
            new = [item for item in more if item not in found]
            found.update(new)
            waiting += new
        return frozenset(found)


def determined(nfa: Nfa, start: int, final: int, limit: Limit) -> Automaton:
    """The deterministic automaton of the texts that lead from `start` to `final`."""

    def lasting(items: frozenset[tuple[int, bool]]) -> frozenset[tuple[int, bool]]:
        """Those that tell two states apart: they read, or accept."""
        return frozenset(item for item in items if item[0] == final or (nfa.reads[item[0]] and not item[1]))

    first = lasting(nfa.closure([(start, False)], begins=True))
    states = {first: 0}
    order = [first]
    rows: list[list[tuple[int, int, int]]] = []
    reached: dict[frozenset[int], int] = {}
    work = 0  # few states that stand for many nodes each take as long as many states
    for items in order:  # grows as it is read
        work += len(items)
        edges = []
        for begin, end, targets in _pieces([edge for node, ended in items if not ended for edge in nfa.reads[node]]):
            if targets not in reached:
                closure = nfa.closure([(target, False) for target in targets], begins=False)
                work += len(closure)
                limit.check(work // 50)
                state = lasting(closure)
                if state not in states:
                    states[state] = len(order)
                    order.append(state)
                    limit.check(len(order))
                reached[targets] = states[state]
            edges.append((begin, end, reached[targets]))
        rows.append(edges)
    accepting = [any(node == final for node, _ in items) for items in order]
    return from_rows(rows, accepting, 0)


def _pieces(edges: list[tuple[int, int, int]]) -> list[tuple[int, int, frozenset[int]]]:
    """The edges, whose ranges may overlap, as ranges that do not, each with all its targets."""
    cuts = sorted({cut for first, last, _ in edges for cut in (first, last + 1)})
    pieces = []
    for begin, end in pairwise(cuts):
        targets = frozenset(target for first, last, target in edges if first <= begin and end - 1 <= last)
        if targets:
            pieces.append((begin, end - 1, targets))
    return pieces
