"""Packed weights: how the numbers of a matrix lie for the kernels, and the way there and back.

16 rows of the matrix are a panel, so that a vector holds one column (or four) of 16 rows and no sum is ever across
lanes. Columns and rows are filled up with zeros to multiples of 32. A panel is

    scales   16 halves (and 16 offsets, for q4_1) for each block of 32 columns; filled up to 64 bytes; none for floats
    numbers  for each block:
        q8_0        8 vectors of 16 rows x 4 columns, q + 128 as unsigned bytes
        q4_0, q4_1  4 vectors of 16 rows x 4 bytes as they are in a GGUF file: vector v has columns 4v ... 4v + 3 in
                    the lower halves of its bytes and 4v + 16 ... 4v + 19 in the upper ones
        bf16        16 vectors of 16 rows x 2 columns
        fp32        32 vectors of 16 rows
"""

from dataclasses import dataclass

import numpy as np

from tessera.generate.cpu.products import load_half
from tessera.generate.cpu.vectors import load_float, store_float
from tessera.native.jit import compiled
from tessera.native.memory import load8, load16, load32, store16, store32
from tessera.ops.compiled.bits import number_of

ROWS, BLOCK = 16, 32


@dataclass(frozen=True)
class Storage:
    """How the numbers of a block of 16 x 32 lie: the bytes of scales and of numbers, and of a block in a GGUF file."""

    name: str
    scale_bytes: int
    number_bytes: int
    block_bytes: int
    """Of 32 numbers of one row, before they are packed."""

    @property
    def takes_bytes(self) -> bool:
        """Whether its products are of bytes: the activations are rounded to 8 bits for it."""
        return self.scale_bytes > 0

    def panel_bytes(self, n_blocks: int) -> int:
        return self.scales_bytes(n_blocks) + self.number_bytes * n_blocks

    def scales_bytes(self, n_blocks: int) -> int:
        return -(-self.scale_bytes * n_blocks // 64) * 64


STORAGES = {
    each.name: each
    for each in (
        Storage("q8_0", 32, 512, 34),
        Storage("q4_0", 32, 256, 18),
        Storage("q4_1", 64, 256, 20),
        Storage("bf16", 0, 1024, 64),
        Storage("fp32", 0, 2048, 128),
    )
}
BITS_128 = 0x80808080


def n_panels(n_rows: int) -> int:
    """Always even, as what two panels give is a block for the next matrix."""
    return -(-n_rows // BLOCK) * 2


def pack(storage: Storage, rows: np.ndarray) -> np.ndarray:
    """The panels (n, bytes) of a matrix whose rows are bytes: blocks as in a GGUF file, or the bits of floats."""
    made = np.zeros((n_panels(len(rows)), storage.panel_bytes(rows.shape[1] // storage.block_bytes)), np.uint8)
    pack_into(storage, rows, made)
    return made


def pack_into(storage: Storage, rows: np.ndarray, panels: np.ndarray) -> None:
    """`pack` into memory that is there, and all zeros."""
    rows = np.ascontiguousarray(rows)
    n_blocks = rows.shape[1] // storage.block_bytes
    arguments = rows.ctypes.data, len(rows), n_blocks, panels.ctypes.data, storage.scales_bytes(n_blocks)
    if storage.takes_bytes:
        PACK[storage.name](*arguments)
    else:
        pack_words(rows.ctypes.data, len(rows), rows.shape[1] // 4, panels.ctypes.data)


@compiled
def pack_q8_0(rows, n_rows, n_blocks, panels, n_scales):  # type: ignore[no-untyped-def]
    for row in range(n_rows):
        scales = panels + (row // ROWS) * (n_scales + 512 * n_blocks) + 2 * (row % ROWS)
        numbers = panels + (row // ROWS) * (n_scales + 512 * n_blocks) + n_scales + 4 * (row % ROWS)
        for block in range(n_blocks):
            source = rows + (row * n_blocks + block) * 34
            store16(scales + 32 * block, load16(source))
            for group in range(8):
                store32(numbers + 512 * block + 64 * group, load32(source + 2 + 4 * group) ^ BITS_128)


@compiled
def pack_q4_0(rows, n_rows, n_blocks, panels, n_scales):  # type: ignore[no-untyped-def]
    for row in range(n_rows):
        scales = panels + (row // ROWS) * (n_scales + 256 * n_blocks) + 2 * (row % ROWS)
        numbers = panels + (row // ROWS) * (n_scales + 256 * n_blocks) + n_scales + 4 * (row % ROWS)
        for block in range(n_blocks):
            source = rows + (row * n_blocks + block) * 18
            store16(scales + 32 * block, load16(source))
            for group in range(4):
                store32(numbers + 256 * block + 64 * group, load32(source + 2 + 4 * group))


@compiled
def pack_q4_1(rows, n_rows, n_blocks, panels, n_scales):  # type: ignore[no-untyped-def]
    for row in range(n_rows):
        scales = panels + (row // ROWS) * (n_scales + 256 * n_blocks) + 2 * (row % ROWS)
        numbers = panels + (row // ROWS) * (n_scales + 256 * n_blocks) + n_scales + 4 * (row % ROWS)
        for block in range(n_blocks):
            source = rows + (row * n_blocks + block) * 20
            store16(scales + 64 * block, load16(source))
            store16(scales + 64 * block + 32, load16(source + 2))
            for group in range(4):
                store32(numbers + 256 * block + 64 * group, load32(source + 4 + 4 * group))


@compiled
def pack_words(rows, n_rows, n_words, panels):  # type: ignore[no-untyped-def]
    for row in range(n_rows):
        to = panels + (row // ROWS) * 64 * n_words + 4 * (row % ROWS)
        for word in range(n_words):
            store32(to + 64 * word, load32(rows + (row * n_words + word) * 4))


PACK = {"q8_0": pack_q8_0, "q4_0": pack_q4_0, "q4_1": pack_q4_1}


# One row of packed weights as floats at `out`: what an embedding is read by.


@compiled
def unpack_q8_0(panel, lane, n_blocks, n_scales, out):  # type: ignore[no-untyped-def]
    for block in range(n_blocks):
        scale = load_half(panel + 32 * block + 2 * lane)
        for column in range(BLOCK):
            byte = load8(panel + n_scales + 512 * block + 64 * (column // 4) + 4 * lane + column % 4)
            store_float(out + 4 * (BLOCK * block + column), np.float32(byte - 128) * scale)
    return 0


@compiled
def unpack_q4_0(panel, lane, n_blocks, n_scales, out):  # type: ignore[no-untyped-def]
    for block in range(n_blocks):
        scale = load_half(panel + 32 * block + 2 * lane)
        for column in range(BLOCK // 2):
            byte = load8(panel + n_scales + 256 * block + 64 * (column // 4) + 4 * lane + column % 4)
            to = out + 4 * (BLOCK * block + column)
            store_float(to, np.float32((byte & 15) - 8) * scale)
            store_float(to + 64, np.float32((byte >> 4) - 8) * scale)
    return 0


@compiled
def unpack_q4_1(panel, lane, n_blocks, n_scales, out):  # type: ignore[no-untyped-def]
    for block in range(n_blocks):
        scale = load_half(panel + 64 * block + 2 * lane)
        offset = load_half(panel + 64 * block + 32 + 2 * lane)
        for column in range(BLOCK // 2):
            byte = load8(panel + n_scales + 256 * block + 64 * (column // 4) + 4 * lane + column % 4)
            to = out + 4 * (BLOCK * block + column)
            store_float(to, np.float32(byte & 15) * scale + offset)
            store_float(to + 64, np.float32(byte >> 4) * scale + offset)
    return 0


@compiled
def unpack_bf16(panel, lane, n_blocks, n_scales, out):  # type: ignore[no-untyped-def]
    for column in range(BLOCK * n_blocks):
        bits = load16(panel + 64 * (column // 2) + 4 * lane + 2 * (column % 2))
        store_float(out + 4 * column, number_of(np.int32(bits << 16)))
    return 0


@compiled
def unpack_fp32(panel, lane, n_blocks, n_scales, out):  # type: ignore[no-untyped-def]
    for column in range(BLOCK * n_blocks):
        store_float(out + 4 * column, load_float(panel + 64 * column + 4 * lane))
    return 0


UNPACK = {
    "q8_0": unpack_q8_0,
    "q4_0": unpack_q4_0,
    "q4_1": unpack_q4_1,
    "bf16": unpack_bf16,
    "fp32": unpack_fp32,
}
