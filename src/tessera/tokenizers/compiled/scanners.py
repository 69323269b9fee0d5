"""The split patterns of `scan.PATTERNS` as compiled scanners: text in, the ends of its pieces out.

A scanner gives exactly the pieces that the `regex` package finds, from the same Unicode version (docs/unicode.md). It
works on addresses: text is valid UTF-8 that can be read 64 bytes beyond its end.
"""

from functools import cache
from threading import Lock

import numpy as np

from tessera.native.jit import compiled
from tessera.native.memory import address_of, load8, load64, store64
from tessera.native.simd import ones, store_places, zeros_above
from tessera.tokenizers.compiled.scan_blocks import starts
from tessera.tokenizers.compiled.scan_pieces import BLANK, FLAGS, FLAT, HARD, NUMBER, SPACE, UPPER, look, piece_end
from tessera.tokenizers.unicode_classes import CLASSES, UNICODE_VERSION, code_point_classes

LONG_S = 0x17F  # what `(?i:s)` matches besides S
BLOCK = 64  # as many pieces may begin in a block, and so much room it takes
SLACK = 4  # bytes after a character that hold all of a contraction


_one_at_a_time = Lock()


def unicode_table(version: str = UNICODE_VERSION) -> np.ndarray:
    """The flags of all code points as `scan_pieces.look` reads them: one array for the whole process.

    The lock sees to that: of two threads that come first, both would make one, and the cache would drop one of them
    while its address is in use.
    """
    with _one_at_a_time:
        return _unicode_table(version)


@cache
def _unicode_table(version: str) -> np.ndarray:
    flags = np.array([FLAGS[name] for name in CLASSES], np.uint8)[code_point_classes(version)]
    wide = flags[0x80:]
    wide[wide & (NUMBER | SPACE) != 0] |= HARD
    flags[LONG_S] |= HARD
    numbers: dict[bytes, int] = {}
    index = [numbers.setdefault(block.tobytes(), len(numbers)) for block in flags.reshape(-1, 64)]
    blocks = np.frombuffer(b"".join(numbers), np.uint8)
    return np.concatenate([flags[:FLAT], np.array(index, "<u2").view(np.uint8), blocks])


def unicode_table_address(version: str = UNICODE_VERSION) -> int:
    """What `scan` and `settled` take as `table`, for a version of Unicode in `unicode_classes.TABLES`."""
    return address_of(unicode_table(version))


@compiled
def scan(rule, table, text, at, stop, ends, room):  # type: ignore[no-untyped-def]
    """Write the ends of up to `room` pieces, an int64 each, to `ends`, and give their number.

    The first piece begins at the offset `at`, the text ends at `stop`; ends are offsets as well. 0 only if at == stop;
    the room may not be used up, and what of it is not used may be written to. From room for 64 on it is fast.
    """
    n, last = 0, room - BLOCK if room >= BLOCK else room - 1
    while at < stop and n <= last:
        found = starts(rule, table, text + at, stop - at) if room >= BLOCK else np.uint64(0)
        if found:
            places, base = ends + 8 * n, at
            n += ones(found)
            at += 63 - zeros_above(found)
            while found:
                found = store_places(places, base, found)
                places += 64
        else:
            at = piece_end(rule, table, text, at, stop)
            store64(ends + 8 * n, np.uint64(at))
            n += 1
    return n


@compiled
def settled(table, text, start, ends, n, stop):  # type: ignore[no-untyped-def]
    """How many of `n` pieces, found as if the text ended at `stop`, stay whatever comes there; the first is at `start`.

    No pattern looks on beyond a character that is neither white space nor a capital, a mark or a letter without case,
    except for the rest of a contraction. Pieces that end at or before such a character are settled.
    """
    at = stop
    while at > start:
        at -= 1
        if load8(text + at) & 0xC0 != 0x80 and at + SLACK <= stop and not look(table, text, at) & (SPACE | UPPER):
            break
    else:
        return 0
    while n > 0 and np.int64(load64(ends + 8 * (n - 1))) > at:
        n -= 1
    return n


@compiled
def safe_cut(text, at, stop):  # type: ignore[no-untyped-def]
    """The first blank after `at` between two ASCII letters, `stop` if there is none: every pattern cuts before it."""
    at += 1
    while at + 1 < stop:
        if load8(text + at) == BLANK:
            before, after = load8(text + at - 1) | 0x20, load8(text + at + 1) | 0x20
            if 0x61 <= before <= 0x7A and 0x61 <= after <= 0x7A:
                return at
        at += 1
    return stop
