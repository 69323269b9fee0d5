"""Matrices kept in codes, and the layers that compute with them: each product is made tile by tile of rows, so that
never more than a tile is there as floats."""

from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Any, Self

import torch
from torch import Tensor, nn

from tessera.errors import InputError
from tessera.generate.quantize.kinds import KINDS, Grid, Parts, levels
from tessera.model.embedding import TableEmbedding
from tessera.model.flow import Flow

TILE = {"cpu": 2**18, "cuda": 2**24}
"""Numbers of a matrix that are floats at a time: on a CPU few enough to stay in its cache."""


class QuantizedWeight(nn.Module):
    """A matrix (or one for each expert, one below the other) in one of `KINDS`; any of its rows can be had as floats.

    What is kept are buffers: they move with the module, are never cast to another type, and nothing learns them.
    """

    def __init__(self, *, kind: str, shape: Sequence[int], parts: Parts) -> None:
        super().__init__()
        self.kind, self.shape = KINDS[kind], tuple(shape)
        for name in self.kind.parts:
            self.register_buffer(name, parts[name])

    @classmethod
    def of(cls, kind: str, shape: Sequence[int], codes_RD: Tensor, grid: Grid) -> Self:
        """The matrix of these codes."""
        return cls(kind=kind, shape=shape, parts=KINDS[kind].pack(codes_RD, grid))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """To another device as usual; not to another type, which would change the levels."""
        for name, buffer in self.parts.items():
            moved = fn(buffer)
            setattr(self, name, moved if moved.dtype == buffer.dtype else buffer.to(moved.device))
        return self

    @property
    def parts(self) -> Parts:
        return {name: self._buffers[name] for name in self.kind.parts}  # type: ignore[misc]

    @property
    def n_rows(self) -> int:
        return prod(self.shape[:-1])

    @property
    def n_bytes(self) -> int:
        return sum(part.numel() * part.itemsize for part in self.parts.values())

    @property
    def device(self) -> torch.device:
        return next(iter(self.parts.values())).device

    def read(self, rows: slice | Tensor = slice(None)) -> tuple[Tensor, Grid]:
        """The codes of some rows and their grid."""
        taken = {name: part[rows] for name, part in self.parts.items()}
        return self.kind.unpack(taken)

    def rows(self, rows: slice | Tensor = slice(None), dtype: torch.dtype = torch.float32) -> Tensor:
        """Some rows as floats, (R, D)."""
        codes_RD, grid = self.read(rows)
        codes_RGB = codes_RD.float().unflatten(1, (grid.scale_RG.shape[1], -1))
        offset = None if grid.offset_RG is None else grid.offset_RG.unsqueeze(2)
        return levels(codes_RGB, grid.scale_RG.unsqueeze(2), offset).flatten(1).to(dtype)

    def whole(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """All of it, in its shape."""
        return self.rows(slice(None), dtype).view(self.shape)

    def product(self, x_ND: Tensor, rows: range | None = None) -> Tensor:
        """x W^T for some rows of W, all of them unless said."""
        rows = range(self.n_rows) if rows is None else rows
        y_NR = x_ND.new_empty(len(x_ND), len(rows))
        for tile in self._tiles(rows):
            out = y_NR[:, tile.start - rows.start : tile.stop - rows.start]
            out.copy_(x_ND @ self.rows(tile, x_ND.dtype).T)
        return y_NR

    def _tiles(self, rows: range) -> Iterator[slice]:
        at_once = max(1, TILE.get(self.device.type, TILE["cuda"]) // self.shape[-1])
        for start in range(rows.start, rows.stop, at_once):
            yield slice(start, min(start + at_once, rows.stop))

    def extra_repr(self) -> str:
        return f"{self.kind.name}, shape={self.shape}"


class QuantizedLinear(nn.Module):
    """A `Linear` whose weight is in codes; a bias stays as it is. For use only: no gradient goes through it."""

    def __init__(self, *, stored: QuantizedWeight, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        self.stored, self.bias = stored, bias

    @property
    def weight(self) -> Tensor:
        """The weight that the codes stand for, made anew at each call."""
        return self.stored.whole()

    def forward(self, x: Tensor) -> Tensor:
        _check_use(x)
        y = self.stored.product(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias.to(y.dtype)


class QuantizedExpertLinear(nn.Module):
    """An `ExpertLinear` whose weights are in codes."""

    def __init__(self, *, stored: QuantizedWeight) -> None:
        super().__init__()
        self.stored = stored

    @property
    def weight(self) -> Tensor:
        return self.stored.whole()

    def forward(self, x_ND: Tensor, sizes: Sequence[int]) -> Tensor:
        _check_use(x_ND)
        n_experts, height, _ = self.stored.shape
        if len(sizes) != n_experts or sum(sizes) != len(x_ND):
            raise InputError(f"groups of {list(sizes)} rows for {len(x_ND)} rows and {n_experts} matrices")
        parts = [
            self.stored.product(x, range(expert * height, (expert + 1) * height))
            for expert, x in enumerate(x_ND.split(list(sizes)))
        ]
        return torch.cat(parts)


class QuantizedEmbedding(TableEmbedding):
    """A table of rows in codes; as the head of a model that has no other, its product is made tile by tile too."""

    def __init__(self, *, stored: QuantizedWeight, dtype: torch.dtype = torch.float32) -> None:
        nn.Module.__init__(self)
        self.stored, self.dtype = stored, dtype

    @property
    def weight(self) -> Any:  # type: ignore[override]
        return self.stored.whole(self.dtype)

    def forward(self, ids_BT: Tensor, flow: Flow | None = None, before_BN: Tensor | None = None) -> Tensor:
        return self.stored.rows(ids_BT.reshape(-1), self.dtype).view(*ids_BT.shape, -1)

    def scores(self, h: Tensor) -> Tensor:
        _check_use(h)
        return self.stored.product(h.reshape(-1, h.shape[-1])).view(*h.shape[:-1], -1)


Quantized = QuantizedLinear | QuantizedExpertLinear | QuantizedEmbedding


def _check_use(x: Tensor) -> None:
    if x.requires_grad and torch.is_grad_enabled():
        raise InputError("weights in codes learn nothing: train the model that the quantized one was made from")
