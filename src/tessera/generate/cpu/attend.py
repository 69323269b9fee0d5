"""Attention over the cache: what a few queries of one sequence gather, for one head of keys and values.

The keys of a block (`pool.py`) lie transposed, so 16 scores are made at once as a product of a panel is, and no sum is
across lanes. A tile is up to 8 queries, of heads that share the keys and of positions one after the other; a query that
sees less than the others has weights of zero beyond, which changes no bit of its sums. Each sum goes over the positions
in their order, wherever the blocks lie.
"""

from typing import Any

import numpy as np

from tessera.generate.cpu.plan import Row, Tile, Word, number, word
from tessera.generate.cpu.pool import POSITIONS, head_place
from tessera.generate.cpu.products import add_products, load_halves, scale_rows, store_rows
from tessera.generate.cpu.rows import exponential
from tessera.generate.cpu.vectors import (
    add,
    greater,
    greatest_of,
    keep_first,
    load,
    load_bytes,
    load_word,
    multiply,
    splat,
    store,
    sum_of,
    zero,
    zeros,
)
from tessera.native.jit import inner

MOST = 8
"""Queries of a tile."""
LOWEST = np.float32(-3e38)
NOTHING = np.float32(0)


def _scores(rows: int, load_keys: Any, width: int) -> Any:
    """`width` are the bytes of 16 numbers; those of 16 bytes have scales behind them."""
    zero_rows, scaled = zeros(rows), width == POSITIONS

    @inner
    def scores(queries, s_queries, keys, s_block, table, n_blocks, d_head, out, s_out):  # type: ignore[no-untyped-def]
        """Two blocks at a time, so that no sum waits for its last product; the second of an odd number is made twice,
        and not used."""
        for block in range(0, n_blocks, 2):
            first, second = zero_rows(), zero_rows()
            here = keys + s_block * load_word(table + 8 * block)
            there = keys + s_block * load_word(table + 8 * min(block + 1, n_blocks - 1))
            for d in range(d_head):
                first = add_products(first, load_keys(here + width * d), queries + 4 * d, s_queries)
                second = add_products(second, load_keys(there + width * d), queries + 4 * d, s_queries)
            if scaled:
                first = scale_rows(first, load_halves(here + width * d_head))
                second = scale_rows(second, load_halves(there + width * d_head))
            store_rows(out + 64 * block, s_out, first)
            store_rows(out + 64 * block + 64, s_out, second)

    return scores


