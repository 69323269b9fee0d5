"""Numbers in 8 bits: blocks of them, each divided by its largest, each number the nearest of 256 chosen values.

The values are dense where a mean's numbers are: seven decades from 1 down to 1e-6, and each decade has twice as many as
the one below, so that large numbers are exact to about 1 % and small ones are not lost (dynamic tree quantization). A
block apart keeps an outlier from taking the others' precision (block-wise quantization; both Dettmers et al. 2021,
"8-bit Optimizers via Block-wise Quantization", section 2).

The nearest value is looked up, not searched: a number between -1 and 1, rounded to fp16, is an index of 65,536 codes.
The rounding moves it by 0.00025 at most, where the values are 0.007 apart.
"""

from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

DECADES = 7


@cache
def dynamic_values(*, signed: bool) -> tuple[float, ...]:
    """The 256 values, rising: 0, 1, and in decade 10^(i - 6), i = 0 .. 6, the centres of 2^i equal parts of it, each
    with both signs; without a sign of 2^(i + 1) parts."""
    values = [0.0, 1.0]
    for i in range(DECADES):
        n_parts = 2 ** (i if signed else i + 1)
        width = 0.9 / n_parts
        centres = [10.0 ** (i + 1 - DECADES) * (0.1 + width * (part + 0.5)) for part in range(n_parts)]
        values += centres + [-centre for centre in centres if signed]
    return tuple(sorted(values))


class Code(NamedTuple):
    """`values` of each code, and the `codes` of all fp16 bit patterns."""

    values: Tensor
    codes: Tensor


@cache
def code(*, signed: bool, device: torch.device) -> Code:
    """The code of numbers with or without a sign.

    Without one nothing but an empty block is 0: what is kept so is a divisor, and a number that is small beside the
    others of its block must not become none.
    """
    values = torch.tensor(dynamic_values(signed=signed), dtype=torch.float64)
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16).double()
    codes = torch.bucketize(patterns.nan_to_num(0.0, 1.0, -1.0), (values[1:] + values[:-1]) / 2)
    codes = codes if signed else codes.clamp(min=1)
    return Code(values.float().to(device), codes.to(torch.uint8).to(device))


def n_blocks(n: int, block: int) -> int:
    """Blocks of `n` numbers; the last may be shorter."""
    return -(-n // block)


def quantize(x_N: Tensor, code: Code, *, block: int) -> tuple[Tensor, Tensor]:
    """(codes_N, the largest size in each block) of float32 numbers."""
    x_MB = F.pad(x_N, (0, -len(x_N) % block)).view(-1, block)
    scales_M = x_MB.abs().amax(dim=1)
    share_MB = x_MB / scales_M.clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(1)
    index_MB = share_MB.half().view(torch.int16).int().add_(2**15)
    codes_N = code.codes.index_select(0, index_MB.view(-1))[: len(x_N)]
    return codes_N, scales_M


def dequantize(codes_N: Tensor, scales_M: Tensor, code: Code, *, block: int) -> Tensor:
    """The float32 numbers that the codes and the blocks' sizes stand for."""
    n = len(codes_N)
    x_MB = F.pad(code.values.index_select(0, codes_N.int()), (0, -n % block)).view(-1, block)
    return (x_MB * scales_M.unsqueeze(1)).view(-1)[:n]
