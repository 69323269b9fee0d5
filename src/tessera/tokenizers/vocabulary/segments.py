"""A text as its tokens cut it, ready to be shown: whole characters with the tokens that each run of them is made of.

A token may be a part of a character. Such tokens are shown together, as the character that they make.
"""

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from tessera.tokenizers.contract import Tokenizer

N_COLORS = 8
_LONGEST_CHARACTER = 4
_SHOWN = {"\n": "⏎", "\r": "␍", "\t": "⇥"}


@dataclass(frozen=True, slots=True)
class Piece:
    """One token where it stands: its id, its bytes, and a color that the neighbours do not have."""

    id: int
    content: bytes
    color: int


@dataclass(frozen=True, slots=True)
class Segment:
    """Whole characters, and the tokens that make them: one, or several where a token ends inside a character."""

    text: str
    pieces: tuple[Piece, ...]


def segments(tokenizer: Tokenizer, ids: Iterable[int]) -> list[Segment]:
    """The text of `ids` in segments. Bytes that make no character are written as `\\xff`."""
    found: list[Segment] = []
    waiting: list[Piece] = []
    color = -1
    for id in ids:
        color = _color(id, color)
        waiting.append(Piece(id, tokenizer.token_bytes(id), color))
        content = b"".join(piece.content for piece in waiting)
        if _begun(content):
            continue
        found.append(Segment(content.decode("utf-8", "backslashreplace"), tuple(waiting)))
        waiting = []
    if waiting:
        content = b"".join(piece.content for piece in waiting)
        found.append(Segment(content.decode("utf-8", "backslashreplace"), tuple(waiting)))
    return found


def _begun(content: bytes) -> bool:
    """Whether `content` ends inside a character that could still become whole."""
    try:
        content.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data" and len(content) - error.start < _LONGEST_CHARACTER
    return False


def _color(id: int, before: int) -> int:
    """The same for each occurrence of a token, but for one beside its like."""
    color = id * 5 % N_COLORS
    return (color + 1) % N_COLORS if color == before else color


def visible(text: str) -> str:
    """`text` with a sign for each character that would move the cursor, vanish, or turn the line around.

    >>> visible("a\\tb\\x1b[2J")
    'a⇥b␛[2J'
    """
    return "".join(map(_visible, text))


def _visible(character: str) -> str:
    if character in _SHOWN:
        return _SHOWN[character]
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "␡"
    if unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp") and character not in "\u200c\u200d":
        return f"<U+{code:04X}>"
    return character


def shown_bytes(content: bytes) -> str:
    """A token's bytes as text where they are text, each other byte as `\\xff`."""
    return visible(content.decode("utf-8", "backslashreplace"))
