"""Weights in codes as blocks of GGUF files with the same codes, for kernels that know those blocks alone.

int8 with its scale in half precision is Q8_0, and int4 is Q4_1, where a group is made of whole blocks.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from tessera.generate.quantize.kinds import BLOCK, KINDS, Grid
from tessera.generate.quantize.stored import QuantizedWeight

SAME_CODES = {"q8_0": "q8_0", "q4_0": "q4_0", "q4_1": "q4_1", "int8": "q8_0", "int4": "q4_1"}
CLOSE = 2.0**-10
"""What a scale may lose in half precision, of itself: far less than half of the finest level, 1 / 254."""


def as_blocks(weight: QuantizedWeight) -> tuple[str, Callable[[], np.ndarray]] | None:
    """The kind of block, and what makes the rows as bytes; None where no block has these codes."""
    kind = SAME_CODES[weight.kind.name]
    if weight.kind.is_block:
        return kind, lambda: weight.parts["blocks"].numpy()
    scale_RG = weight.parts["scales"].float()
    times, rest = divmod(weight.shape[-1], scale_RG.shape[1] * BLOCK)
    if rest or not bool(((scale_RG.half().float() - scale_RG).abs() <= CLOSE * scale_RG.abs()).all()):
        return None

    def spread(found_RG: Tensor) -> Tensor:
        return torch.repeat_interleave(found_RG, times, dim=1)

    def make() -> np.ndarray:
        codes_RD, grid = weight.read()
        offset = None if grid.offset_RG is None else spread(grid.offset_RG)
        made: np.ndarray = KINDS[kind].pack(codes_RD, Grid(spread(grid.scale_RG), offset))["blocks"].numpy()
        return made

    return kind, make
