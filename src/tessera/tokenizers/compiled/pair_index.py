"""The pairs that training chooses from: a compiled hash table that finds one, and a heap that offers the best.

A count in the heap may be too high, as counts fall: it is put right when it comes to the top. Of pairs that are equally
frequent, the lowest (id, id) comes first, or the greatest pair of byte strings.

Every function takes the address of a table of int64: numbers, and the addresses of the arrays (`train._Trainer` makes
them). Passing the arrays themselves would cost more than the work.
"""

import numpy as np

from tessera.native.jit import compiled
from tessera.native.memory import load32, load64, store32
from tessera.tokenizers.compiled.word_table import get, put

FIRST, LEXICOGRAPHIC = range(2)
LOW = 0xFFFFFFFF  # a pair is first << 32 | second

# The table: numbers,
N_TOKENS, N_PAIRS, N_HEAP, N_PLACES, N_SYMBOLS, THRESHOLD, TIES, MOST_TOKENS, MOST_PAIRS, MOST_PLACES, MASK = range(11)
# and addresses. Of int32: symbols, the runs of blocks, pairs' places, scratch for tokens, the hash table (number + 1)
SYMBOLS, RUN_AT, PLACES, TOUCHED, SLOTS = range(11, 16)
# Of records of int64: a run's end and weight; a token's two parts, width in places, length and first eight bytes; how
# often and at how many places a neighbour was seen; a pair, its count, where its places start and how many there are;
# a count and a pair's number
RUNS, TOKENS, NEAR, PAIRS, HEAP = range(16, 21)
SIZE = 21


@compiled
def _slot(m: int, pair: int) -> int:
    """The address of the slot where `pair` is in the hash table, or of the empty one where it belongs."""
    mask, slots, pairs = get(m, MASK), get(m, SLOTS), get(m, PAIRS)
    mixed = np.uint64(pair) * np.uint64(0x9E3779B97F4A7C15)
    slot = np.int64(mixed >> np.uint64(32)) & mask
    while True:
        number = load32(slots + 4 * slot)
        if number == 0 or get(pairs, 4 * (number - 1)) == pair:
            return slots + 4 * slot
        slot = (slot + 1) & mask


@compiled
def rehash(m: int) -> None:
    """Fill the hash table, which is empty, anew."""
    for number in range(get(m, N_PAIRS)):
        store32(_slot(m, get(get(m, PAIRS), 4 * number)), number + 1)


@compiled
def _byte(tokens: int, token: int, place: int) -> int:
    while token >= 256:
        first = get(tokens, 4 * token) >> 32
        length = get(tokens, 4 * first + 2)
        if place < length:
            token = first
        else:
            token = get(tokens, 4 * token) & LOW
            place -= length
    return token


@compiled
def _greater(m: int, one: int, other: int) -> bool:
    """Whether the bytes of token `one` are greater than those of `other`, another token."""
    tokens = get(m, TOKENS)
    ours, theirs = load64(tokens + 32 * one + 24), load64(tokens + 32 * other + 24)
    if ours != theirs:
        return ours > theirs
    length, than = get(tokens, 4 * one + 2), get(tokens, 4 * other + 2)
    for place in range(min(length, than)):
        difference = _byte(tokens, one, place) - _byte(tokens, other, place)
        if difference:
            return difference > 0
    return length > than


@compiled
def _better(m: int, count: int, one: int, other_count: int, other: int) -> bool:
    """Whether pair number `one` is merged before `other`."""
    if count != other_count:
        return count > other_count
    pair, than = get(get(m, PAIRS), 4 * one), get(get(m, PAIRS), 4 * other)
    if get(m, TIES) == FIRST:
        return pair < than
    if pair >> 32 != than >> 32:
        return _greater(m, pair >> 32, than >> 32)
    return pair != than and _greater(m, pair & LOW, than & LOW)


@compiled
def _push(m: int, count: int, number: int) -> None:
    heap, hole = get(m, HEAP), get(m, N_HEAP)
    put(m, N_HEAP, hole + 1)
    while hole:
        above = (hole - 1) >> 1
        above_count, above_number = get(heap, 2 * above), get(heap, 2 * above + 1)
        if not _better(m, count, number, above_count, above_number):
            break
        put(heap, 2 * hole, above_count)
        put(heap, 2 * hole + 1, above_number)
        hole = above
    put(heap, 2 * hole, count)
    put(heap, 2 * hole + 1, number)


@compiled
def _sink(m: int, count: int, number: int) -> None:
    """Put a pair in place of the top."""
    heap, hole, below, size = get(m, HEAP), 0, 1, get(m, N_HEAP)
    while below < size:
        below_count, below_number = get(heap, 2 * below), get(heap, 2 * below + 1)
        if below + 1 < size:
            next_count, next_number = get(heap, 2 * below + 2), get(heap, 2 * below + 3)
            if _better(m, next_count, next_number, below_count, below_number):
                below, below_count, below_number = below + 1, next_count, next_number
        if not _better(m, below_count, below_number, count, number):
            break
        put(heap, 2 * hole, below_count)
        put(heap, 2 * hole + 1, below_number)
        hole, below = below, 2 * below + 1
    put(heap, 2 * hole, count)
    put(heap, 2 * hole + 1, number)


@compiled
def best(m: int) -> int:
    """The number of the pair to merge, or -1: the top of the heap, once its count there is the true one."""
    heap, pairs = get(m, HEAP), get(m, PAIRS)
    while get(m, N_HEAP):
        number = get(heap, 1)
        count = get(pairs, 4 * number + 1)
        if count == get(heap, 0):
            return number
        if count < get(m, THRESHOLD):
            last = get(m, N_HEAP) - 1
            put(m, N_HEAP, last)
            count, number = get(heap, 2 * last), get(heap, 2 * last + 1)
        _sink(m, count, number)
    return -1


@compiled
def new_pair(m: int, pair: int, count: int, n_places: int) -> int:
    """Index a pair that occurs `count` times at `n_places`; returns where to write them, or -1 below the threshold."""
    if count < get(m, THRESHOLD):
        return -1
    number, start = get(m, N_PAIRS), get(m, N_PLACES)
    put(m, N_PAIRS, number + 1)
    put(m, N_PLACES, start + n_places)
    record = get(m, PAIRS) + 32 * number
    put(record, 0, pair)
    put(record, 1, count)
    put(record, 2, start)
    put(record, 3, n_places)
    store32(_slot(m, pair), number + 1)
    _push(m, count, number)
    return start


@compiled
def lose(m: int, pair: int, count: int) -> None:
    number = load32(_slot(m, pair))
    if number:
        record = get(m, PAIRS) + 32 * (number - 1)
        put(record, 1, get(record, 1) - count)
