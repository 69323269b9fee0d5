"""The scalars of JSON as trees: strings, numbers within bounds, and any value at all.

Bounds on numbers compare digits: x >= 12.5 is a longer whole part, or one that is greater, or 12 and a fraction that is
at least .5 digit by digit.
"""

import json
from decimal import Decimal
from typing import Any

from tessera.generate.constrain.syntax import (
    ANY,
    DIGIT,
    EMPTY,
    NOTHING,
    Both,
    Characters,
    Node,
    Quoted,
    Repeat,
    Text,
    choice,
    optional,
    sequence,
)

_HEX = Characters(((48, 57), (65, 70), (97, 102)))
_DIGITS = Repeat(DIGIT)
_FRACTION = sequence(".", Repeat(DIGIT, 1))
_NONZERO = Characters(((49, 57),))
_WHOLE = choice(["0", sequence(_NONZERO, _DIGITS)])
_EXPONENT = sequence(Characters(((69, 69), (101, 101))), optional(Characters(((43, 43), (45, 45)))), Repeat(DIGIT, 1))

INTEGER = sequence(optional(Text("-")), _WHOLE)
NUMBER = sequence(INTEGER, optional(_FRACTION), optional(_EXPONENT))


def _string() -> Node:
    """Any JSON string, with every escape that the grammar has; halves of surrogate pairs only in pairs."""
    raw = Characters(((0x20, 0x21), (0x23, 0x5B), (0x5D, 0x10FFFF)))
    short = sequence("\\", Characters(tuple((ord(c), ord(c)) for c in '"/\\bfnrt')))
    not_d = Characters(((48, 57), (65, 67), (69, 70), (97, 99), (101, 102)))
    d = Characters(((68, 68), (100, 100)))
    plain = choice([sequence(not_d, _HEX), sequence(d, Characters(((48, 55),)))])
    high, low = Characters(((56, 57), (65, 66), (97, 98))), Characters(((67, 70), (99, 102)))
    pair = sequence("\\u", d, high, _HEX, _HEX, "\\u", d, low, _HEX, _HEX)
    return sequence('"', Repeat(choice([raw, short, sequence("\\u", plain, _HEX, _HEX), pair])), '"')


STRING = _string()
KEY = sequence('"', Quoted(Repeat(ANY)), '"')
"""A string in which each character is written in one way."""


def literal(value: Any, space: Node) -> Node:
    """A JSON value, written as `json.dumps` does, with `space` where it may stand."""
    if isinstance(value, dict):
        pairs = [sequence(literal(key, space), ":", space, literal(each, space)) for key, each in value.items()]
        return _listed("{", pairs, "}", space)
    if isinstance(value, list):
        return _listed("[", [literal(each, space) for each in value], "]", space)
    return Text(json.dumps(value, ensure_ascii=False))


def _listed(begin: str, items: list[Node], end: str, space: Node) -> Node:
    if not items:
        return sequence(begin, space, end)
    rest = [part for item in items[1:] for part in (sequence(",", space), item)]
    return sequence(begin, space, items[0], *rest, space, end)


def array_of(items: Node, space: Node, least: int = 0, most: int | None = None) -> Node:
    """A JSON array of so many `items`."""
    if most == 0:
        return sequence("[", space, "]")
    inside = sequence(Repeat(items, max(least, 1), most, sequence(",", space)), space)
    return sequence("[", space, inside if least else optional(inside), "]")


def pair(key: Node, value: Node, space: Node) -> Node:
    """A member of an object."""
    return sequence(key, ":", space, value)


def any_value(depth: int, space: Node) -> Node:
    """Any JSON value, with arrays and objects in each other at most `depth` deep."""
    scalars: list[Node | str] = ["null", "true", "false", NUMBER, STRING]
    if depth == 0:
        return choice(scalars)
    inner = any_value(depth - 1, space)
    return choice([*scalars, array_of(inner, space), any_object(inner, space)])


def any_object(value: Node, space: Node) -> Node:
    """An object of any keys."""
    members = sequence(Repeat(pair(STRING, value, space), 1, None, sequence(",", space)), space)
    return sequence("{", space, optional(members), "}")


