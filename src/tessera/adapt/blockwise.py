"""Weights in 4 or 8 bits: blocks of 64 numbers, each divided by its largest, each number the nearest of a few levels.

NF4 has 16 levels, chosen so that each is taken by as many numbers of a normal distribution; weights of trained models
are close to one (Dettmers et al. 2023, "QLoRA", section 3 and appendix E). int8 has 255 levels at equal distances. The
blocks' largest sizes (absmax) are kept in 8 bits themselves where `double` is on: their mean apart, the rest in blocks
of 256 (section 3, "Double Quantization"). NF4 then takes 4 + 8/64 + 32/(64 * 256) = 4.127 bits a weight, int8 8.5 (its
levels are finer than what the second rounding would leave of them, so it goes without).

Two codes of NF4 share a byte, the first in its upper half, as in bitsandbytes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tessera.errors import InputError, SettingError
from tessera.optim.quantize import dynamic_values

BLOCK, SCALE_BLOCK = 64, 256
PIECE = 2**20
"""Numbers that are put into codes at a time, so that what is between takes little memory; a multiple of `BLOCK`."""
NF4_LEVELS = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


def nearest(share_N: Tensor, levels_V: Tensor) -> Tensor:
    """The number of the nearest of the rising `levels_V`, int32."""
    return torch.bucketize(share_N, (levels_V[1:] + levels_V[:-1]) / 2, out_int32=True)


def encode_nf4(share_N: Tensor) -> Tensor:
    """Shares of the absmax as codes, two in a byte; the last of an odd number has a 0 beside it."""
    share_N = F.pad(share_N, (0, len(share_N) % 2))
    codes_N = nearest(share_N, _levels(share_N.device)).to(torch.uint8)
    return (codes_N[::2] << 4) | codes_N[1::2]


def decode_nf4(codes: Tensor, dtype: torch.dtype) -> Tensor:
    """The shares that the bytes stand for, two for each."""
    return _pairs(codes.device, dtype).index_select(0, codes.int()).view(-1)


def encode_int8(share_N: Tensor) -> Tensor:
    return (share_N * 127).round_().to(torch.int8)


def decode_int8(codes: Tensor, dtype: torch.dtype) -> Tensor:
    return codes.to(dtype).div_(127)


@cache
def _levels(device: torch.device) -> Tensor:
    return torch.tensor(NF4_LEVELS, device=device)


@cache
def _pairs(device: torch.device, dtype: torch.dtype) -> Tensor:
    """The two shares of each byte, (256, 2)."""
    levels = _levels(device).to(dtype)
    return torch.stack((levels.repeat_interleave(16), levels.repeat(16)), dim=1)


@cache
def _scale_levels(device: torch.device) -> Tensor:
    return torch.tensor(dynamic_values(signed=True), device=device)


@dataclass(frozen=True)
class Kind:
    """One way to store shares of the absmax."""

    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor, torch.dtype], Tensor]
    codes_a_byte: int
    dtype: torch.dtype
    double: bool
    """Whether the absmax are in 8 bits too, unless said."""


KINDS = {
    "nf4": Kind(encode_nf4, decode_nf4, 2, torch.uint8, double=True),
    "int8": Kind(encode_int8, decode_int8, 1, torch.int8, double=False),
}


def shares(x_N: Tensor) -> tuple[Tensor, Tensor]:
    """(each number over the absmax of its block, the absmax of each block); the last block may be shorter."""
    x_MB = F.pad(x_N, (0, -len(x_N) % BLOCK)).view(-1, BLOCK)
    absmax_M = x_MB.abs().amax(dim=1)
    share_MB = (x_MB * (1.0 / absmax_M.clamp(min=1e-38)).unsqueeze(1)).clamp_(-1, 1)
    return share_MB.view(-1)[: len(x_N)], absmax_M


def encode_scales(absmax_M: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(codes, the largest in each block of 256, the mean): absmax = mean + level[code] * largest."""
    mean = absmax_M.mean()
    rest_KS = F.pad(absmax_M - mean, (0, -len(absmax_M) % SCALE_BLOCK)).view(-1, SCALE_BLOCK)
    sizes_K = rest_KS.abs().amax(dim=1)
    share_KS = rest_KS / sizes_K.clamp(min=1e-38).unsqueeze(1)
    codes_M = nearest(share_KS.view(-1), _scale_levels(absmax_M.device))[: len(absmax_M)]
    return codes_M.to(torch.uint8), sizes_K, mean


