"""LoRA and DoRA: what is learned beside a linear map that stays as it is.

LoRA adds a product of two thin matrices (Hu et al. 2021, "LoRA", section 4.1),

    y = W x + s B A x        A (R, D) starts random, B (F, R) at 0, so that training starts from the model as it is

with s = alpha / R, or alpha / sqrt(R) (rsLoRA: Kalajdzievski 2023, "A Rank Stabilization Scaling Factor for Fine-Tuning
with LoRA"). DoRA learns the length of each row beside its direction (Liu et al. 2024, "DoRA", eq. 5),

    y = m (W + s B A) x / |W + s B A|          m starts as |W|, lengths are those of rows

and no gradient goes through the length below (section 4.3). D is the width of what comes in, F of what goes out, R the
rank.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from tessera.adapt.quantized import QuantizedLinear
from tessera.errors import SettingError
from tessera.model.linear import Linear
from tessera.ops.autocast import autocasts
from tessera.ops.dropout import dropout

Frozen = Linear | QuantizedLinear


def lora(y_NF: Tensor, x_ND: Tensor, down_RD: Tensor, up_FR: Tensor, scale: float) -> Tensor:
    """y + s B A x."""
    return torch.addmm(y_NF, (x_ND @ down_RD.T) * scale, up_FR.T)


def changed_lengths(lengths_F: Tensor, cross_FR: Tensor, down_RD: Tensor, up_FR: Tensor, scale: float) -> Tensor:
    """|W + s B A| of each row, from |W| and W A^T: the sum itself, as large as W, need not be there.

    |w + s b A|^2 = |w|^2 + 2 s b . (A w) + s^2 b A A^T b^T
    """
    mixed_F = (cross_FR * up_FR).sum(dim=1)
    own_F = ((up_FR @ (down_RD @ down_RD.T)) * up_FR).sum(dim=1)
    return (lengths_F.square() + 2 * scale * mixed_F + scale**2 * own_F).clamp_min(1e-30).sqrt()


def shape_of(base: Frozen) -> tuple[int, int]:
    """(F, D)."""
    d_out, d_in = base.stored.shape if isinstance(base, QuantizedLinear) else base.weight.shape
    return d_out, d_in


def product(base: Frozen, x: Tensor) -> Tensor:
    """x W^T, without the bias."""
    return base.product(x) if isinstance(base, QuantizedLinear) else x @ base.weight.T


class LowRank(nn.Module):
    """What LoRA learns for one map; the pure functions above with their parameters, which are float32 at least."""

    def __init__(
        self, *, base: Frozen, rank: int = 8, alpha: float = 16.0, dropout: float = 0.0, rslora: bool = False
    ) -> None:
        super().__init__()
        check_sizes(rank=rank, alpha=alpha, dropout=dropout)
        self.rank, self.alpha, self.rslora, self.dropout = rank, float(alpha), rslora, dropout
        self.scale = alpha / math.sqrt(rank) if rslora else alpha / rank
        d_out, d_in = shape_of(base)
        made: dict[str, Any] = {"dtype": torch.promote_types(_dtype(base), torch.float32), "device": _device(base)}
        self.down = nn.Parameter(torch.empty(rank, d_in, **made))
        self.up = nn.Parameter(torch.zeros(d_out, rank, **made))
        bound = 1 / math.sqrt(d_in)  # as in the authors' code: He et al. 2015, with a = sqrt 5
        nn.init.uniform_(self.down, -bound, bound)

    def forward(self, x: Tensor, base: Frozen) -> Tensor:
        """What the map says with the adapter, its bias apart."""
        y = product(base, x)
        # Products are made in float32 where the adapter is and the map is not; autocast decides by itself.
        wide = y.dtype if autocasts(x) else self.down.dtype
        x = dropout(x, self.dropout if self.training else 0.0).to(wide)
        flat = y.to(wide).reshape(-1, y.shape[-1])
        flat = lora(flat, x.reshape(-1, x.shape[-1]), self.down, self.up, self.scale)
        return self.lengthened(flat, base).to(y.dtype).view_as(y)

    def lengthened(self, y_NF: Tensor, base: Frozen) -> Tensor:
        """The hook of DoRA."""
        return y_NF

    def weight(self, base: Frozen) -> Tensor:
        """The one matrix that does the same (F, D)."""
        weight = base.weight
        return torch.addmm(weight.to(self.up.dtype), self.up, self.down, alpha=self.scale)

    def extra_repr(self) -> str:
        return f"rank={self.rank}, alpha={self.alpha:g}, rslora={self.rslora}, dropout={self.dropout:g}"


class Decomposed(LowRank):
    """The same with DoRA's lengths."""

    lengths: Tensor

    def __init__(self, *, base: Frozen, **settings: float) -> None:
        super().__init__(base=base, **settings)  # type: ignore[arg-type]
        with torch.no_grad():
            lengths_F = base.weight.to(self.up.dtype).norm(dim=1)
        self.register_buffer("lengths", lengths_F, persistent=False)
        self.magnitude = nn.Parameter(lengths_F.clone())

    def _stretch(self, base: Frozen) -> Tensor:
        """m / |W + s B A|."""
        with torch.no_grad(), torch.autocast(self.down.device.type, enabled=False):
            cross_FR = product(base, self.down.to(_dtype(base))).T.to(self.up.dtype)
            lengths_F = changed_lengths(self.lengths, cross_FR, self.down, self.up, self.scale)
        return self.magnitude / lengths_F

    def lengthened(self, y_NF: Tensor, base: Frozen) -> Tensor:
        return y_NF * self._stretch(base)

    def weight(self, base: Frozen) -> Tensor:
        return super().weight(base) * self._stretch(base).unsqueeze(1)


def _dtype(base: Frozen) -> torch.dtype:
    return torch.float32 if isinstance(base, QuantizedLinear) else base.weight.dtype


def _device(base: Frozen) -> torch.device:
    return base.stored.codes.device if isinstance(base, QuantizedLinear) else base.weight.device


def check_sizes(*, rank: int, alpha: float, dropout: float) -> None:
    if rank < 1:
        raise SettingError("rank", rank, "at least 1")
    if not 0 < alpha < math.inf:
        raise SettingError("alpha", alpha, "a number above 0")
    if not 0 <= dropout < 1:
        raise SettingError("dropout", dropout, "a share from 0 to less than 1")
