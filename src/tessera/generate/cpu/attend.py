"""Attention over the cache: what a few queries of one sequence gather, for one head of keys and values.

The cache has, for each layer, slot and head, keys as [positions / 16][d_head][16] and values as [positions][d_head], in
single or half precision. So 16 scores are made at once as a product of a panel is, and no sum is across lanes. A tile
is up to 8 queries, of heads that share the keys and of positions one after the other; a query that sees less than the
others has weights of zero beyond, which changes no bit of its sums.
"""

from typing import Any

import numpy as np

from tessera.generate.cpu.plan import Row, Tile, Word, number, word
from tessera.generate.cpu.products import add_products, load_halves, store_halves, store_rows
from tessera.generate.cpu.rows import exponential, norm_row, rotate_halves, rotate_pairs
from tessera.generate.cpu.vectors import (
    add,
    greater,
    greatest_of,
    keep_first,
    load,
    load_word,
    multiply,
    splat,
    store,
    sum_of,
    zero,
    zeros,
)
from tessera.native.jit import inner
from tessera.native.memory import load16, load32, store16, store32

MOST = 8
"""Queries of a tile."""
LOWEST = np.float32(-3e38)
NOTHING = np.float32(0)


def _scores(rows: int, load_keys: Any, width: int) -> Any:
    zero_rows = zeros(rows)

    @inner
    def scores(queries, s_queries, keys, n_blocks, d_head, out, s_out):  # type: ignore[no-untyped-def]
        """Two blocks at a time, so that no sum waits for its last product; what is beyond the last is not used."""
        for block in range(0, n_blocks, 2):
            first, second = zero_rows(), zero_rows()
            here, there = keys + width * d_head * block, keys + width * d_head * (block + 1)
            for d in range(d_head):
                first = add_products(first, load_keys(here + width * d), queries + 4 * d, s_queries)
                second = add_products(second, load_keys(there + width * d), queries + 4 * d, s_queries)
            store_rows(out + 64 * block, s_out, first)
            store_rows(out + 64 * block + 64, s_out, second)

    return scores


def _gathered(rows: int, load_values: Any, width: int) -> Any:
    zero_rows = zeros(rows)

    @inner
    def gathered(weights, s_weights, values, n_positions, d_head, out, s_out):  # type: ignore[no-untyped-def]
        """Two vectors of a head at a time, for the same reason; the second of an odd number is made twice."""
        parts, s_value = d_head // 16, width * (d_head // 16)
        for part in range(0, parts, 2):
            other = min(part + 1, parts - 1)
            first, second = zero_rows(), zero_rows()
            here, there = values + width * part, values + width * other
            for position in range(n_positions):
                first = add_products(first, load_values(here), weights + 4 * position, s_weights)
                second = add_products(second, load_values(there), weights + 4 * position, s_weights)
                here, there = here + s_value, there + s_value
            store_rows(out + 64 * part, s_out, first)
            store_rows(out + 64 * other, s_out, second)

    return gathered


scores_4_half, scores_8_half = _scores(4, load_halves, 32), _scores(8, load_halves, 32)
scores_4_single, scores_8_single = _scores(4, load, 64), _scores(8, load, 64)
gathered_4_half, gathered_8_half = _gathered(4, load_halves, 32), _gathered(8, load_halves, 32)
gathered_4_single, gathered_8_single = _gathered(4, load, 64), _gathered(8, load, 64)


