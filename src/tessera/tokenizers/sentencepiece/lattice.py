"""The compiled loops of the unigram model: every way to cut a text into pieces, by dynamic programming over its bytes.

The pieces lie in a trie of bytes, its edges in one hash table: an entry is (node, byte, next node) in 64 bits. A piece
is known by its row. Positions are byte offsets; pieces are whole characters, so paths only meet between characters.

These functions check nothing: texts are valid UTF-8, and `room_for` says how long the working arrays must be.
"""

from typing import Any, NamedTuple

import numpy as np

from tessera.errors import InputError
from tessera.native.jit import compiled

MAX_NODES = 2**24
ROOM = 2**16  # bytes that the working arrays hold at first
UNKNOWN_ROW = -2  # the edge of a character that is no piece


class Trie(NamedTuple):
    """table: the edges, -1 where there is none; rows: the piece that ends in a node, or -1; longest: bytes."""

    table: np.ndarray
    rows: np.ndarray
    longest: int


@compiled
def _slot(table: Any, key: int) -> int:
    """Where the edge (node << 8 | byte) is, or would be."""
    mask = len(table) - 1
    slot = ((key * 0x1E3779B97F4A7C15) >> 20) & mask
    while table[slot] >= 0 and (table[slot] >> 31) != key:
        slot = (slot + 1) & mask
    return slot


@compiled
def _fill(blob: Any, ends: Any, table: Any, rows: Any) -> int:
    n_nodes = 1
    at = 0
    for row in range(len(ends)):
        node = 0
        while at < ends[row]:
            key = (node << 8) | np.int64(blob[at])
            slot = _slot(table, key)
            if table[slot] < 0:
                table[slot] = (key << 31) | n_nodes
                n_nodes += 1
            node = table[slot] & 0x7FFFFFFF
            at += 1
        rows[node] = row
    return n_nodes


