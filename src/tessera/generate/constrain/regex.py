r"""A regular expression as a tree: the part of Python's syntax that a finite automaton can follow.

    literals  .  [a-z]  [^a-z]  \d \w \s \D \W \S  \n \t \r \f \v \0 \xHH \uHHHH \UHHHHHHHH
    ( )  (?: )  (?P<name> )  |  * + ? {m} {m,} {,n} {m,n}, also lazy (the same texts)  ^ $ \A \Z

\d, \w and \s are those of ASCII, as with `re.ASCII` and as JSON schemas mean them; `$` is the very end, as `\Z`.
What needs memory or a look around (\1, \b, (?=...), flags) is an error that names it.
"""

import string
from collections.abc import Callable

from tessera.errors import SettingError
from tessera.generate.constrain.syntax import (
    ANY,
    EMPTY,
    LAST,
    Anchor,
    Characters,
    Choice,
    Node,
    Ranges,
    Repeat,
    Sequence,
    Whole,
    merged,
    others,
)

_DIGIT: Ranges = ((48, 57),)
_WORD: Ranges = ((48, 57), (65, 90), (95, 95), (97, 122))
_SPACE: Ranges = ((9, 13), (32, 32))
_CLASSES: dict[str, Ranges] = {
    "d": _DIGIT,
    "w": _WORD,
    "s": _SPACE,
    "D": others(_DIGIT),
    "W": others(_WORD),
    "S": others(_SPACE),
}
_CONTROLS = {"n": 10, "t": 9, "r": 13, "f": 12, "v": 11, "a": 7, "0": 0}
_HEX = {"x": 2, "u": 4, "U": 8}
_NOT_NEWLINE = others(((10, 10),))
_MOST = 100_000


def parse_regex(pattern: str, *, path: str = "regex") -> Node:
    """The tree of the texts that match the whole of `pattern`; `path` is the setting that errors name."""
    return Whole(_Parser(pattern, path).parse())


def search_regex(pattern: str, *, path: str) -> Node:
    """The tree of the texts that have a match of `pattern` somewhere, as JSON schemas use patterns."""
    return Whole(Sequence((Repeat(ANY), _Parser(pattern, path).parse(), Repeat(ANY))))


