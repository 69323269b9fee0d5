"""The compiled loop over a table of characters (see `charsmap.py`): the longest key at every place of a text."""

from typing import Any

import numpy as np

from tessera.native.jit import compiled

MAX_KEYS = 32  # SentencePiece looks at no more keys that begin at one place


@compiled
def keys_at(units: Any, text: Any, at: int, stop: int, ends: Any, places: Any) -> int:
    """The keys that text[at:stop] begins with, the shortest first: where each ends, and the place of its replacement.

    Returns how many there are, or -1 where the trie leads out of itself.
    """
    n = 0
    node = 0
    unit = units[0]
    while at < stop and n < len(ends):
        node ^= ((unit >> 10) << ((unit & 512) >> 6)) ^ text[at]
        if node >= len(units):
            return -1
        unit = units[node]
        if unit & 0x800000FF != text[at]:
            break
        at += 1
        if unit & 256:
            leaf = node ^ ((unit >> 10) << ((unit & 512) >> 6))
            if leaf >= len(units) or units[leaf] < 0x80000000:
                return -1
            ends[n], places[n] = at, units[leaf] & 0x7FFFFFFF
            n += 1
    return n


@compiled
def _size(values: Any, begin: int) -> int:
    end = begin
    while values[end] != 0:
        end += 1
    return end - begin


@compiled
def _character_end(text: Any, at: int) -> int:
    at += 1
    while at < len(text) and text[at] & 0xC0 == 0x80:
        at += 1
    return at


@compiled
def replace_longest(units: Any, values: Any, text: Any, kept: Any, state: Any, out: Any) -> bool:
    """The text with its keys replaced, to `out`; True when it is done.

    `state` is [bytes read, bytes written] and goes on where it stands: False says that `out` is full, or, with -1 bytes
    read, that the trie leads out of itself.
    """
    ends, places = np.empty(MAX_KEYS, np.int64), np.empty(MAX_KEYS, np.int64)
    at, n_out = state[0], state[1]
    while at < len(text):
        end = at + (kept[at] if len(kept) else 0)
        n = keys_at(units, text, at, len(text), ends, places) if end == at else 0
        if n < 0:
            state[0] = -1
            return False
        if n:
            source, begin, end = values, places[n - 1], ends[n - 1]
            size = _size(values, begin)
        else:
            source, begin, end = text, at, max(end, _character_end(text, at))
            size = end - at
        if n_out + size > len(out):
            state[0], state[1] = at, n_out
            return False
        for k in range(size):
            out[n_out + k] = source[begin + k]
        n_out += size
        at = end
    state[0], state[1] = at, n_out
    return True
