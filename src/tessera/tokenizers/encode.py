"""From the bytes of a piece to its tokens, given the ranks."""

from collections.abc import Mapping
from heapq import heapify, heappop, heappush


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