class _Parser:
    """Reads a pattern from left to right."""

    def __init__(self, pattern: str, path: str) -> None:
        self._pattern, self._path, self._at = pattern, path, 0

    def parse(self) -> Node:
        node = self._choice()
        if self._at < len(self._pattern):
            raise self._error("no ')' without its '('")
        return node

    def _error(self, expected: str) -> SettingError:
        return SettingError(self._path, self._pattern, f"{expected} (at character {self._at})")

    def _peek(self) -> str:
        return self._pattern[self._at : self._at + 1]

    def _take(self, n: int = 1) -> str:
        taken = self._pattern[self._at : self._at + n]
        if len(taken) < n:
            raise self._error("more characters, the pattern ends too early")
        self._at += n
        return taken

    def _skip(self, text: str) -> bool:
        found = self._pattern.startswith(text, self._at)
        self._at += len(text) * found
        return found

    def _choice(self) -> Node:
        options = [self._sequence()]
        while self._skip("|"):
            options.append(self._sequence())
        return options[0] if len(options) == 1 else Choice(tuple(options))

    def _sequence(self) -> Node:
        parts: list[Node] = []
        while self._peek() not in ("", "|", ")"):
            parts.append(self._repeated())
        return parts[0] if len(parts) == 1 else Sequence(tuple(parts))

    def _repeated(self) -> Node:
        node = self._atom()
        counts = self._counts()
        if counts is None:
            return node
        if self._skip("+"):
            raise self._error("no possessive quantifier, it is not supported")
        self._skip("?")  # lazy: another order of search, the same texts
        if self._counts() is not None:
            raise self._error("one quantifier, not two in a row")
        return Repeat(node, *counts)

    def _counts(self) -> tuple[int, int | None] | None:
        """The quantifier that stands here, if one does."""
        for sign, counts in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self._skip(sign):
                return counts
        end = self._pattern.find("}", self._at)
        if self._peek() != "{" or end < 0:
            return None
        least, comma, most = self._pattern[self._at + 1 : end].partition(",")
        if not all(part == "" or (part.isascii() and part.isdigit()) for part in (least, most)):
            return None
        if not least and not comma:
            return None  # as in Python, {} is text
        low, high = int(least or 0), int(most) if most else None if comma else int(least)
        if high is not None and high < low:
            raise self._error(f"a repeat from less to more, not {{{low},{high}}}")
        if max(low, high or 0) > _MOST:
            raise self._error(f"a repeat of at most {_MOST}")
        self._at = end + 1
        return low, high

    def _atom(self) -> Node:
        character = self._peek()
        readers: dict[str, Callable[[], Node]] = {"(": self._group, "[": self._class, "\\": self._escape}
        if character in readers:
            return readers[character]()
        if character in "*+?" or (character == "{" and self._counts() is not None):
            raise self._error(f"something to repeat before {character!r}")
        self._at += 1
        if character == "^":
            return Anchor("begin")
        if character == "$":
            return Anchor("end")
        return Characters(_NOT_NEWLINE) if character == "." else _one(ord(character))

    def _group(self) -> Node:
        self._at += 1
        if self._skip("?"):
            if self._skip("P<") or (self._peek() == "<" and self._pattern[self._at + 1 : self._at + 2] not in "=!"):
                self._at = self._pattern.find(">", self._at) + 1 or len(self._pattern)
            elif not self._skip(":"):
                raise self._error(f"no (?{self._peek()}...) group, it is not supported")
        node = self._choice()
        if not self._skip(")"):
            raise self._error("a ')' for each '('")
        return EMPTY if node == Sequence(()) else node

    def _class(self) -> Node:
        self._at += 1
        negated = self._skip("^")
        ranges: list[tuple[int, int]] = []
        first = True
        while first or self._peek() != "]":
            first = False
            ranges += self._class_item()
        self._at += 1
        return Characters(others(ranges) if negated else merged(ranges))

    def _class_item(self) -> Ranges:
        begin = self._class_atom()
        if self._peek() != "-" or self._pattern[self._at + 1 : self._at + 2] in ("]", ""):
            return begin
        self._at += 1
        end = self._class_atom()
        low, high = begin[0][0], end[0][0]
        if len(begin) > 1 or len(end) > 1 or begin[0][1] != low or end[0][1] != high or low > high:
            raise self._error("a range between two characters, the lower one first")
        return ((low, high),)

    def _class_atom(self) -> Ranges:
        if not self._peek():
            raise self._error("a ']' for each '['")
        if self._peek() != "\\":
            code = ord(self._take())
            return ((code, code),)
        self._at += 1
        if self._skip("b"):
            return ((8, 8),)
        return self._escaped()

    def _escape(self) -> Node:
        self._at += 1
        for letter, anchor in (("A", Anchor("begin")), ("Z", Anchor("end"))):
            if self._skip(letter):
                return anchor
        return Characters(self._escaped())

    def _escaped(self) -> Ranges:
        """The characters that the escape here stands for, after its backslash."""
        letter = self._take()
        if letter in _CLASSES:
            return _CLASSES[letter]
        if letter in _HEX:
            digits = self._take(_HEX[letter])
            if not all(digit in string.hexdigits for digit in digits) or int(digits, 16) > LAST:
                raise self._error(f"{_HEX[letter]} hexadecimal digits after \\{letter}")
            code = int(digits, 16)
        elif letter in _CONTROLS:
            code = _CONTROLS[letter]
        elif letter in string.ascii_letters + string.digits:
            raise self._error(f"no \\{letter}, it is not supported")
        else:
            code = ord(letter)
        return ((code, code),)


def _one(code: int) -> Node:
    return Characters(((code, code),))
