"""From text to tokens, given the ranks: what every fast path must equal, and what runs where nothing is compiled."""

import importlib.util
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from heapq import heapify, heappop, heappush
from typing import Protocol

import numpy as np

from tessera.tokenizers.scan import RULES, compile_pattern, split_pieces

log = logging.getLogger("tessera.tokenizers")

CACHED_PIECES = 2**18
CACHED_LENGTH = 64  # characters; a longer piece is rarely met again
_REACH = 4096  # characters from the end of a text in which a border is looked for
SLOWLY = "text is encoded in plain Python, 20 to 90 times slower"


def settled_words(text: str) -> int:
    """The last place near the end of `text` between two Latin words, before the space: a border for every pattern that
    has a scanner; 0 where there is none.

    >>> settled_words("one two thr")
    7
    """
    space = len(text) - 1
    while (space := text.rfind(" ", max(len(text) - _REACH, 1), space)) > 0:
        around = text[space - 1] + text[space + 1]
        if around.isascii() and around.isalpha():
            return space
    return 0


class Encoder(Protocol):
    """Cuts a text into pieces and each piece into tokens."""

    def __init__(
        self,
        ranks: Mapping[bytes, int],
        *,
        pattern: str,
        merges: Sequence[tuple[int, int]] | None = None,
        whole_pieces: bool = True,
    ) -> None: ...

    def encode(self, text: str) -> np.ndarray:
        """The ids of `text`, 32 bits each."""

    def encode_many(self, texts: Sequence[str], dtype: type[np.uint16] | type[np.uint32]) -> list[np.ndarray]:
        """The ids of each of `texts`, as arrays of `dtype`."""

    def settled(self, text: str) -> int:
        """How many characters of `text`, which goes on, hold pieces that nothing after it can change."""


def merge_lowest(piece: bytes, ranks: Mapping[bytes, int]) -> list[int]:
    """The ids of one piece: join the neighbours whose joint bytes have the lowest rank, until no two are a token.

    A token is known by where it starts; `after` leads to the next one. The heap holds (rank, start, end) of pairs, and
    an entry whose bytes are no longer a pair is passed over: n log n for any piece, a megabyte of one letter as well.

    >>> merge_lowest(b"abab", {b"a": 0, b"b": 1, b"ab": 2})
    [2, 2]
    """
    stop = len(piece)
    after = list(range(1, stop + 1))
    before = list(range(-1, stop - 1))
    pairs = ((ranks.get(piece[at : at + 2]), at, at + 2) for at in range(stop - 1))
    heap = [(rank, at, end) for rank, at, end in pairs if rank is not None]
    heapify(heap)
    while heap:
        _, start, end = heappop(heap)
        middle = after[start]
        if middle < 0 or middle == stop or after[middle] != end:
            continue
        after[start], after[middle] = end, -1
        previous = before[start]
        if end < stop:
            before[end] = start
            rank = ranks.get(piece[start : after[end]])
            if rank is not None:
                heappush(heap, (rank, start, after[end]))
        if previous >= 0:
            rank = ranks.get(piece[previous:end])
            if rank is not None:
                heappush(heap, (rank, previous, end))
    return [ranks[piece[at:end]] for at, end in enumerate(after) if end > 0]


def merge_listed(ids: Sequence[int], joined: Mapping[tuple[int, int], tuple[int, int]]) -> list[int]:
    """`ids` with pairs joined, the lowest order first; `joined` leads from a pair to its order and the new id.

    >>> merge_listed([1, 2, 1, 2], {(1, 2): (0, 3), (3, 3): (1, 4)})
    [4]
    """
    ids = list(ids)
    after = list(range(1, len(ids) + 1))
    before = list(range(-1, len(ids) - 1))
    heap: list[tuple[int, int, int, int]] = []

    def offer(start: int) -> None:
        end = after[start]
        if end < len(ids) and (found := joined.get((ids[start], ids[end]))) is not None:
            heappush(heap, (found[0], start, ids[start], ids[end]))

    for start in range(len(ids) - 1):
        offer(start)
    while heap:
        _, start, first, second = heappop(heap)
        middle = after[start]
        if ids[start] != first or middle >= len(ids) or ids[middle] != second:
            continue
        ids[start], ids[middle] = joined[first, second][1], -1
        after[start] = after[middle]
        if after[middle] < len(ids):
            before[after[middle]] = start
        offer(start)
        if before[start] >= 0:
            offer(before[start])
    return [id for id in ids if id >= 0]