class QuantizedWeight(nn.Module):
    """A tensor in one of `KINDS`, flat and in blocks; any part of it can be had back as floats.

    Made of float32 numbers by `of`. What is kept are buffers: they move with the module, and nothing learns them.
    """

    codes: Tensor
    absmax: Tensor | None
    absmax_codes: Tensor | None
    absmax_sizes: Tensor | None
    absmax_mean: Tensor | None

    def __init__(self, *, kind: str, shape: tuple[int, ...]) -> None:
        super().__init__()
        if kind not in KINDS:
            raise SettingError.unknown("the storage of weights", kind, KINDS)
        self.kind, self.shape = kind, shape
        for name in ("codes", "absmax", "absmax_codes", "absmax_sizes", "absmax_mean"):
            self.register_buffer(name, None)

    @classmethod
    @torch.no_grad()
    def of(cls, weight: Tensor, kind: str, *, double: bool | None = None, name: str = "weight") -> "QuantizedWeight":
        """`weight` in codes; `name` says in errors what it is."""
        made = cls(kind=kind, shape=tuple(weight.shape))
        if not bool(torch.isfinite(weight.detach()).all()):
            raise InputError(f"the tensor {name!r} holds numbers that are NaN or infinite: it has no absmax")
        way, flat = KINDS[kind], weight.detach().reshape(-1)
        parts = [shares(flat[start : start + PIECE].float()) for start in range(0, len(flat), PIECE)]
        made.codes = torch.cat([way.encode(share) for share, _ in parts])
        absmax_M = torch.cat([absmax for _, absmax in parts])
        if way.double if double is None else double:
            made.absmax_codes, made.absmax_sizes, made.absmax_mean = encode_scales(absmax_M)
        else:
            made.absmax = absmax_M
        return made

    @property
    def n_bytes(self) -> int:
        """What it takes."""
        return sum(buffer.numel() * buffer.itemsize for buffer in self.buffers())

    def scales(self, start: int = 0, stop: int | None = None) -> Tensor:
        """The absmax of the blocks from `start` to `stop`, float32."""
        if self.absmax is not None:
            return self.absmax[start:stop]
        assert self.absmax_codes is not None and self.absmax_sizes is not None and self.absmax_mean is not None
        codes_M = self.absmax_codes[start:stop]
        blocks_M = torch.arange(start, start + len(codes_M), device=codes_M.device) // SCALE_BLOCK
        levels_M = _scale_levels(codes_M.device).index_select(0, codes_M.int())
        # A block that is small beside the others must not come out below 0: all of its signs would turn.
        return (levels_M * self.absmax_sizes.index_select(0, blocks_M) + self.absmax_mean).clamp_(min=0.0)

    def numbers(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """The numbers from `start` to `stop` of the flat tensor."""
        first, last = start // BLOCK, -(-stop // BLOCK)
        way = KINDS[self.kind]
        n = way.codes_a_byte
        x_N = way.decode(self.codes[first * BLOCK // n : -(-stop // n)], dtype)
        scales_M = self.scales(first, last).to(dtype)
        x_MB = F.pad(x_N, (0, (last - first) * BLOCK - len(x_N))).view(-1, BLOCK) if len(x_N) % BLOCK else x_N
        x_MB = x_MB.view(-1, BLOCK).mul_(scales_M.unsqueeze(1))
        return x_MB.view(-1)[start - first * BLOCK : stop - first * BLOCK]

    def rows(self, start: int, stop: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Rows of the matrix that the tensor is, its last dimension the columns."""
        width = self.shape[-1]
        return self.numbers(start * width, stop * width, dtype).view(-1, width)

    def whole(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """All of it."""
        n = 1
        for size in self.shape:
            n *= size
        return self.numbers(0, n, dtype).view(self.shape)

    def extra_repr(self) -> str:
        return f"{self.kind}, shape={tuple(self.shape)}"
