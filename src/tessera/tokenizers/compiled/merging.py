"""One piece to its tokens, compiled: the vocabulary, then the merges in order.

The tokens of a piece are a list of places, `after` leading to the next one. `orders` holds for each place the order of
the merge with its neighbour. A short piece is searched for its lowest order anew each time; for a long one a binary
heap of (order, place) finds it, where an entry that is no longer so is passed over: n log n whatever the piece is.

Scratch memory holds for each byte of a piece: ids, orders, after, before (32 bits each) and three words of heap, as
each merge offers two pairs and each byte one.
"""

import numpy as np

from tessera.native.jit import inner
from tessera.native.memory import load8, load32, load64, store32, store64
from tessera.tokenizers.compiled.tables import find_pair, find_token

SCRATCH = 16 + 3 * 8  # bytes for each byte of a piece
SCANNED = 40  # bytes up to which a search beats a heap
NO_ORDER = 0xFFFFFFFF


@inner
def _order(tables, ids, orders, left, right):  # type: ignore[no-untyped-def]
    found = find_pair(
        np.int64(load64(tables + 40)), load64(tables + 48), load32(ids + left * 4), load32(ids + right * 4)
    )
    order = np.int64(found & np.uint64(0xFFFFFFFF))
    store32(orders + left * 4, order)
    return order


@inner
def _join(tables, ids, left, right):  # type: ignore[no-untyped-def]
    found = find_pair(
        np.int64(load64(tables + 40)), load64(tables + 48), load32(ids + left * 4), load32(ids + right * 4)
    )
    store32(ids + left * 4, np.int64(found >> np.uint64(32)))


@inner
def _lowest(orders, n):  # type: ignore[no-untyped-def]
    """Where the lowest of `n` orders stands; of equals the first."""
    best, order = 0, load32(orders)
    for at in range(1, n):
        this = load32(orders + at * 4)
        if this < order:
            best, order = at, this
    return best


@inner
def merge_short(tables, address, length, scratch, out):  # type: ignore[no-untyped-def]
    """The tokens stand side by side; a merge moves those behind it."""
    ids, orders = scratch, scratch + length * 4
    single = np.int64(load64(tables + 64))
    for at in range(length):
        store32(ids + at * 4, load32(single + load8(address + at) * 4))
    for at in range(length - 1):
        _order(tables, ids, orders, at, at + 1)
    n = length
    while n > 1:
        best = _lowest(orders, n - 1)
        if load32(orders + best * 4) == NO_ORDER:
            break
        _join(tables, ids, best, best + 1)
        n -= 1
        for at in range(best + 1, n):
            store32(ids + at * 4, load32(ids + at * 4 + 4))
            store32(orders + at * 4 - 4, load32(orders + at * 4))
        if best < n - 1:
            _order(tables, ids, orders, best, best + 1)
        if best > 0:
            _order(tables, ids, orders, best - 1, best)
    for at in range(n):
        store32(out + at * 4, load32(ids + at * 4))
    return n


@inner
def _push(heap, size, entry):  # type: ignore[no-untyped-def]
    child = size
    while child > 0:
        parent = (child - 1) >> 1
        there = np.int64(load64(heap + parent * 8))
        if there <= entry:
            break
        store64(heap + child * 8, np.uint64(there))
        child = parent
    store64(heap + child * 8, np.uint64(entry))


@inner
def _pop(heap, size):  # type: ignore[no-untyped-def]
    """The lowest of `size` entries; the last one takes its place and sinks."""
    lowest = np.int64(load64(heap))
    last = np.int64(load64(heap + size * 8 - 8))
    size -= 1
    parent = 0
    while True:
        child = 2 * parent + 1
        if child >= size:
            break
        entry = np.int64(load64(heap + child * 8))
        if child + 1 < size:
            other = np.int64(load64(heap + child * 8 + 8))
            if other < entry:
                child, entry = child + 1, other
        if entry >= last:
            break
        store64(heap + parent * 8, np.uint64(entry))
        parent = child
    store64(heap + parent * 8, np.uint64(last))
    return lowest


@inner
def _offer(tables, ids, orders, left, right, heap, size):  # type: ignore[no-untyped-def]
    """Note the merge of two neighbours, if there is one; returns the size of the heap."""
    order = _order(tables, ids, orders, left, right)
    if order == NO_ORDER:
        return size
    _push(heap, size, (order << 32) | left)
    return size + 1


@inner
def merge_long(tables, address, length, scratch, out):  # type: ignore[no-untyped-def]
    """The same with lists and a heap."""
    ids, orders = scratch, scratch + length * 4
    after, before = scratch + length * 8, scratch + length * 12
    heap, size = scratch + length * 16, 0
    single = np.int64(load64(tables + 64))
    for at in range(length):
        store32(ids + at * 4, load32(single + load8(address + at) * 4))
        store32(after + at * 4, at + 1)
        store32(before + at * 4, at - 1)
    store32(orders + (length - 1) * 4, NO_ORDER)
    for at in range(length - 1):
        size = _offer(tables, ids, orders, at, at + 1, heap, size)
    while size > 0:
        entry = _pop(heap, size)
        size -= 1
        left, order = entry & 0xFFFFFFFF, entry >> 32
        if load32(orders + left * 4) != order:
            continue
        right = load32(after + left * 4)
        end = load32(after + right * 4)
        _join(tables, ids, left, right)
        store32(after + left * 4, end)
        store32(orders + right * 4, NO_ORDER)
        store32(orders + left * 4, NO_ORDER)
        if end < length:
            store32(before + end * 4, left)
            size = _offer(tables, ids, orders, left, end, heap, size)
        if left > 0:
            size = _offer(tables, ids, orders, load32(before + left * 4), left, heap, size)
    n, at = 0, 0
    while at < length:
        store32(out + n * 4, load32(ids + at * 4))
        n += 1
        at = load32(after + at * 4)
    return n


@inner
def encode_piece(tables, whole_pieces, address, length, scratch, out):  # type: ignore[no-untyped-def]
    """Write the ids of a piece to `out` (32 bits each); returns how many."""
    if whole_pieces:
        id = find_token(tables, address, length)
        if id >= 0:
            store32(out, id)
            return 1
    if length <= SCANNED:
        return merge_short(tables, address, length, scratch, out)
    return merge_long(tables, address, length, scratch, out)
