"""How a weight is stored in few bits: whole numbers on a grid that a group of neighbours in a row shares.

    x = scale * q               (int8, q8_0, q4_0: -127 <= q <= 127, or -8 <= q <= 7)
    x = scale * q + offset      (int4, q4_1: 0 <= q <= 15)

A kind says three things: how the grid is laid over the numbers of a group, how the numbers are packed into tensors, and
how they are had back. What number is rounded to what (the nearest, or as GPTQ says) is not its business.

q8_0, q4_0 and q4_1 are the blocks of GGUF files, byte for byte: groups of 32 with their scale in half precision in
front, and of four-bit numbers number j in the lower half of byte j and number j + 16 in its upper half.

R rows, D columns, G groups of a row, B columns of a group.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tessera.errors import InputError

BLOCK = 32
"""Numbers in a block of GGUF files."""
Parts = dict[str, Tensor]
"""What is kept of a matrix, by name; the first dimension of each is the rows."""


@dataclass(frozen=True)
class Grid:
    """The levels of each group, float32 numbers that the storage can hold exactly."""

    scale_RG: Tensor
    offset_RG: Tensor | None = None

    def column(self, group: int) -> tuple[Tensor, Tensor | None]:
        """(scale, offset) of a group in all rows."""
        return self.scale_RG[:, group], None if self.offset_RG is None else self.offset_RG[:, group]


@dataclass(frozen=True)
class Kind:
    """One way to store a matrix."""

    name: str
    bits: int
    low: int
    high: int
    lay: Callable[[Tensor, float], Grid]
    """Numbers (R, G, B), and the share of their range that the grid shall span -> the grid."""
    pack: Callable[[Tensor, Grid], Parts]
    """Codes (R, D), int8, and the grid -> what is kept."""
    unpack: Callable[[Parts], tuple[Tensor, Grid]]
    """What is kept of some rows -> the codes and the grid."""
    usual_group: int | None
    """Columns that share a level; None: the whole row."""
    parts: tuple[str, ...]
    fine: str
    """The kind, beside it, of what few bits hurt most: the embedding, the head, and what the heads of a layer share."""
    is_block: bool = False
    """Whether it is a block of GGUF files, whose group is fixed and which are kept as these bytes."""

    @property
    def block_bytes(self) -> int:
        """Of a block: its codes, its scale, and its offset where it has one."""
        return BLOCK * self.bits // 8 + (4 if self.name == "q4_1" else 2)

    @property
    def grid_dtype(self) -> torch.dtype:
        """What holds scales and offsets."""
        return torch.float32 if self.name == "int8" else torch.float16

    def round(self, x: Tensor, scale: Tensor, offset: Tensor | None) -> Tensor:
        """The numbers of the nearest levels, as floats; `scale` and `offset` spread over `x`."""
        shifted = x if offset is None else x - offset
        inverse = torch.where(scale == 0, 0.0, 1.0 / scale)
        return (shifted * inverse).round_().clamp_(self.low, self.high)


def levels(codes: Tensor, scale: Tensor, offset: Tensor | None) -> Tensor:
    """What codes stand for, float32."""
    x = codes * scale
    return x if offset is None else x + offset


def group_for(kind: Kind, width: int, wanted: int | None) -> int:
    """The size of the groups of a row: as wanted, or the largest size below that the row is a multiple of; the whole
    row where that would be less than half of what is wanted."""
    if wanted is None or wanted >= width:
        return width
    size = next(size for size in range(wanted, 0, -1) if width % size == 0)
    return size if 2 * size >= wanted else width


def fits(kind: Kind, width: int) -> bool:
    """Whether rows of this width can be stored: blocks are whole, and so are bytes."""
    return width % (BLOCK if kind.is_block else 8 // kind.bits) == 0


def _half(x: Tensor) -> Tensor:
    """As half precision holds it, float32."""
    return x.half().float()


def _absmax(x_RGB: Tensor, share: float) -> Grid:
    return Grid(x_RGB.abs().amax(dim=2) * (share / 127))


def _absmax_half(x_RGB: Tensor, share: float) -> Grid:
    return Grid(_half(x_RGB.abs().amax(dim=2) * (share / 127)))


def _range(x_RGB: Tensor, share: float) -> Grid:
    """From the least to the greatest; a smaller share of it about its middle."""
    least, most = x_RGB.amin(dim=2), x_RGB.amax(dim=2)
    half = (most - least) * (share / 2)
    middle = (most + least) / 2
    offset = least if share == 1.0 else middle - half
    return Grid(_half(2 * half / 15), _half(offset))


def _largest(x_RGB: Tensor, share: float) -> Grid:
    """The number of the greatest size, with its sign, is at -8: there is one more level on that side."""
    at = x_RGB.abs().argmax(dim=2, keepdim=True)
    return Grid(_half(x_RGB.gather(2, at).squeeze(2) * (share / -8)))


def pack_pairs(codes_RD: Tensor) -> Tensor:
    """Numbers from 0 to 15, two in a byte, the first in its lower half."""
    codes_RD = codes_RD.to(torch.uint8)
    return codes_RD[:, ::2] | (codes_RD[:, 1::2] << 4)


def unpack_pairs(bytes_RC: Tensor) -> Tensor:
    return torch.stack((bytes_RC & 15, bytes_RC >> 4), dim=2).flatten(1)


def _pack_int8(codes_RD: Tensor, grid: Grid) -> Parts:
    return {"codes": codes_RD.to(torch.int8), "scales": grid.scale_RG}


def _unpack_int8(parts: Parts) -> tuple[Tensor, Grid]:
    return parts["codes"], Grid(parts["scales"])


def _pack_int4(codes_RD: Tensor, grid: Grid) -> Parts:
    assert grid.offset_RG is not None
    return {"codes": pack_pairs(codes_RD), "scales": grid.scale_RG.half(), "offsets": grid.offset_RG.half()}


def _unpack_int4(parts: Parts) -> tuple[Tensor, Grid]:
    return unpack_pairs(parts["codes"]), Grid(parts["scales"].float(), parts["offsets"].float())


def _bytes(halves_RG: Tensor) -> Tensor:
    """(R, G) numbers as half precision: (R, G, 2) bytes."""
    return halves_RG.half().contiguous().view(torch.uint8).unflatten(1, (-1, 2))


def _halves(bytes_RG2: Tensor) -> Tensor:
    return bytes_RG2.contiguous().view(torch.float16).squeeze(2).float()


def _block_nibbles(codes_RD: Tensor) -> Tensor:
    codes_RGB = codes_RD.to(torch.uint8).unflatten(1, (-1, BLOCK))
    return codes_RGB[..., :16] | (codes_RGB[..., 16:] << 4)


def _from_block_nibbles(bytes_RGH: Tensor) -> Tensor:
    return torch.cat((bytes_RGH & 15, bytes_RGH >> 4), dim=2).flatten(1)


def _pack_q8_0(codes_RD: Tensor, grid: Grid) -> Parts:
    codes_RGB = codes_RD.to(torch.int8).contiguous().view(torch.uint8).unflatten(1, (-1, BLOCK))
    return {"blocks": torch.cat((_bytes(grid.scale_RG), codes_RGB), dim=2).flatten(1)}


def _unpack_q8_0(parts: Parts) -> tuple[Tensor, Grid]:
    blocks = parts["blocks"].unflatten(1, (-1, 2 + BLOCK))
    return blocks[..., 2:].contiguous().view(torch.int8).flatten(1), Grid(_halves(blocks[..., :2]))


def _pack_q4_0(codes_RD: Tensor, grid: Grid) -> Parts:
    return {"blocks": torch.cat((_bytes(grid.scale_RG), _block_nibbles(codes_RD + 8)), dim=2).flatten(1)}


def _unpack_q4_0(parts: Parts) -> tuple[Tensor, Grid]:
    blocks = parts["blocks"].unflatten(1, (-1, 2 + BLOCK // 2))
    codes = _from_block_nibbles(blocks[..., 2:]).to(torch.int8) - 8
    return codes, Grid(_halves(blocks[..., :2]))


def _pack_q4_1(codes_RD: Tensor, grid: Grid) -> Parts:
    assert grid.offset_RG is not None
    head = (_bytes(grid.scale_RG), _bytes(grid.offset_RG))
    return {"blocks": torch.cat((*head, _block_nibbles(codes_RD)), dim=2).flatten(1)}


def _unpack_q4_1(parts: Parts) -> tuple[Tensor, Grid]:
    blocks = parts["blocks"].unflatten(1, (-1, 4 + BLOCK // 2))
    return _from_block_nibbles(blocks[..., 4:]), Grid(_halves(blocks[..., :2]), _halves(blocks[..., 2:4]))


_CODES, _BLOCKS = ("codes", "scales"), ("blocks",)
KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("int8", 8, -127, 127, _absmax, _pack_int8, _unpack_int8, None, _CODES, "int8"),
        Kind("int4", 4, 0, 15, _range, _pack_int4, _unpack_int4, 32, (*_CODES, "offsets"), "int8"),
        Kind("q8_0", 8, -127, 127, _absmax_half, _pack_q8_0, _unpack_q8_0, BLOCK, _BLOCKS, "q8_0", True),
        Kind("q4_0", 4, -8, 7, _largest, _pack_q4_0, _unpack_q4_0, BLOCK, _BLOCKS, "q8_0", True),
        Kind("q4_1", 4, 0, 15, _range, _pack_q4_1, _unpack_q4_1, BLOCK, _BLOCKS, "q8_0", True),
    )
}


def check_finite(name: str, weight: Tensor, grid: Grid) -> None:
    """Raise `InputError` for numbers that no grid holds."""
    if not bool(torch.isfinite(weight).all()):
        raise InputError(f"the tensor {name!r} holds numbers that are NaN or infinite: it cannot be quantized")
    if not bool(torch.isfinite(grid.scale_RG).all()) or (
        grid.offset_RG is not None and not bool(torch.isfinite(grid.offset_RG).all())
    ):
        raise InputError(f"the tensor {name!r} holds numbers too large for scales in half precision")
