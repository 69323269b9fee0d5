"""The cache: keys and values of all sequences in one pool of blocks of 16 positions, which have no owner of their own.

A sequence is a table of blocks (Kwon et al. 2023, "Efficient Memory Management for Large Language Model Serving with
PagedAttention"). A block has, for each layer and head,

    keys    [d_head][16], so that 16 scores are made at once as a product of a panel is
    values  [16][d_head]

in single or half precision, or in 8 bits: x ~ s x8 with s = max |x| / 127 over the head, in half precision; the 16
scales stand behind the numbers of a block.
"""

import numpy as np

from tessera.generate.cpu.plan import Row, Word, number, word
from tessera.generate.cpu.products import load_half, store_halves
from tessera.generate.cpu.rows import norm_row, rotate_halves, rotate_pairs
from tessera.generate.cpu.vectors import (
    largest,
    load,
    load_word,
    multiply,
    rounded,
    splat,
    store,
    store_bytes,
)
from tessera.native.jit import inner
from tessera.native.memory import load8, load16, load32, store8, store16, store32
from tessera.ops.compiled.bits import number_of

POSITIONS = 16
"""Of a block."""
CACHES = {"fp32": 4, "fp16": 2, "int8": 1}
"""The bytes of a number."""
SCALE_BYTES = 32
LARGEST = np.float32(127)
ONE = np.float32(1)


def head_bytes(cache: str, d_head: int) -> int:
    """Of the keys or the values of a head in a block."""
    return POSITIONS * d_head * CACHES[cache] + (SCALE_BYTES if cache == "int8" else 0)


@inner
def head_place(plan, layer, head):  # type: ignore[no-untyped-def]
    """Where the keys or values of a head are in a block."""
    return (layer * word(plan, Word.N_KV_HEADS) + head) * word(plan, Word.S_HEAD)


@inner
def keep_row(plan, layer, index, norms, scratch):  # type: ignore[no-untyped-def]
    """Turn the queries and the keys of a row, and put its keys and values into the cache."""
    row = word(plan, Word.ROWS) + 24 * index
    position = load_word(row + 8 * Row.POSITION)
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
    block = load_word(load_word(row + 8 * Row.TABLE) + 8 * (position // POSITIONS)) * word(plan, Word.S_BLOCK)
    place, number_bytes = position % POSITIONS, word(plan, Word.NUMBER_BYTES)
    for head in range(n_kv_heads):
        offset = head_place(plan, layer, head) + block
        key = queries + word(plan, Word.KEY_AT) + 4 * d_head * head
        value = queries + word(plan, Word.VALUE_AT) + 4 * d_head * head
        keys, values = word(plan, Word.KEYS) + offset, word(plan, Word.VALUES) + offset
        if number_bytes == 1:
            keep_bytes(key, value, keys, values, place, d_head, scratch)
        elif number_bytes == 2:
            keep_halves(key, value, keys, values, place, d_head, scratch)
        else:
            keep_singles(key, value, keys, values, place, d_head)


@inner
def keep_halves(key, value, keys, values, place, d_head, scratch):  # type: ignore[no-untyped-def]
    for d in range(0, d_head, 16):
        store_halves(scratch + 2 * d, load(key + 4 * d))
        store_halves(values + 2 * (place * d_head + d), load(value + 4 * d))
    for d in range(d_head):
        store16(keys + 32 * d + 2 * place, load16(scratch + 2 * d))


@inner
def keep_singles(key, value, keys, values, place, d_head):  # type: ignore[no-untyped-def]
    for d in range(0, d_head, 16):
        store(values + 4 * (place * d_head + d), load(value + 4 * d))
    for d in range(d_head):
        store32(keys + 64 * d + 4 * place, load32(key + 4 * d))


@inner
def keep_bytes(key, value, keys, values, place, d_head, scratch):  # type: ignore[no-untyped-def]
    scales = POSITIONS * d_head + 2 * place
    round_head(key, scratch, d_head, keys + scales, scratch + d_head)
    for d in range(d_head):
        store8(keys + 16 * d + place, load8(scratch + d))
    round_head(value, values + place * d_head, d_head, values + scales, scratch + d_head)


@inner
def round_head(x, to, d_head, scale_at, scratch):  # type: ignore[no-untyped-def]
    """The numbers of a head in 8 bits at `to`, by the scale as it is when it is read: in half precision."""
    size = 0
    for d in range(0, d_head, 16):
        size = max(size, largest(load(x + 4 * d), load(x + 4 * d)))
    store_halves(scratch, splat(number_of(np.int32(size)) / LARGEST))
    store16(scale_at, load16(scratch))
    scale, up = load_half(scratch), np.float32(0)
    if scale > np.float32(0) and scale < np.float32(np.inf):
        up = ONE / scale
    for d in range(0, d_head, 16):
        store_bytes(to + d, rounded(multiply(load(x + 4 * d), splat(up))))
