"""Characters as bytes: a set of code points becomes sequences of byte ranges.

In UTF-8 a range of code points is a few products of byte ranges: U+0080-U+07FF is [C2-DF][80-BF]. So an automaton over
characters can be one over bytes, and a token that ends in the middle of a character is nothing special to it.
"""

from collections.abc import Callable, Iterator

from tessera.generate.constrain.syntax import LAST, Ranges, common

Bytes = tuple[tuple[int, int], ...]  # a range for each byte
Encoder = Callable[[Ranges], list[Bytes]]

# Where the length in UTF-8 changes; U+D800-U+DFFF are no characters.
_BLOCKS = ((0x00, 0x7F), (0x80, 0x7FF), (0x800, 0xD7FF), (0xE000, 0xFFFF), (0x10000, LAST))
_NEXT = (0x80, 0xBF)


def utf8(ranges: Ranges) -> list[Bytes]:
    """The UTF-8 of the code points.

    >>> utf8(((0x7F, 0x80),))
    [((127, 127),), ((194, 194), (128, 128))]
    """
    return [
        sequence
        for first, last in common(ranges, _BLOCKS_MERGED)
        for begin, end in _BLOCKS
        if max(first, begin) <= min(last, end)
        for sequence in _products(chr(max(first, begin)).encode(), chr(min(last, end)).encode())
    ]


_BLOCKS_MERGED: Ranges = ((0x00, 0xD7FF), (0xE000, LAST))


def _products(first: bytes, last: bytes) -> Iterator[Bytes]:
    """From `first` to `last`, of one length, as products of byte ranges."""
    rest = len(first) - 1
    if not rest:
        yield ((first[0], last[0]),)
        return
    if first[0] == last[0]:
        yield from (((first[0], first[0]), *tail) for tail in _products(first[1:], last[1:]))
        return
    begin, end = first[0], last[0]
    if first[1:] != b"\x80" * rest:
        yield from (((begin, begin), *tail) for tail in _products(first[1:], b"\xbf" * rest))
        begin += 1
    if last[1:] != b"\xbf" * rest:
        end -= 1
    if begin <= end:
        yield ((begin, end), *(_NEXT,) * rest)
    if end != last[0]:
        yield from (((last[0], last[0]), *tail) for tail in _products(b"\x80" * rest, last[1:]))


_ESCAPES = {0x08: "\\b", 0x09: "\\t", 0x0A: "\\n", 0x0C: "\\f", 0x0D: "\\r", 0x22: '\\"', 0x5C: "\\\\"}
_RAW: Ranges = ((0x20, 0x21), (0x23, 0x5B), (0x5D, LAST))


def json_string(ranges: Ranges) -> list[Bytes]:
    """The code points as they stand in a JSON string (RFC 8259, section 7): one way to write each.

    Raw where that is allowed, else the short escape, else \\u00xx.
    """
    escaped = [
        code
        for first, last in common(ranges, ((0, 0x1F), (0x22, 0x22), (0x5C, 0x5C)))
        for code in range(first, last + 1)
    ]
    written = [_ESCAPES.get(code, f"\\u{code:04x}") for code in escaped]
    return utf8(common(ranges, _RAW)) + [tuple((byte, byte) for byte in text.encode()) for text in written]