def _gathered(rows: int, load_values: Any, width: int) -> Any:
    zero_rows = zeros(rows)

    @inner
    def gathered(weights, s_weights, values, s_block, table, n_positions, d_head, out, s_out):  # type: ignore[no-untyped-def]
        """Two vectors of a head at a time, for the same reason; the second of an odd number is made twice."""
        parts, s_value = d_head // 16, width * (d_head // 16)
        for part in range(0, parts, 2):
            other = min(part + 1, parts - 1)
            first, second = zero_rows(), zero_rows()
            for begin in range(0, n_positions, POSITIONS):
                block = values + s_block * load_word(table + 8 * (begin // POSITIONS))
                here, there, weight = block + width * part, block + width * other, weights + 4 * begin
                for _ in range(min(POSITIONS, n_positions - begin)):
                    first = add_products(first, load_values(here), weight, s_weights)
                    second = add_products(second, load_values(there), weight, s_weights)
                    here, there, weight = here + s_value, there + s_value, weight + 4
            store_rows(out + 64 * part, s_out, first)
            store_rows(out + 64 * other, s_out, second)

    return gathered


scores_4_byte, scores_8_byte = _scores(4, load_bytes, 16), _scores(8, load_bytes, 16)
scores_4_half, scores_8_half = _scores(4, load_halves, 32), _scores(8, load_halves, 32)
scores_4_single, scores_8_single = _scores(4, load, 64), _scores(8, load, 64)
gathered_4_byte, gathered_8_byte = _gathered(4, load_bytes, 16), _gathered(8, load_bytes, 16)
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
def attend(plan, layer, tile, head, scratch):  # type: ignore[no-untyped-def]
    """One tile with one head of keys: the heads of queries that share it, eight queries at a time."""
    tile = word(plan, Word.TILES) + 16 * tile
    first, count = load_word(tile + 8 * Tile.FIRST), load_word(tile + 8 * Tile.COUNT)
    n_sharing = word(plan, Word.N_HEADS) // word(plan, Word.N_KV_HEADS)
    for begin in range(0, count * n_sharing, MOST):
        attend_queries(plan, layer, first, head, begin, min(MOST, count * n_sharing - begin), scratch)


@inner
def score(plan, count, queries, keys, table, n_blocks, out, s_out):  # type: ignore[no-untyped-def]
    """The products of queries and keys, by the kernel for their number and the cache's precision."""
    d, bytes_, s_block = word(plan, Word.D_HEAD), word(plan, Word.NUMBER_BYTES), word(plan, Word.S_BLOCK)
    if bytes_ == 1 and count <= 4:
        scores_4_byte(queries, 4 * d, keys, s_block, table, n_blocks, d, out, s_out)
    elif bytes_ == 1:
        scores_8_byte(queries, 4 * d, keys, s_block, table, n_blocks, d, out, s_out)
    elif bytes_ == 2 and count <= 4:
        scores_4_half(queries, 4 * d, keys, s_block, table, n_blocks, d, out, s_out)
    elif bytes_ == 2:
        scores_8_half(queries, 4 * d, keys, s_block, table, n_blocks, d, out, s_out)
    elif count <= 4:
        scores_4_single(queries, 4 * d, keys, s_block, table, n_blocks, d, out, s_out)
    else:
        scores_8_single(queries, 4 * d, keys, s_block, table, n_blocks, d, out, s_out)


@inner
def gather(plan, count, weights, s_weights, values, table, n_positions, out):  # type: ignore[no-untyped-def]
    """The sums of values by weights, likewise."""
    d, bytes_, s_block = word(plan, Word.D_HEAD), word(plan, Word.NUMBER_BYTES), word(plan, Word.S_BLOCK)
    if bytes_ == 1 and count <= 4:
        gathered_4_byte(weights, s_weights, values, s_block, table, n_positions, d, out, 4 * d)
    elif bytes_ == 1:
        gathered_8_byte(weights, s_weights, values, s_block, table, n_positions, d, out, 4 * d)
    elif bytes_ == 2 and count <= 4:
        gathered_4_half(weights, s_weights, values, s_block, table, n_positions, d, out, 4 * d)
    elif bytes_ == 2:
        gathered_8_half(weights, s_weights, values, s_block, table, n_positions, d, out, 4 * d)
    elif count <= 4:
        gathered_4_single(weights, s_weights, values, s_block, table, n_positions, d, out, 4 * d)
    else:
        gathered_8_single(weights, s_weights, values, s_block, table, n_positions, d, out, 4 * d)


@inner
def weigh(plan, scores, own, n_blocks, values, table):  # type: ignore[no-untyped-def]
    """The weights of the values from the scores of a query that sees `own` positions; returns their sum."""
    total = softmax_row(scores, own)
    n_own = (own + 15) // 16
    if word(plan, Word.NUMBER_BYTES) == 1:
        scales, s_block = values + POSITIONS * word(plan, Word.D_HEAD), word(plan, Word.S_BLOCK)
        for block in range(n_own):
            scale = load_halves(scales + s_block * load_word(table + 8 * block))
            store(scores + 64 * block, multiply(load(scores + 64 * block), scale))
    # What the tile sees beyond the query's own last vector.
    for block in range(n_own, n_blocks):
        store(scores + 64 * block, zero())
    return total


@inner
def attend_queries(plan, layer, first, head, begin, count, scratch):  # type: ignore[no-untyped-def]
    """`count` queries, query i being head i % n_sharing of row `first` + i / n_sharing."""
    d_head = word(plan, Word.D_HEAD)
    n_sharing = word(plan, Word.N_HEADS) // word(plan, Word.N_KV_HEADS)
    row = word(plan, Word.ROWS) + 24 * first
    table, position = load_word(row + 8 * Row.TABLE), load_word(row + 8 * Row.POSITION)
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
    offset = head_place(plan, layer, head)
    keys, values = word(plan, Word.KEYS) + offset, word(plan, Word.VALUES) + offset
    n_blocks = (seen + 15) // 16
    score(plan, count, queries, keys, table, n_blocks, scores, s_scores)
    for i in range(count):
        own = position + (begin + i) // n_sharing + 1
        total = weigh(plan, scores + s_scores * i, own, n_blocks, values, table)
        store(queries + 4 * d_head * i, splat(np.float32(1) / total))
    gather(plan, count, scores, s_scores, values, table, seen, gathered)
    for i in range(count):
        place = begin + i
        to = word(plan, Word.MIXED) + (first + place // n_sharing) * word(plan, Word.S_MIXED)
        to += 4 * d_head * (head * n_sharing + place % n_sharing)
        share = load(queries + 4 * d_head * i)
        for d in range(0, 4 * d_head, 64):
            store(to + d, multiply(load(gathered + 4 * d_head * i + d), share))
