"""Attention over the cache: what a few queries of one sequence gather, for one head of keys and values.

The keys of a block (`pool.py`) lie transposed, so 16 scores are made at once as a product of a panel is, and no sum is
across lanes. A tile is up to 8 queries, of heads that share the keys and of positions one after the other; a query that
sees less than the others has weights of zero beyond, which changes no bit of its sums.

The positions are gone through in chunks, each with a softmax of its own, and what they give is joined in their order
(Dao et al. 2022, "FlashAttention", section 3.1; Milakov and Gimelshein 2018, "Online normalizer calculation for
softmax"). With m the greatest score of a chunk, l the sum of e^(score - m) and a the sum of values with these weights,

    m' = max(m1, m2)     l' = l1 e^(m1 - m') + l2 e^(m2 - m')     a' = a1 e^(m1 - m') + a2 e^(m2 - m')

Of a few rows, threads take the chunks apart from each other; the chunks are the same, and so is every bit.
"""

from typing import Any

import numpy as np

from tessera.generate.cpu.plan import Row, Tile, Word, number, word
from tessera.generate.cpu.pool import POSITIONS, head_place
from tessera.generate.cpu.products import add_products, load_halves, scale_rows, store_rows
from tessera.generate.cpu.rows import exponential
from tessera.generate.cpu.vectors import (
    add,
    divide,
    fma,
    greater,
    greatest_of,
    keep_first,
    load,
    load_bytes,
    load_word,
    multiply,
    splat,
    store,
    subtract,
    sum_of,
    zero,
    zeros,
)
from tessera.native.jit import inner
from tessera.native.memory import prefetch

MOST = 8
"""Queries of a tile."""
CHUNK = 64
"""Positions that are looked at in one go: few enough to lie in the nearest cache."""
LOWEST = np.float32(-3e38)
NOTHING, ONE = np.float32(0), np.float32(1)


@inner
def copy(source, to, n_bytes):  # type: ignore[no-untyped-def]
    for place in range(0, n_bytes, 64):
        store(to + place, load(source + place))