def number(*, integer: bool, bounds: list[Node]) -> Node:
    """A number in JSON; one with bounds has no exponent."""
    if not bounds:
        return INTEGER if integer else NUMBER
    node = INTEGER if integer else sequence(INTEGER, optional(_FRACTION))
    for bound in bounds:
        node = Both(node, bound)
    return node


def at_least(bound: Decimal, *, exclusive: bool) -> Node:
    """Numbers without exponent that are >= (or >) `bound`."""
    if bound < 0:
        return choice([_up(Decimal(0), exclusive=False), sequence("-", _down(-bound, exclusive=exclusive))])
    return _up(bound, exclusive=exclusive)


def at_most(bound: Decimal, *, exclusive: bool) -> Node:
    """Numbers without exponent that are <= (or <) `bound`."""
    if bound < 0:
        return sequence("-", _up(-bound, exclusive=exclusive))
    # Below zero is whatever has a sign and is not "-0".
    negative = sequence("-", _up(Decimal(0), exclusive=True))
    return choice([negative, _down(bound, exclusive=exclusive)])


def _parts(bound: Decimal) -> tuple[str, str]:
    """The digits before and after the point, without needless zeros."""
    whole, _, fraction = format(bound, "f").partition(".")
    return whole.lstrip("0") or "0", fraction.rstrip("0")


def _up(bound: Decimal, *, exclusive: bool) -> Node:
    """Unsigned numbers >= (or >) `bound`."""
    whole, fraction = _parts(bound)
    above = sequence(_whole_above(whole), optional(_FRACTION))
    return choice([above, sequence(whole, _fraction_up(fraction, exclusive=exclusive))])


def _down(bound: Decimal, *, exclusive: bool) -> Node:
    """Unsigned numbers <= (or <) `bound`."""
    whole, fraction = _parts(bound)
    below = sequence(_whole_below(whole), optional(_FRACTION))
    return choice([below, sequence(whole, _fraction_down(fraction, exclusive=exclusive))])


def _digit(first: int, last: int) -> Node:
    return Characters(((48 + first, 48 + last),)) if first <= last else NOTHING


def _whole_above(whole: str) -> Node:
    """Whole numbers > `whole`."""
    longer = sequence(_NONZERO, Repeat(DIGIT, len(whole)))
    options = [
        sequence(whole[:i], _digit(int(whole[i]) + 1, 9), Repeat(DIGIT, len(whole) - i - 1, len(whole) - i - 1))
        for i in range(len(whole))
    ]
    return choice([longer, *options])


def _whole_below(whole: str) -> Node:
    """Whole numbers < `whole`."""
    length = len(whole)
    shorter = choice(["0", sequence(_NONZERO, Repeat(DIGIT, 0, length - 2))]) if length > 1 else NOTHING
    options = [
        # No zero in front, but where it is the only digit.
        sequence(
            whole[:i],
            _digit(1 if i == 0 and length > 1 else 0, int(whole[i]) - 1),
            Repeat(DIGIT, length - i - 1, length - i - 1),
        )
        for i in range(length)
    ]
    return choice([shorter, *options])


def _fraction_up(digits: str, *, exclusive: bool) -> Node:
    """Fractions >= (or >) 0.`digits`, from the point on."""
    positive = sequence(_DIGITS, _NONZERO, _DIGITS)
    if not digits:
        return sequence(".", positive) if exclusive else optional(_FRACTION)
    greater = [sequence(digits[:i], _digit(int(digits[i]) + 1, 9), _DIGITS) for i in range(len(digits))]
    return sequence(".", choice([*greater, sequence(digits, positive if exclusive else _DIGITS)]))


def _fraction_down(digits: str, *, exclusive: bool) -> Node:
    """Fractions <= (or <) 0.`digits`, from the point on."""
    zeros = Repeat(Text("0"), 1)
    if not digits:
        return NOTHING if exclusive else optional(sequence(".", zeros))
    less = [sequence(digits[:i], _digit(0, int(digits[i]) - 1), _DIGITS) for i in range(len(digits))]
    shorter = [Text(digits[:i]) for i in range(1, len(digits))]
    equal = NOTHING if exclusive else sequence(digits, Repeat(Text("0")))
    return choice([EMPTY, sequence(".", choice([*less, *shorter, equal]))])