def join(parts: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """One array of bytes, and where each part ends in it."""
    ends = np.cumsum(np.fromiter(map(len, parts), np.int64, len(parts)))
    return np.frombuffer(b"".join(parts), np.uint8), ends


def build_trie(pieces: list[bytes]) -> Trie:
    """The trie of `pieces`, which are not empty and all different; a piece's row is its place."""
    blob, ends = join(pieces)
    if len(blob) >= MAX_NODES:
        raise InputError(f"the pieces have {len(blob)} bytes in all: expected less than {MAX_NODES}")
    table = np.full(1 << (2 * len(blob) + 2).bit_length(), -1, np.int64)
    rows = np.full(len(blob) + 1, -1, np.int32)
    n_nodes = _fill(blob, ends, table, rows)
    return Trie(table, rows[:n_nodes].copy(), max(map(len, pieces)))


@compiled
def child(table: Any, node: int, byte: int) -> int:
    edge = table[_slot(table, (node << 8) | byte)]
    return -1 if edge < 0 else edge & 0x7FFFFFFF


@compiled
def _width(byte: int) -> int:
    """How many bytes the character has that begins with `byte`."""
    if byte < 0xC0:
        return 1
    return 2 if byte < 0xE0 else (3 if byte < 0xF0 else 4)


@compiled
def _write_path(
    start: Any,
    got: Any,
    end: int,
    chain: Any,
    text: Any,
    ids: Any,
    byte_ids: Any,
    unknown: int,
    out: Any,
    at: int,
    base: int,
) -> int:
    """The ids of the best path to `end`, written at out[at:]; returns where they stop. A run of unknown characters is
    one unknown id."""
    n = 0
    while end > 0:
        chain[n] = end
        n += 1
        end = start[end]
    for k in range(n - 1, -1, -1):
        end = chain[k]
        if got[end] != UNKNOWN_ROW:
            out[at] = ids[got[end]]
            at += 1
        elif len(byte_ids):
            for place in range(base + start[end], base + end):
                out[at] = byte_ids[text[place]]
                at += 1
        elif at == 0 or out[at - 1] != unknown:
            out[at] = unknown
            at += 1
    return at


@compiled
def _clear(start: Any, reach: int, end: int) -> int:
    """No path is known to the places above `reach`, up to `end`; returns how far is clear then."""
    while reach < end:
        reach += 1
        start[reach] = -1
    return reach


@compiled
def _offer(best: Any, start: Any, got: Any, begin: int, end: int, score: float, row: int) -> None:
    """The path to `begin` and one piece more, to `end`: kept if it is better. Rounded before it is compared."""
    rounded = len(best) - 1
    best[rounded] = score + best[begin]
    if start[end] < 0 or best[rounded] > best[end]:
        best[end], start[end], got[end] = best[rounded], begin, row


@compiled
def _begin_anew(best: Any, begin: int, reach: int) -> None:
    shift = best[begin]
    for end in range(begin, reach + 1):
        best[end] -= shift


@compiled
def viterbi(
    text: Any,
    position: Any,
    table: Any,
    rows: Any,
    longest: int,
    scores: Any,
    unknown_score: float,
    ids: Any,
    byte_ids: Any,
    unknown: int,
    least: float,
    best: Any,
    start: Any,
    got: Any,
    chain: Any,
    out: Any,
) -> bool:
    """The ids of the best path through `text`, to `out`; True when it is done.

    `position` is [bytes done, ids written] and goes on where it stands: False says that a stretch without a place that
    every path passes is longer than the working arrays. best[0] is then the score so far. The type of `best` is the
    arithmetic: sums are rounded to it, and begin anew where they fall below `least`.
    """
    base, n_out = position[0], position[1]
    at, reach, room = base, 0, len(best)
    while at < len(text):
        i = at - base
        if i == reach and i > 0:
            n_out = _write_path(start, got, i, chain, text, ids, byte_ids, unknown, out, n_out, base)
            best[0] = best[i]
            base, i, reach = at, 0, 0
            position[0], position[1] = base, n_out
        if i + longest + 4 >= room:
            return False
        if best[i] < least:
            _begin_anew(best, i, reach)
        width = _width(np.int64(text[at]))
        single = False
        node, end = 0, at
        while end < len(text):
            node = child(table, node, np.int64(text[end]))
            if node < 0:
                break
            end += 1
            if rows[node] >= 0:
                reach = _clear(start, reach, end - base)
                _offer(best, start, got, i, end - base, scores[rows[node]], rows[node])
                single = single or end - at == width
        if not single:
            reach = _clear(start, reach, i + width)
            _offer(best, start, got, i, i + width, unknown_score, UNKNOWN_ROW)
        at += width
    n_out = _write_path(start, got, at - base, chain, text, ids, byte_ids, unknown, out, n_out, base)
    position[0], position[1] = at, n_out
    return True


class Cutter:
    """Text -> ids by the best cut: the trie and the tables of one vocabulary. `ids` and `scores` go with `pieces`."""

    def __init__(
        self,
        *,
        pieces: list[bytes],
        scores: list[float],
        ids: list[int],
        byte_ids: tuple[int, ...],
        unknown_id: int,
        unknown_score: float,
        arithmetic: type[np.floating],
        least: float,
    ) -> None:
        self._trie = build_trie(pieces)
        self._scores = np.array(scores, np.float64)
        self._ids = np.array(ids, np.int32)
        self._byte_ids = np.array(byte_ids, np.int32)
        self._unknown = (unknown_id, unknown_score)
        self._arithmetic, self._least = arithmetic, least

    def __call__(self, text: str) -> np.ndarray:
        """The ids. The working arrays grow where no place in a long stretch is passed by every path."""
        content = np.frombuffer(text.encode(), np.uint8)
        out = np.empty(len(content), np.int32)
        position = np.zeros(2, np.int64)
        unknown, unknown_score = self._unknown
        room, score = min(ROOM, len(content) + self._trie.longest + 8), 0.0
        done = False
        while not done:
            best = np.empty(room, self._arithmetic)
            best[0] = score
            start, got, chain = (np.empty(room, np.int32) for _ in range(3))
            done = viterbi(
                content,
                position,
                *self._trie,
                self._scores,
                unknown_score,
                self._ids,
                self._byte_ids,
                unknown,
                self._least,
                best,
                start,
                got,
                chain,
                out,
            )
            room, score = room * 2, best[0]
        return out[: position[1]]