def _scores(rows: int, load_keys: Any, width: int) -> Any:
    """`width` are the bytes of 16 numbers; those of 16 bytes have scales behind them."""
    zero_rows, scaled = zeros(rows), width == POSITIONS

    @inner
    def scores(queries, s_queries, keys, s_block, table, n_blocks, d_head, out, s_out, values):  # type: ignore[no-untyped-def]
        """Two blocks at a time, so that no sum waits for its last product; the second of an odd number is made twice,
        and not used. Meanwhile the values of the blocks are asked for."""
        for block in range(0, n_blocks, 2):
            first, second = zero_rows(), zero_rows()
            place = s_block * load_word(table + 8 * block)
            other = s_block * load_word(table + 8 * min(block + 1, n_blocks - 1))
            here, there = keys + place, keys + other
            for d in range(d_head):
                prefetch(values + place + width * d)
                prefetch(values + other + width * d)
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
    def gathered(weights, s_weights, values, s_block, table, n_positions, d_head, out, s_out, keys, further):  # type: ignore[no-untyped-def]
        """Two vectors of a head at a time, for the same reason; the second of an odd number is made twice. Meanwhile
        the keys of as many blocks from `further` of the table on are asked for."""
        parts, s_value = d_head // 16, width * (d_head // 16)
        for part in range(0, parts, 2):
            other = min(part + 1, parts - 1)
            first, second = zero_rows(), zero_rows()
            for begin in range(0, n_positions, POSITIONS):
                block = values + s_block * load_word(table + 8 * (begin // POSITIONS))
                here, there, weight = block + width * part, block + width * other, weights + 4 * begin
                ahead = keys + s_block * load_word(further + 8 * (begin // POSITIONS)) + width * part * POSITIONS
                for _ in range(min(POSITIONS, n_positions - begin)):
                    prefetch(ahead)
                    prefetch(ahead + width)
                    first = add_products(first, load_values(here), weight, s_weights)
                    second = add_products(second, load_values(there), weight, s_weights)
                    here, there, weight, ahead = here + s_value, there + s_value, weight + 4, ahead + 2 * width
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
def softmax_row(scores, n, found):  # type: ignore[no-untyped-def]
    """e^(score - the greatest) in place, zeros from `n` on to the end of the last vector; the greatest score and the
    sum go to `found`, each in all lanes."""
    most = splat(LOWEST)
    for block in range((n + 15) // 16):
        most = greater(most, keep_first(load(scores + 64 * block), n - 16 * block, LOWEST))
    greatest, total = greatest_of(most), zero()
    most = splat(-greatest)
    for block in range((n + 15) // 16):
        weights = keep_first(exponential(add(load(scores + 64 * block), most)), n - 16 * block, NOTHING)
        store(scores + 64 * block, weights)
        total = add(total, weights)
    store(found, splat(greatest))
    store(found + 64, splat(sum_of(total)))


@inner
def score(plan, count, queries, keys, table, n_blocks, out, s_out, values):  # type: ignore[no-untyped-def]
    """The products of queries and keys, by the kernel for their number and the cache's precision."""
    d, bytes_, s_block = word(plan, Word.D_HEAD), word(plan, Word.NUMBER_BYTES), word(plan, Word.S_BLOCK)
    if bytes_ == 1 and count <= 4:
        scores_4_byte(queries, 4 * d, keys, s_block, table, n_blocks, d, out, s_out, values)
    elif bytes_ == 1:
        scores_8_byte(queries, 4 * d, keys, s_block, table, n_blocks, d, out, s_out, values)
    elif bytes_ == 2 and count <= 4:
        scores_4_half(queries, 4 * d, keys, s_block, table, n_blocks, d, out, s_out, values)
    elif bytes_ == 2:
        scores_8_half(queries, 4 * d, keys, s_block, table, n_blocks, d, out, s_out, values)
    elif count <= 4:
        scores_4_single(queries, 4 * d, keys, s_block, table, n_blocks, d, out, s_out, values)
    else:
        scores_8_single(queries, 4 * d, keys, s_block, table, n_blocks, d, out, s_out, values)


@inner
def gather(plan, count, weights, s_weights, values, table, n_positions, out, s_out, keys, further):  # type: ignore[no-untyped-def]
    """The sums of values by weights, likewise."""
    d, bytes_, s_block = word(plan, Word.D_HEAD), word(plan, Word.NUMBER_BYTES), word(plan, Word.S_BLOCK)
    if bytes_ == 1 and count <= 4:
        gathered_4_byte(weights, s_weights, values, s_block, table, n_positions, d, out, s_out, keys, further)
    elif bytes_ == 1:
        gathered_8_byte(weights, s_weights, values, s_block, table, n_positions, d, out, s_out, keys, further)
    elif bytes_ == 2 and count <= 4:
        gathered_4_half(weights, s_weights, values, s_block, table, n_positions, d, out, s_out, keys, further)
    elif bytes_ == 2:
        gathered_8_half(weights, s_weights, values, s_block, table, n_positions, d, out, s_out, keys, further)
    elif count <= 4:
        gathered_4_single(weights, s_weights, values, s_block, table, n_positions, d, out, s_out, keys, further)
    else:
        gathered_8_single(weights, s_weights, values, s_block, table, n_positions, d, out, s_out, keys, further)


@inner
def weigh(plan, scores, own, n_blocks, values, table, found):  # type: ignore[no-untyped-def]
    """The weights of the values from the scores of a query that sees `own` positions of a chunk."""
    softmax_row(scores, own, found)
    n_own = (own + 15) // 16
    if word(plan, Word.NUMBER_BYTES) == 1:
        scales, s_block = values + POSITIONS * word(plan, Word.D_HEAD), word(plan, Word.S_BLOCK)
        for block in range(n_own):
            scale = load_halves(scales + s_block * load_word(table + 8 * block))
            store(scores + 64 * block, multiply(load(scores + 64 * block), scale))
    # What the tile sees beyond the query's own last vector.
    for block in range(n_own, n_blocks):
        store(scores + 64 * block, zero())


@inner
def look(plan, layer, first, head, begin, count, chunk, scratch):  # type: ignore[no-untyped-def]
    """What `count` queries find in a chunk, query i being head i % n_sharing of row `first` + i / n_sharing: of each,
    at the beginning of `scratch`, the sum of values and in all lanes the greatest score and the sum of weights."""
    d_head, n_sharing = word(plan, Word.D_HEAD), word(plan, Word.N_HEADS) // word(plan, Word.N_KV_HEADS)
    row = word(plan, Word.ROWS) + 24 * first
    position, start = load_word(row + 8 * Row.POSITION), CHUNK * chunk
    table, s_found = load_word(row + 8 * Row.TABLE) + 8 * (start // POSITIONS), word(plan, Word.S_FOUND)
    offset = head_place(plan, layer, head)
    keys, values = word(plan, Word.KEYS) + offset, word(plan, Word.VALUES) + offset
    seen = min(position + (begin + count - 1) // n_sharing + 1 - start, CHUNK)
    n_blocks = (seen + 15) // 16
    n_bytes = POSITIONS * d_head * word(plan, Word.NUMBER_BYTES)
    # All at once: blocks lie far from each other, so the processor does not see by itself what comes next.
    for block in range(n_blocks):
        place = keys + word(plan, Word.S_BLOCK) * load_word(table + 8 * block)
        for line in range(0, n_bytes, 64):
            prefetch(place + line)
    queries = scratch + MOST * s_found
    scores, s_scores = queries + 4 * MOST * d_head, 4 * CHUNK
    scale = splat(number(plan, Word.SCALE))
    for i in range(count):
        place = begin + i
        source = word(plan, Word.QKV) + (first + place // n_sharing) * word(plan, Word.S_QKV)
        source += 4 * d_head * (head * n_sharing + place % n_sharing)
        for d in range(0, 4 * d_head, 64):
            store(queries + 4 * d_head * i + d, multiply(load(source + d), scale))
    score(plan, count, queries, keys, table, n_blocks, scores, s_scores, values)
    for i in range(count):
        own = min(position + (begin + i) // n_sharing + 1 - start, CHUNK)
        weigh(plan, scores + s_scores * i, own, n_blocks, values, table, scratch + s_found * i + 4 * d_head)
    goes_on = position // POSITIONS >= (start + CHUNK) // POSITIONS + n_blocks
    further = table + 8 * (CHUNK // POSITIONS) if goes_on else table
    gather(plan, count, scores, s_scores, values, table, seen, scratch, s_found, keys, further)


@inner
def join(found, other, d_head):  # type: ignore[no-untyped-def]
    """What was found in the chunks before, with what was found in the next one."""
    m_1, m_2 = load(found + 4 * d_head), load(other + 4 * d_head)
    m = greater(m_1, m_2)
    share_1, share_2 = exponential(subtract(m_1, m)), exponential(subtract(m_2, m))
    store(found + 4 * d_head, m)
    total = 4 * d_head + 64
    store(found + total, fma(load(other + total), share_2, multiply(load(found + total), share_1)))
    for d in range(0, 4 * d_head, 64):
        store(found + d, fma(load(other + d), share_2, multiply(load(found + d), share_1)))


@inner
def finish(plan, found, row, head):  # type: ignore[no-untyped-def]
    """The sum of values over the sum of weights, as what the head of a row gives."""
    d_head = word(plan, Word.D_HEAD)
    to = word(plan, Word.MIXED) + row * word(plan, Word.S_MIXED) + 4 * d_head * head
    share = divide(splat(ONE), load(found + 4 * d_head + 64))
    for d in range(0, 4 * d_head, 64):
        store(to + d, multiply(load(found + d), share))


@inner
def attend(plan, layer, tile, head, scratch):  # type: ignore[no-untyped-def]
    """One tile with one head of keys: the heads of queries that share it, eight queries at a time, chunk by chunk."""
    tile = word(plan, Word.TILES) + 16 * tile
    first, n_rows = load_word(tile + 8 * Tile.FIRST), load_word(tile + 8 * Tile.COUNT)
    d_head, n_sharing = word(plan, Word.D_HEAD), word(plan, Word.N_HEADS) // word(plan, Word.N_KV_HEADS)
    position = load_word(word(plan, Word.ROWS) + 24 * first + 8 * Row.POSITION)
    s_found = word(plan, Word.S_FOUND)
    before = scratch + MOST * (s_found + 4 * d_head + 4 * CHUNK)
    for begin in range(0, n_rows * n_sharing, MOST):
        count = min(MOST, n_rows * n_sharing - begin)
        for chunk in range((position + (begin + count - 1) // n_sharing) // CHUNK + 1):
            look(plan, layer, first, head, begin, count, chunk, scratch)
            for i in range(count):
                found, other = before + s_found * i, scratch + s_found * i
                if chunk == 0:
                    copy(other, found, s_found)
                elif position + (begin + i) // n_sharing >= CHUNK * chunk:
                    join(found, other, d_head)
        for i in range(count):
            place = begin + i
            finish(plan, before + s_found * i, first + place // n_sharing, head * n_sharing + place % n_sharing)


@inner
def found_at(plan, row, head, chunk):  # type: ignore[no-untyped-def]
    """Where the head of a row keeps what it finds in a chunk, if the chunks are taken apart."""
    chunk += word(plan, Word.N_CHUNKS) * (word(plan, Word.N_HEADS) * row + head)
    return word(plan, Word.FOUND) + word(plan, Word.S_FOUND) * chunk


@inner
def attend_chunk(plan, layer, tile, head, chunk, scratch):  # type: ignore[no-untyped-def]
    """One tile with one head of keys in one chunk, if it sees any of it; `join_chunks` is for the rest."""
    tile = word(plan, Word.TILES) + 16 * tile
    first, n_rows = load_word(tile + 8 * Tile.FIRST), load_word(tile + 8 * Tile.COUNT)
    n_sharing = word(plan, Word.N_HEADS) // word(plan, Word.N_KV_HEADS)
    position = load_word(word(plan, Word.ROWS) + 24 * first + 8 * Row.POSITION)
    s_found = word(plan, Word.S_FOUND)
    for begin in range(0, n_rows * n_sharing, MOST):
        count = min(MOST, n_rows * n_sharing - begin)
        if position + (begin + count - 1) // n_sharing >= CHUNK * chunk:
            look(plan, layer, first, head, begin, count, chunk, scratch)
            for i in range(count):
                place = begin + i
                row, of_row = first + place // n_sharing, head * n_sharing + place % n_sharing
                copy(scratch + s_found * i, found_at(plan, row, of_row, chunk), s_found)


@inner
def join_chunks(plan, row):  # type: ignore[no-untyped-def]
    """What all heads of a row have found, chunk after chunk."""
    position = load_word(word(plan, Word.ROWS) + 24 * row + 8 * Row.POSITION)
    for head in range(word(plan, Word.N_HEADS)):
        found = found_at(plan, row, head, 0)
        for chunk in range(1, position // CHUNK + 1):
            join(found, found_at(plan, row, head, chunk), word(plan, Word.D_HEAD))
        finish(plan, found, row, head)
