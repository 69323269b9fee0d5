"""A text of pieces to ids, compiled: a cache of the pieces that were met before, and what to do for the others.

Short pieces (up to 15 bytes) lie in buckets of two entries, a cache line each:

    low  high (the key, as in `tables`)  ids 0 and 1  ids 2 and 3      32 bytes

where the highest bits of the fourth id hold how many ids there are, or that they lie in the arena (offset, count). A
new piece takes the first place of its bucket and moves the other one down. Pieces of 16 to 255 bytes have such buckets
of their own (hash, then in 32 bits each offset of the bytes, length, offset of the ids, count), with bytes and ids in
the arena. When the arena is full everything is forgotten.

The pieces are handled in blocks: first all keys and buckets, which are asked for in advance, then the look-up.
"""

import numpy as np

from tessera.native.jit import compiled, inner
from tessera.native.memory import load8, load32, load64, prefetch, store8, store32, store64
from tessera.tokenizers.compiled.merging import SCRATCH, encode_piece
from tessera.tokenizers.compiled.scanners import scan
from tessera.tokenizers.compiled.tables import bucket_of, hash_bytes, same_bytes

BLOCK = 1024
LONGEST = 255
MAX_ID = 2**29 - 1
"""The highest id that an entry of the cache can hold."""

IN_ARENA = np.uint64(1 << 63)
IDS = np.uint64(0x1FFFFFFFFFFFFFFF)

# The words of a State's header.
TABLES, WHOLE, CACHE, CACHE_SHIFT, LONG, LONG_SHIFT, ARENA, ARENA_SIZE, ARENA_USED = range(9)
SCRATCH_AT, SCRATCH_SIZE, ENDS, KEYS, MASKS, RULE, CLASSES, DONE = range(9, 17)
HEADER = 24


@inner
def _word(state, name):  # type: ignore[no-untyped-def]
    return np.int64(load64(state + name * 8))


@inner
def _clear(address, n_bytes):  # type: ignore[no-untyped-def]
    for at in range(0, n_bytes, 8):
        store64(address + at, np.uint64(0))


@inner
def _room(state, n_bytes):  # type: ignore[no-untyped-def]
    """Where `n_bytes` of the arena begin, forgetting everything if they are not left."""
    used = _word(state, ARENA_USED)
    if used + n_bytes > _word(state, ARENA_SIZE):
        _clear(_word(state, CACHE), np.int64(64) << (np.int64(64) - _word(state, CACHE_SHIFT)))
        _clear(_word(state, LONG), np.int64(64) << (np.int64(64) - _word(state, LONG_SHIFT)))
        used = 0
    store64(state + ARENA_USED * 8, np.uint64(used + ((n_bytes + 7) & ~7)))
    return used


@inner
def _push_down(bucket):  # type: ignore[no-untyped-def]
    """Room for a new entry: the first becomes the second, which is forgotten."""
    for word in range(0, 32, 8):
        store64(bucket + 32 + word, load64(bucket + word))


@inner
def _from_arena(state, entry, out):  # type: ignore[no-untyped-def]
    ids, n = _word(state, ARENA) + load32(entry + 16), load32(entry + 20)
    for i in range(n):
        store32(out + i * 4, load32(ids + i * 4))
    return n


@inner
def _remember_short(state, bucket, low, high, out, n):  # type: ignore[no-untyped-def]
    if n > 4:
        offset = _room(state, n * 4)
        arena = _word(state, ARENA) + offset
        for i in range(n):
            store32(arena + i * 4, load32(out + i * 4))
        first = np.uint64(offset) | (np.uint64(n) << np.uint64(32))
        second = IN_ARENA
    else:
        first = np.uint64(load32(out)) | (np.uint64(load32(out + 4) if n > 1 else 0) << np.uint64(32))
        second = np.uint64(load32(out + 8) if n > 2 else 0) | (
            np.uint64(load32(out + 12) if n > 3 else 0) << np.uint64(32)
        )
        second |= np.uint64(n - 1) << np.uint64(61)
    _push_down(bucket)
    store64(bucket, low)
    store64(bucket + 8, high)
    store64(bucket + 16, first)
    store64(bucket + 24, second)


@inner
def _long_piece(state, address, length, out):  # type: ignore[no-untyped-def]
    """The ids of a piece of more than 15 bytes, remembered where it is not too long; ABSENT if scratch lacks room."""
    if length > LONGEST:
        if length * SCRATCH > _word(state, SCRATCH_SIZE):
            return -1
        return encode_piece(_word(state, TABLES), _word(state, WHOLE), address, length, _word(state, SCRATCH_AT), out)
    arena = _word(state, ARENA)
    key = hash_bytes(address, length)
    bucket = _word(state, LONG) + np.int64(key >> load64(state + LONG_SHIFT * 8)) * 64
    for entry in (bucket, bucket + 32):
        if (
            load64(entry) == key
            and load32(entry + 12) == length
            and same_bytes(arena + load32(entry + 8), address, length)
        ):
            return _from_arena(state, entry, out)
    n = encode_piece(_word(state, TABLES), _word(state, WHOLE), address, length, _word(state, SCRATCH_AT), out)
    offset = _room(state, length + 8 + n * 4)
    ids = (offset + length + 7) & ~7
    for i in range(length):
        store8(arena + offset + i, load8(address + i))
    for i in range(n):
        store32(arena + ids + i * 4, load32(out + i * 4))
    _push_down(bucket)
    store64(bucket, key)
    store32(bucket + 8, offset)
    store32(bucket + 12, length)
    store32(bucket + 16, ids)
    store32(bucket + 20, n)
    return n


