"""What a step works on, as a table of 64-bit words in memory: the names of its places.

Compiled functions are given the address of the table alone. A word is a number, the address of an array, or a float in
its lower half; `n_...` are counts, `s_...` the bytes from one row of an array to the next.
"""

from enum import IntEnum, auto

from tessera.generate.cpu.vectors import load_float, load_word
from tessera.native.jit import inner


class Word(IntEnum):
    """The words of the table, eight bytes each."""

    # Of the model.
    N_LAYERS = 0
    D_MODEL = auto()
    N_HEADS = auto()
    N_KV_HEADS = auto()
    D_HEAD = auto()
    N_PAIRS = auto()
    """How many pairs of each head are turned."""
    INTERLEAVED = auto()
    EPS = auto()
    QK_EPS = auto()
    SCALE = auto()
    EMBEDDING_SCALE = auto()
    COS = auto()
    SIN = auto()
    MATRICES = auto()
    NORMS = auto()
    # Of the cache.
    KEYS = auto()
    VALUES = auto()
    N_BLOCKS = auto()
    S_BLOCK = auto()
    S_HEAD = auto()
    NUMBER_BYTES = auto()
    """Of a number in the cache: 1, 2 or 4."""
    # Of a step.
    N_ROWS = auto()
    N_TILES = auto()
    N_LOOKS = auto()
    """The chunks that the longest of the sequences has so far, if threads take them apart; else 0."""
    N_WANTED = auto()
    ROWS = auto()
    TILES = auto()
    WANTED = auto()
    # Its arrays, and the bytes from one row to the next; of rows in 8 bits, from one group to the next.
    X = auto()
    S_X = auto()
    NORMED = auto()
    QKV = auto()
    S_QKV = auto()
    KEY_AT = auto()
    """Where the keys begin in a row of queries, keys and values, in bytes; and the values."""
    VALUE_AT = auto()
    MIXED = auto()
    S_MIXED = auto()
    ADDED = auto()
    GATE = auto()
    INPUT = auto()
    S_INNER = auto()
    ROUNDED = auto()
    S_ROUNDED = auto()
    INNER_ROUNDED = auto()
    S_INNER_ROUNDED = auto()
    FOUND = auto()
    """What the heads of a few rows find, chunk by chunk."""
    S_FOUND = auto()
    """What a head finds in a chunk, in bytes: a sum of values, and two vectors."""
    N_CHUNKS = auto()
    """Of the longest sequence."""
    LOGITS = auto()
    S_LOGITS = auto()
    SCRATCH = auto()
    S_SCRATCH = auto()
    """Of a thread."""
    # How the work is shared.
    N_THREADS = auto()
    CONTROL = auto()
    ACT = auto()
    """The machine code of a part of an action."""
    STREAM = auto()
    N_STREAM = auto()


class Row(IntEnum):
    """The words of a row of the step."""

    TOKEN = 0
    POSITION = auto()
    TABLE = auto()
    """Where the numbers of the blocks of its sequence are."""


class Tile(IntEnum):
    """The words of a tile: rows of one sequence, at positions one after the other, that attend together."""

    FIRST = 0
    COUNT = auto()


class Matrix(IntEnum):
    """The words of a packed matrix."""

    MULTIPLY = 0
    UNPACK = auto()
    WEIGHTS = auto()
    N_PANELS = auto()
    S_SCALES = auto()
    S_PANEL = auto()
    N_BLOCKS = auto()
    TAKES_BYTES = auto()
    BIAS = auto()


class Norm(IntEnum):
    """The words of the norms of a layer; those of queries and keys are 0 where there are none."""

    ATTENTION = 0
    FEED_FORWARD = auto()
    QUERY = auto()
    KEY = auto()


QUERY, KEY, VALUE, OUTPUT, GATE, INPUT, DOWN = range(7)
OF_A_LAYER = 7
"""The matrices of a layer; after those of all layers come the embedding and the head."""


@inner
def word(table, place):  # type: ignore[no-untyped-def]
    return load_word(table + 8 * place)


@inner
def number(table, place):  # type: ignore[no-untyped-def]
    return load_float(table + 8 * place)