class PlainEncoder:
    """Piece by piece, with a memory of the pieces that were met before."""

    def __init__(
        self,
        ranks: Mapping[bytes, int],
        *,
        pattern: str,
        merges: Sequence[tuple[int, int]] | None = None,
        whole_pieces: bool = True,
    ) -> None:
        self.ranks = ranks
        self.whole_pieces = whole_pieces
        self.pattern = pattern
        self._pattern = compile_pattern(pattern)
        self._cache: dict[str, list[int]] = {}
        self._merge = self._by_rank if merges is None else self._by_merges(merges)

    def encode(self, text: str) -> np.ndarray:
        known = self._cache
        ids: list[int] = []
        for piece in split_pieces(self._pattern, text):
            tokens = known.get(piece)
            ids += self._encode_piece(piece) if tokens is None else tokens
        return np.array(ids, dtype=np.uint32)

    def encode_many(self, texts: Sequence[str], dtype: type[np.uint16] | type[np.uint32]) -> list[np.ndarray]:
        return [self.encode(text).astype(dtype) for text in texts]

    def settled(self, text: str) -> int:
        return settled_words(text) if self.pattern in RULES else 0

    def _encode_piece(self, piece: str) -> list[int]:
        content = piece.encode()
        whole = self.ranks.get(content) if self.whole_pieces else None
        ids = self._merge(content) if whole is None else [whole]
        if len(piece) <= CACHED_LENGTH:
            if len(self._cache) >= CACHED_PIECES:
                self._cache.clear()
            self._cache[piece] = ids
        return ids

    def _by_rank(self, piece: bytes) -> list[int]:
        return merge_lowest(piece, self.ranks)

    def _by_merges(self, merges: Sequence[tuple[int, int]]) -> Callable[[bytes], list[int]]:
        """Where only listed pairs are joined, what stands between two ends is a pair of ids, not bytes."""
        tokens = {id: token for token, id in self.ranks.items()}
        joined = {
            pair: (order, self.ranks[tokens[pair[0]] + tokens[pair[1]]])
            for order, pair in reversed([*enumerate(merges)])
        }

        def merge(piece: bytes) -> list[int]:
            return merge_listed([self.ranks[piece[at : at + 1]] for at in range(len(piece))], joined)

        return merge


def compiles() -> bool:
    """Whether there is numba, which the fast ways are compiled by; where there is none that is said, once."""
    found = importlib.util.find_spec("numba") is not None
    if not found:
        _say_there_is_none()
    return found


@cache
def _say_there_is_none() -> None:
    log.warning("numba is not installed (pip install numba): %s", SLOWLY)


def make_encoder(
    ranks: Mapping[bytes, int], *, pattern: str, merges: Sequence[tuple[int, int]] | None, whole_pieces: bool
) -> Encoder:
    """The compiled encoder, or the plain one where numba is missing or an id is beyond what the other can hold."""
    kind: type[Encoder] = PlainEncoder
    if compiles():
        from tessera.tokenizers.compiled.encoder import CompiledEncoder  # it brings the compiler
        from tessera.tokenizers.compiled.pieces import MAX_ID

        if (highest := max(ranks.values())) <= MAX_ID:
            kind = CompiledEncoder
        else:
            log.warning("an id of %d is more than %d: %s", highest, MAX_ID, SLOWLY)
    return kind(ranks, pattern=pattern, merges=merges, whole_pieces=whole_pieces)