@inner
def _find_keys(state, text, at, n):  # type: ignore[no-untyped-def]
    """Key and bucket of each of the block's `n` pieces (bucket 0 for a long one), and its bucket asked for."""
    ends, keys, masks = _word(state, ENDS), _word(state, KEYS), _word(state, MASKS)
    cache, shift = _word(state, CACHE), load64(state + CACHE_SHIFT * 8)
    start = at
    for i in range(n):
        end = np.int64(load64(ends + i * 8))
        length = end - start
        key = keys + i * 24
        if length <= 15:
            mask = masks + length * 32
            low = load64(text + start) & load64(mask)
            high = (load64(text + start + 8) & load64(mask + 8)) | load64(mask + 16)
            bucket = cache + bucket_of(low, high, shift) * 64
            store64(key, low)
            store64(key + 8, high)
            store64(key + 16, np.uint64(bucket))
            prefetch(bucket)
        else:
            store64(key + 16, np.uint64(0))
        start = end


@inner
def _new_short(state, address, length, key, out):  # type: ignore[no-untyped-def]
    n = encode_piece(_word(state, TABLES), _word(state, WHOLE), address, length, _word(state, SCRATCH_AT), out)
    _remember_short(state, np.int64(load64(key + 16)), load64(key), load64(key + 8), out, n)
    return n


@inner
def encode_block(state, text, at, n, out):  # type: ignore[no-untyped-def]
    """Write the ids of the block's `n` pieces; returns how many bytes of ids, and how many pieces were done."""
    _find_keys(state, text, at, n)
    ends, keys = _word(state, ENDS), _word(state, KEYS)
    start, first = at, out
    for i in range(n):
        end = np.int64(load64(ends + i * 8))
        key = keys + i * 24
        bucket = np.int64(load64(key + 16))
        if bucket == 0:
            found = _long_piece(state, text + start, end - start, out)
            if found < 0:
                return out - first, i
            out += found * 4
        else:
            low, high = load64(key), load64(key + 8)
            entry = bucket + (32 if ((load64(bucket) ^ low) | (load64(bucket + 8) ^ high)) != np.uint64(0) else 0)
            if ((load64(entry) ^ low) | (load64(entry + 8) ^ high)) == np.uint64(0):
                more = load64(entry + 24)
                store64(out, load64(entry + 16))
                store64(out + 8, more & IDS)
                if more & IN_ARENA:
                    out += _from_arena(state, entry, out) * 4
                else:
                    out += (np.int64(more >> np.uint64(61)) + 1) * 4
            else:
                out += _new_short(state, text + start, end - start, key, out) * 4
        start = end
    return out - first, n


@compiled
def encode_text(state, text, at, stop, out):  # type: ignore[no-untyped-def]
    """Ids of `text` from byte `at` to `stop`, 32 bits each, to `out`, which has room for one a byte and 16 bytes more.

    Returns how many bytes of ids; word DONE of the state says how far it came: not to `stop` only where a piece needs
    more scratch memory.
    """
    ends, rule, classes = _word(state, ENDS), _word(state, RULE), _word(state, CLASSES)
    first = out
    while at < stop:
        n = scan(rule, classes, text, at, stop, ends, BLOCK)
        written, done = encode_block(state, text, at, n, out)
        out += written
        if done > 0:
            at = np.int64(load64(ends + done * 8 - 8))
        if done < n:
            break
    store64(state + DONE * 8, np.uint64(at))
    return out - first


@compiled
def encode_pieces(state, text, pieces, n, out):  # type: ignore[no-untyped-def]
    """The same for pieces that end at `pieces[i]`, 64 bits each, from the beginning; DONE counts pieces."""
    ends = _word(state, ENDS)
    first, at, done = out, np.int64(0), _word(state, DONE)
    if done > 0:
        at = np.int64(load64(pieces + done * 8 - 8))
    while done < n:
        block = min(n - done, BLOCK)
        for i in range(block):
            store64(ends + i * 8, load64(pieces + (done + i) * 8))
        written, whole = encode_block(state, text, at, block, out)
        out += written
        done += whole
        if done > 0:
            at = np.int64(load64(pieces + done * 8 - 8))
        if whole < block:
            break
    store64(state + DONE * 8, np.uint64(done))
    return out - first


@compiled
def encode_texts(state, texts, n, held, out):  # type: ignore[no-untyped-def]
    """The same for `n` texts, of which `texts` gives address, bytes and, when done, bytes of ids, 64 bits each.

    Each is copied to `held`, which has room for the longest and what may be read behind it. DONE counts texts.
    """
    first, done = out, _word(state, DONE)
    while done < n:
        entry = texts + done * 24
        source, length = np.int64(load64(entry)), np.int64(load64(entry + 8))
        at = 0
        while at + 8 <= length:
            store64(held + at, load64(source + at))
            at += 8
        while at < length:
            store8(held + at, load8(source + at))
            at += 1
        written = encode_text(state, held, 0, length, out)
        if _word(state, DONE) < length:
            break
        store64(entry + 16, np.uint64(written))
        out += written
        done += 1
    store64(state + DONE * 8, np.uint64(done))
    return out - first
