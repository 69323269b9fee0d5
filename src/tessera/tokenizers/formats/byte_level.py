"""Bytes as printable characters: how GPT-2's files, and Hugging Face's after them, write a token.

A byte that is a printable character of Latin-1 is that character; the others, in order, are U+0100 and on, so that a
space is written U+0120 (Radford et al. 2019, in the code that came with the paper).
"""

from collections.abc import Sequence
from itertools import accumulate, chain, pairwise

from tessera.errors import FormatError

_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
CHARACTERS = {byte: chr(byte) for byte in _PRINTABLE} | {byte: chr(256 + at) for at, byte in enumerate(_OTHERS)}

_TO_CHARACTERS = str.maketrans({chr(byte): character for byte, character in CHARACTERS.items()})
# A character that stands for no byte must not pass for itself: U+FFFF makes it fail as Latin-1.
_TO_BYTES = str.maketrans(
    dict.fromkeys(map(chr, _OTHERS), "\uffff") | {character: chr(byte) for byte, character in CHARACTERS.items()}
)


def to_characters(token: bytes) -> str:
    """How a file writes `token`.

    >>> to_characters(b" the")
    'Ġthe'
    """
    return token.decode("latin-1").translate(_TO_CHARACTERS)


def all_to_bytes(written: Sequence[str], source: str) -> list[bytes]:
    """`to_bytes` of each, together: a vocabulary has hundreds of thousands."""
    try:
        joined = "".join(written).translate(_TO_BYTES).encode("latin-1")
    except UnicodeEncodeError:
        return [to_bytes(token, source) for token in written]
    ends = accumulate(map(len, written))  # a character is a byte
    return [joined[begin:end] for begin, end in pairwise(chain((0,), ends))]


def to_bytes(written: str, source: str) -> bytes:
    """The token that `written` stands for.

    >>> to_bytes("Ġthe", "a file")
    b' the'
    """
    try:
        return written.translate(_TO_BYTES).encode("latin-1")
    except UnicodeEncodeError as error:
        raise FormatError(source, f"token {written!r} has {written[error.start]!r}, which stands for no byte") from None
