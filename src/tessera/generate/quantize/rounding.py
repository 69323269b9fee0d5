"""To the nearest level, and the search for a grid that makes the nearest level nearer.

A grid over the whole range of a group is stretched by its one or two largest numbers. Where a little of the range is
given up, these are cut off and all others get finer levels: for each group the share is taken at which the weighted
error is least,

    sum_b h_b (w_b - Q(w_b))^2,

h_b the mean square of what column b is multiplied by, so that what matters in use matters here (the search of clipping
thresholds in AWQ, section 3.2 and its code, with this diagonal of GPTQ's Hessian as the measure).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tessera.generate.quantize.kinds import Grid, Kind, levels

SHARES = tuple(1.0 - 0.03 * i for i in range(15))
"""Of the range of a group: 1 down to 0.58."""


def in_groups(x_RD: Tensor, group: int) -> Tensor:
    return x_RD.unflatten(1, (-1, group))


def lay_grid(
    kind: Kind, w_RD: Tensor, group: int, *, weight_D: Tensor | None = None, shares: Sequence[float] = SHARES
) -> Grid:
    """The grid over the whole range of each group; with `weight_D`, over the share of it with the least error."""
    w_RGB = in_groups(w_RD, group)
    best = kind.lay(w_RGB, 1.0)
    if weight_D is None:
        return best
    weight_GB = weight_D.unflatten(0, (-1, group))
    least = _error(kind, w_RGB, best, weight_GB)
    for share in shares[1:]:
        tried = kind.lay(w_RGB, share)
        error = _error(kind, w_RGB, tried, weight_GB)
        better = error < least
        least = torch.where(better, error, least)
        best = Grid(
            torch.where(better, tried.scale_RG, best.scale_RG),
            None
            if best.offset_RG is None or tried.offset_RG is None
            else torch.where(better, tried.offset_RG, best.offset_RG),
        )
    return best


def _error(kind: Kind, w_RGB: Tensor, grid: Grid, weight_GB: Tensor) -> Tensor:
    scale, offset = _spread(grid)
    off_RGB = levels(kind.round(w_RGB, scale, offset), scale, offset).sub_(w_RGB)
    return off_RGB.square_().mul_(weight_GB).sum(dim=2)


def _spread(grid: Grid) -> tuple[Tensor, Tensor | None]:
    return grid.scale_RG.unsqueeze(2), None if grid.offset_RG is None else grid.offset_RG.unsqueeze(2)


def to_nearest(kind: Kind, w_RD: Tensor, grid: Grid) -> Tensor:
    """The codes of the nearest levels, (R, D) int8."""
    w_RGB = in_groups(w_RD, w_RD.shape[1] // grid.scale_RG.shape[1])
    return kind.round(w_RGB, *_spread(grid)).flatten(1).to(torch.int8)


def nearest(kind: Kind, w_RD: Tensor, group: int, *, weight_D: Tensor | None = None) -> tuple[Tensor, Grid]:
    """(codes of the nearest levels, their grid, laid by `lay_grid`)."""
    grid = lay_grid(kind, w_RD, group, weight_D=weight_D)
    return to_nearest(kind, w_RD, grid), grid


def from_codes(codes_RD: Tensor, grid: Grid) -> Tensor:
    """What codes stand for, (R, D) float32."""
    codes_RGB = in_groups(codes_RD.float(), codes_RD.shape[1] // grid.scale_RG.shape[1])
    return levels(codes_RGB, *_spread(grid)).flatten(1)


def layer_error(off_RD: Tensor, hessian_DD: Tensor) -> float:
    """sum over the calibration text of |(W' - W) x|^2 = tr((W' - W) H (W' - W)^T), with H = sum x x^T."""
    return float(((off_RD @ hessian_DD) * off_RD).sum())