@inner
def softmax_row(scores, n):  # type: ignore[no-untyped-def]
    """e^(score - the greatest) in place, zeros from `n` on to the end of the last vector; returns their sum."""
    most = splat(LOWEST)
    for block in range((n + 15) // 16):
        most = greater(most, keep_first(load(scores + 64 * block), n - 16 * block, LOWEST))
    most, total = splat(-greatest_of(most)), zero()
    for block in range((n + 15) // 16):
        weights = keep_first(exponential(add(load(scores + 64 * block), most)), n - 16 * block, NOTHING)
        store(scores + 64 * block, weights)
        total = add(total, weights)
    return sum_of(total)


@inner
def cache_place(plan, layer, slot, head):  # type: ignore[no-untyped-def]
    """Where the numbers of a head of a slot begin, from the begin of the keys or values."""
    place = (layer * word(plan, Word.N_SLOTS) + slot) * word(plan, Word.N_KV_HEADS) + head
    return place * word(plan, Word.N_POSITIONS) * word(plan, Word.D_HEAD) * word(plan, Word.NUMBER_BYTES)


@inner
def attend(plan, layer, tile, head, scratch):  # type: ignore[no-untyped-def]
    """One tile with one head of keys: the heads of queries that share it, eight queries at a time."""
    tile = word(plan, Word.TILES) + 16 * tile
    first, count = load_word(tile + 8 * Tile.FIRST), load_word(tile + 8 * Tile.COUNT)
    n_sharing = word(plan, Word.N_HEADS) // word(plan, Word.N_KV_HEADS)
    for begin in range(0, count * n_sharing, MOST):
        attend_queries(plan, layer, first, head, begin, min(MOST, count * n_sharing - begin), scratch)


@inner
def score(plan, count, queries, keys, n_blocks, out, s_out):  # type: ignore[no-untyped-def]
    """The products of queries and keys, by the kernel for their number and the cache's precision."""
    d_head, half = word(plan, Word.D_HEAD), word(plan, Word.NUMBER_BYTES) == 2
    if half and count <= 4:
        scores_4_half(queries, 4 * d_head, keys, n_blocks, d_head, out, s_out)
    elif half:
        scores_8_half(queries, 4 * d_head, keys, n_blocks, d_head, out, s_out)
    elif count <= 4:
        scores_4_single(queries, 4 * d_head, keys, n_blocks, d_head, out, s_out)
    else:
        scores_8_single(queries, 4 * d_head, keys, n_blocks, d_head, out, s_out)


@inner
def gather(plan, count, weights, s_weights, values, n_positions, out):  # type: ignore[no-untyped-def]
    """The sums of values by weights, likewise."""
    d_head, half = word(plan, Word.D_HEAD), word(plan, Word.NUMBER_BYTES) == 2
    if half and count <= 4:
        gathered_4_half(weights, s_weights, values, n_positions, d_head, out, 4 * d_head)
    elif half:
        gathered_8_half(weights, s_weights, values, n_positions, d_head, out, 4 * d_head)
    elif count <= 4:
        gathered_4_single(weights, s_weights, values, n_positions, d_head, out, 4 * d_head)
    else:
        gathered_8_single(weights, s_weights, values, n_positions, d_head, out, 4 * d_head)


@inner
def attend_queries(plan, layer, first, head, begin, count, scratch):  # type: ignore[no-untyped-def]
    """`count` queries, query i being head i % n_sharing of row `first` + i / n_sharing."""
    d_head = word(plan, Word.D_HEAD)
    n_sharing = word(plan, Word.N_HEADS) // word(plan, Word.N_KV_HEADS)
    row = word(plan, Word.ROWS) + 24 * first
    slot, position = load_word(row + 8 * Row.SLOT), load_word(row + 8 * Row.POSITION)
    queries, gathered = scratch, scratch + 4 * MOST * d_head
    scores, s_scores = gathered + 4 * MOST * d_head, 4 * word(plan, Word.N_POSITIONS)
    scale = splat(number(plan, Word.SCALE))
    for i in range(count):
        place = begin + i
        source = word(plan, Word.QKV) + (first + place // n_sharing) * word(plan, Word.S_QKV)
        source += 4 * d_head * (head * n_sharing + place % n_sharing)
        for d in range(0, 4 * d_head, 64):
            store(queries + 4 * d_head * i + d, multiply(load(source + d), scale))
    seen = position + (begin + count - 1) // n_sharing + 1
    offset = cache_place(plan, layer, slot, head)
    keys, values = word(plan, Word.KEYS) + offset, word(plan, Word.VALUES) + offset
    n_blocks = (seen + 15) // 16
    score(plan, count, queries, keys, n_blocks, scores, s_scores)
    for i in range(count):
        own = position + (begin + i) // n_sharing + 1
        total = softmax_row(scores + s_scores * i, own)
        # What the tile sees beyond the query's own last vector.
        for block in range((own + 15) // 16, n_blocks):
            store(scores + s_scores * i + 64 * block, zero())
        store(queries + 4 * d_head * i, splat(np.float32(1) / total))
    gather(plan, count, scores, s_scores, values, seen, gathered)
    for i in range(count):
        place = begin + i
        to = word(plan, Word.MIXED) + (first + place // n_sharing) * word(plan, Word.S_MIXED)
        to += 4 * d_head * (head * n_sharing + place % n_sharing)
        share = load(queries + 4 * d_head * i)
        for d in range(0, 4 * d_head, 64):
            store(to + d, multiply(load(gathered + 4 * d_head * i + d), share))


@inner
def keep_row(plan, layer, index, norms, scratch):  # type: ignore[no-untyped-def]
    """Turn the queries and the keys of a row, and put its keys and values into the cache."""
    row = word(plan, Word.ROWS) + 24 * index
    slot, position = load_word(row + 8 * Row.SLOT), load_word(row + 8 * Row.POSITION)
    d_head, n_heads, n_kv_heads = word(plan, Word.D_HEAD), word(plan, Word.N_HEADS), word(plan, Word.N_KV_HEADS)
    n_pairs, eps = word(plan, Word.N_PAIRS), number(plan, Word.QK_EPS)
    cos = word(plan, Word.COS) + 4 * n_pairs * position
    sin = word(plan, Word.SIN) + 4 * n_pairs * position
    queries = word(plan, Word.QKV) + index * word(plan, Word.S_QKV)
    for head in range(n_heads + n_kv_heads):
        x = queries + 4 * d_head * head
        if head >= n_heads:
            x = queries + word(plan, Word.KEY_AT) + 4 * d_head * (head - n_heads)
        weight = load_word(norms + 16) if head < n_heads else load_word(norms + 24)
        if weight != 0:
            norm_row(x, weight, x, d_head, eps)
        if word(plan, Word.INTERLEAVED) != 0:
            rotate_pairs(x, cos, sin, n_pairs)
        else:
            rotate_halves(x, cos, sin, n_pairs)
    for head in range(n_kv_heads):
        offset = cache_place(plan, layer, slot, head)
        key = queries + word(plan, Word.KEY_AT) + 4 * d_head * head
        value = queries + word(plan, Word.VALUE_AT) + 4 * d_head * head
        keys, values = word(plan, Word.KEYS) + offset, word(plan, Word.VALUES) + offset
        if word(plan, Word.NUMBER_BYTES) == 2:
            keep_halves(key, value, keys, values, position, d_head, scratch)
        else:
            keep_singles(key, value, keys, values, position, d_head)


@inner
def keep_halves(key, value, keys, values, position, d_head, scratch):  # type: ignore[no-untyped-def]
    for d in range(0, d_head, 16):
        store_halves(scratch + 2 * d, load(key + 4 * d))
        store_halves(values + 2 * (position * d_head + d), load(value + 4 * d))
    to = keys + 2 * (position // 16 * 16 * d_head + position % 16)
    for d in range(d_head):
        store16(to + 32 * d, load16(scratch + 2 * d))


@inner
def keep_singles(key, value, keys, values, position, d_head):  # type: ignore[no-untyped-def]
    for d in range(0, d_head, 16):
        store(values + 4 * (position * d_head + d), load(value + 4 * d))
    to = keys + 4 * (position // 16 * 16 * d_head + position % 16)
    for d in range(d_head):
        store32(to + 64 * d, load32(key + 4 * d))
