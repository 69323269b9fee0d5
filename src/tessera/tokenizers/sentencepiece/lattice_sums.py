"""The compiled loops of unigram training: sums over all cuts of every word, and the best cut of each."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from tessera.native.jit import compiled
from tessera.tokenizers.sentencepiece.lattice import build_trie, join
from tessera.tokenizers.sentencepiece.lattice import child as _child

EDGES = 64  # pieces that begin at one place, at most


@compiled
def _add_logs(a: float, b: float) -> float:
    """log(exp(a) + exp(b))"""
    if a < b:
        a, b = b, a
    return a if b == -math.inf else a + math.log1p(math.exp(b - a))


@compiled
def _find_edges(text: Any, begin: int, end: int, table: Any, rows: Any, reached: Any, edges: Any) -> int:
    """Every piece at every place of text[begin:end] that some cut comes to, as (start, end, row); how many."""
    n = 0
    reached[: end - begin + 1] = False
    reached[0] = True
    for start in range(begin, end):
        if not reached[start - begin]:
            continue
        node, at = 0, start
        while at < end:
            node = _child(table, node, np.int64(text[at]))
            if node < 0:
                break
            at += 1
            if rows[node] >= 0:
                edges[n, 0], edges[n, 1], edges[n, 2] = start - begin, at - begin, rows[node]
                reached[at - begin] = True
                n += 1
    return n


@compiled
def expected_counts(
    text: Any, ends: Any, counts: Any, table: Any, rows: Any, scores: Any, longest: int, expected: Any
) -> float:
    """Adds to `expected` how often each piece is expected over all cuts; returns the logarithm of the likelihood.

    forward[i] is the log of the sum over all cuts of the first i bytes, backward[i] over those of the rest; a piece
    from i to j is in exp(forward[i] + score + backward[j] - forward[n]) of the cuts.
    """
    forward, backward = np.empty(longest + 1), np.empty(longest + 1)
    reached = np.empty(longest + 1, np.bool_)
    edges = np.empty((longest * EDGES, 3), np.int32)
    likelihood = 0.0
    begin = 0
    for word in range(len(ends)):
        end = ends[word]
        size = end - begin
        n = _find_edges(text, begin, end, table, rows, reached, edges)
        forward[: size + 1] = -math.inf
        backward[: size + 1] = -math.inf
        forward[0] = 0.0
        backward[size] = 0.0
        for k in range(n):
            i, j = edges[k, 0], edges[k, 1]
            forward[j] = _add_logs(forward[j], forward[i] + scores[edges[k, 2]])
        for k in range(n - 1, -1, -1):
            i, j = edges[k, 0], edges[k, 1]
            backward[i] = _add_logs(backward[i], backward[j] + scores[edges[k, 2]])
        whole = forward[size]
        for k in range(n):
            i, j, row = edges[k, 0], edges[k, 1], edges[k, 2]
            expected[row] += counts[word] * math.exp(forward[i] + scores[row] + backward[j] - whole)
        likelihood += counts[word] * whole
        begin = end
    return likelihood


@compiled
def _best_path(edges: Any, n: int, size: int, scores: Any, skip: int, best: Any, by: Any) -> None:
    """by[j]: the edge by which the best path comes to j, or -1; an edge over all of the word with row `skip` is out."""
    best[: size + 1] = -math.inf
    by[: size + 1] = -1
    best[0] = 0.0
    for k in range(n):
        i, j, row = edges[k, 0], edges[k, 1], edges[k, 2]
        if row != skip and best[i] + scores[row] > best[j]:
            best[j] = best[i] + scores[row]
            by[j] = k


@compiled
def best_counts(text: Any, ends: Any, counts: Any, table: Any, rows: Any, scores: Any, longest: int, used: Any) -> int:
    """Adds to `used` how often each piece is in the best cuts; returns how many pieces these have."""
    best, by = np.empty(longest + 1), np.empty(longest + 1, np.int32)
    reached = np.empty(longest + 1, np.bool_)
    edges = np.empty((longest * EDGES, 3), np.int32)
    total = 0
    begin = 0
    for word in range(len(ends)):
        end = ends[word]
        n = _find_edges(text, begin, end, table, rows, reached, edges)
        _best_path(edges, n, end - begin, scores, -1, best, by)
        at = end - begin
        while at > 0:
            used[edges[by[at], 2]] += counts[word]
            total += counts[word]
            at = edges[by[at], 0]
        begin = end
    return total


@compiled
def alternatives(text: Any, ends: Any, table: Any, rows: Any, scores: Any, longest: int, out: Any, stops: Any) -> None:
    """The best cut of each piece without itself, backwards, to `out`; stops[row] is where it ends there."""
    best, by = np.empty(longest + 1), np.empty(longest + 1, np.int32)
    reached = np.empty(longest + 1, np.bool_)
    edges = np.empty((longest * EDGES, 3), np.int32)
    begin = 0
    n_out = 0
    for piece in range(len(ends)):
        end = ends[piece]
        n = _find_edges(text, begin, end, table, rows, reached, edges)
        _best_path(edges, n, end - begin, scores, piece, best, by)
        at = end - begin
        while at > 0 and by[at] >= 0:
            out[n_out] = edges[by[at], 2]
            n_out += 1
            at = edges[by[at], 0]
        stops[piece] = n_out
        begin = end


class Words:
    """The words of a text and how often each occurs, ready for many passes."""

    def __init__(self, words: Mapping[str, int]) -> None:
        parts = [word.encode() for word in words]
        self._text, self._ends = join(parts)
        self._counts = np.fromiter(words.values(), np.float64, len(parts))
        self._longest = max(map(len, parts))

    def expected(self, pieces: list[str], scores: np.ndarray) -> np.ndarray:
        """How often each piece is expected in the words, over all of their cuts."""
        trie = build_trie([piece.encode() for piece in pieces])
        counts = np.zeros(len(pieces))
        expected_counts(self._text, self._ends, self._counts, trie.table, trie.rows, scores, self._longest, counts)
        return counts

    def usage(self, pieces: list[str], scores: np.ndarray) -> tuple[np.ndarray, list[list[int]]]:
        """How often each piece is in the best cuts, and the rows of the pieces that would do instead of it."""
        parts = [piece.encode() for piece in pieces]
        trie = build_trie(parts)
        counts = np.zeros(len(pieces))
        best_counts(self._text, self._ends, self._counts, trie.table, trie.rows, scores, self._longest, counts)
        text, ends = join(parts)
        out, stops = np.empty(len(text), np.int32), np.empty(len(parts), np.int64)
        alternatives(text, ends, trie.table, trie.rows, scores, max(map(len, parts)), out, stops)
        rows = out.tolist()
        return counts, [rows[a:b] for a, b in zip([0, *stops.tolist()], stops.tolist(), strict=False)]
