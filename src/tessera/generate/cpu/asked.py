"""What is asked of a step, as one array of words, and how its rows are laid out for the kernels.

Between two steps the caches of the processor hold weights alone, and whatever Python does then is slow. So it only
writes down what is asked; the checks and all of the arrangement are compiled.
"""

from enum import IntEnum, auto

from tessera.generate.cpu.attend import CHUNK, MOST
from tessera.generate.cpu.kernels import GROUP
from tessera.generate.cpu.plan import Row, Tile, Word, word
from tessera.generate.cpu.pool import POSITIONS
from tessera.generate.cpu.step import step
from tessera.generate.cpu.vectors import load_word, store_word
from tessera.native.jit import compiled, inner

ROWS = 256
"""Rows that are computed at once; a step of more is several rounds."""


class Asked(IntEnum):
    """The words at the beginning. The ids, sequences and positions of all rows follow, the wanted rows, and of the
    blocks of all sequences the place where those of each begin, the end of the last, and their numbers."""

    N_ROWS = 0
    N_WANTED = auto()
    N_SEQUENCES = auto()
    N_TOKENS = auto()
    CONTEXT = auto()
    LOGITS = auto()


HEAD_BYTES, ROW_BYTES, TILE_BYTES = 8 * len(Asked), 8 * len(Row), 8 * len(Tile)


@inner
def at(table, place):  # type: ignore[no-untyped-def]
    return load_word(table + 8 * place)


@inner
def is_right(plan, asked):  # type: ignore[no-untyped-def]
    """Whether every number is in its range, and the wanted rows come in their order."""
    n, n_wanted, n_sequences = at(asked, Asked.N_ROWS), at(asked, Asked.N_WANTED), at(asked, Asked.N_SEQUENCES)
    ids = asked + HEAD_BYTES
    sequences, positions, wanted = ids + 8 * n, ids + 16 * n, ids + 24 * n
    starts = wanted + 8 * n_wanted
    blocks = starts + 8 * (n_sequences + 1)
    for i in range(n):
        sequence, position = at(sequences, i), at(positions, i)
        if not (0 <= at(ids, i) < at(asked, Asked.N_TOKENS) and 0 <= position < at(asked, Asked.CONTEXT)):
            return False
        if not 0 <= sequence < n_sequences:
            return False
        block = at(starts, sequence) + position // POSITIONS
        if block >= at(starts, sequence + 1):
            return False
    for i in range(at(starts, n_sequences)):
        if not 0 <= at(blocks, i) < word(plan, Word.N_BLOCKS):
            return False
    before = -1
    for i in range(n_wanted):
        if not before < at(wanted, i) < n:
            return False
        before = at(wanted, i)
    return True


@inner
def put_rows(plan, asked, begin, end):  # type: ignore[no-untyped-def]
    """The rows from `begin` to `end`, and the tiles that attend together."""
    n, n_wanted, n_sequences = at(asked, Asked.N_ROWS), at(asked, Asked.N_WANTED), at(asked, Asked.N_SEQUENCES)
    ids = asked + HEAD_BYTES
    sequences, positions = ids + 8 * n, ids + 16 * n
    starts = ids + 24 * n + 8 * n_wanted
    blocks = starts + 8 * (n_sequences + 1)
    rows, tiles, n_tiles, count, last = word(plan, Word.ROWS), word(plan, Word.TILES), 0, 0, 0
    for i in range(begin, end):
        row, sequence, position = rows + ROW_BYTES * (i - begin), at(sequences, i), at(positions, i)
        last = max(last, position)
        store_word(row + 8 * Row.TOKEN, at(ids, i))
        store_word(row + 8 * Row.POSITION, position)
        store_word(row + 8 * Row.TABLE, blocks + 8 * at(starts, sequence))
        goes_on = 0 < count < MOST and at(sequences, i - 1) == sequence and at(positions, i - 1) == position - 1
        if not goes_on:
            n_tiles, count = n_tiles + 1, 0
            store_word(tiles + TILE_BYTES * (n_tiles - 1) + 8 * Tile.FIRST, i - begin)
        count += 1
        store_word(tiles + TILE_BYTES * (n_tiles - 1) + 8 * Tile.COUNT, count)
    store_word(plan + 8 * Word.N_ROWS, end - begin)
    store_word(plan + 8 * Word.N_TILES, n_tiles)
    store_word(plan + 8 * Word.N_LOOKS, last // CHUNK + 1 if end - begin <= GROUP else 0)


@compiled
def answer(plan, asked):  # type: ignore[no-untyped-def]
    """The whole step; False, with nothing done, if what is asked is not right."""
    if not is_right(plan, asked):
        return False
    n, n_wanted, done = at(asked, Asked.N_ROWS), at(asked, Asked.N_WANTED), 0
    wanted = asked + HEAD_BYTES + 24 * n
    for begin in range(0, n, ROWS):
        end, first = min(begin + ROWS, n), done
        put_rows(plan, asked, begin, end)
        while done < n_wanted and at(wanted, done) < end:
            store_word(word(plan, Word.WANTED) + 8 * (done - first), at(wanted, done) - begin)
            done += 1
        store_word(plan + 8 * Word.N_WANTED, done - first)
        store_word(plan + 8 * Word.LOGITS, at(asked, Asked.LOGITS) + word(plan, Word.S_LOGITS) * first)
        step(plan)
    return True
