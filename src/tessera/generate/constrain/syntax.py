"""What a pattern is made of, as a tree: the one form that regular expressions and JSON schemas are both turned into.

A tree says a set of texts. `characters` and `digits` make the common leaves; `build.py` makes an automaton of a tree.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal as OneOf
from typing import TypeAlias

LAST = 0x10FFFF
Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Characters:
    """One character out of ranges of code points, both ends included."""

    ranges: Ranges


@dataclass(frozen=True)
class Text:
    """These characters."""

    text: str


@dataclass(frozen=True)
class Sequence:
    """One after the other; none is the empty text."""

    parts: "tuple[Node, ...]"


@dataclass(frozen=True)
class Choice:
    """Any of them; none of them is no text at all."""

    options: "tuple[Node, ...]"


@dataclass(frozen=True)
class Repeat:
    """At least and at most so many times, with `separator` between two."""

    node: "Node"
    least: int = 0
    most: int | None = None
    separator: "Node | None" = None


@dataclass(frozen=True)
class Members:
    """Some of the items in their order, those that are required always, with `separator` between two."""

    items: "tuple[tuple[Node, bool], ...]"
    separator: "Node"


@dataclass(frozen=True)
class Anchor:
    """The beginning or the end of the text (of the `Whole` around it)."""

    at: OneOf["begin", "end"]


@dataclass(frozen=True)
class Whole:
    """The node on its own: anchors inside of it mean its own ends."""

    node: "Node"


@dataclass(frozen=True)
class Quoted:
    """The node's characters as JSON writes them inside of a string: raw, or escaped where they must be."""

    node: "Node"


@dataclass(frozen=True)
class Both:
    """What matches the one and the other."""

    first: "Node"
    second: "Node"


@dataclass(frozen=True)
class Without:
    """What matches the first and not the second."""

    first: "Node"
    second: "Node"


Node: TypeAlias = Characters | Text | Sequence | Choice | Repeat | Members | Anchor | Whole | Quoted | Both | Without

EMPTY = Sequence(())
NOTHING = Choice(())
ANY = Characters(((0, LAST),))
DIGIT = Characters(((48, 57),))


def sequence(*parts: "Node | str") -> Node:
    """The parts in their order; a str is its text."""
    return Sequence(tuple(Text(part) if isinstance(part, str) else part for part in parts))


def choice(options: "Iterable[Node | str]") -> Node:
    """Any of them; a str is its text."""
    return Choice(tuple(Text(option) if isinstance(option, str) else option for option in options))


def optional(node: Node) -> Node:
    """The node or the empty text."""
    return Repeat(node, 0, 1)


def merged(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """The same code points in as few ranges as can be, in order."""
    found: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(found[-1][1], last))
        else:
            found.append((first, last))
    return tuple(found)


def others(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """The code points that are not in `ranges`."""
    found: list[tuple[int, int]] = []
    begin = 0
    for first, last in merged(ranges):
        if first > begin:
            found.append((begin, first - 1))
        begin = last + 1
    return tuple(found) if begin > LAST else (*found, (begin, LAST))


def common(ranges: Iterable[tuple[int, int]], others_: Iterable[tuple[int, int]]) -> Ranges:
    """The code points that are in both."""
    pairs = ((max(a, c), min(b, d)) for a, b in ranges for c, d in others_)
    return merged((first, last) for first, last in pairs if first <= last)
