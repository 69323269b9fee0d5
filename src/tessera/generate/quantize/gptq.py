"""GPTQ: column by column to the nearest level, what each rounding breaks being mended by the columns to come.

The layer's error over the calibration text is tr((W' - W) H (W' - W)^T), H = X^T X. When column i has been rounded, the
change of the columns after it that makes up for it best is (Frantar et al. 2023, "GPTQ", eq. 2 and 3, algorithm 1)

    e = (w_i - Q(w_i)) / U_ii,      w_j -= e U_ij   for j > i,

U the upper Cholesky factor of (H + lambda I)^-1: its rows are what elimination of the columns before leaves of the
inverse. The changes of a panel of columns are gathered and applied to the rest by one product.

The levels of a group are laid when its first column comes up, over what the columns are by then. With `act_order` the
columns are taken in the order of their diagonal of H, the largest first, while they can still be mended; the groups are
of neighbours all the same, so their levels are laid before.
"""

import torch
from torch import Tensor

from tessera.errors import InputError
from tessera.generate.quantize.kinds import Grid, Kind, levels
from tessera.generate.quantize.rounding import lay_grid

PANEL = 128


def damped(hessian_DD: Tensor, damping: float) -> Tensor:
    """H + damping * mean(diag H) I. A column that was 0 on all of the text is tied to no other."""
    diagonal_D = hessian_DD.diagonal()
    mean = diagonal_D.mean().clamp(min=1e-20)
    return hessian_DD + torch.diag(torch.where(diagonal_D == 0, mean, 0.0) + damping * mean)


def factor(hessian_DD: Tensor, damping: float) -> Tensor:
    """U with U^T U = `damped`^-1, upper; more damping where that cannot be factored."""
    h_DD = hessian_DD.double()
    for more in (1, 10, 100) if bool(torch.isfinite(h_DD).all()) else ():
        lower, failed = torch.linalg.cholesky_ex(damped(h_DD, more * damping))
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed:
                return upper.float()
    raise InputError("the layer's inputs hold numbers that are NaN or infinite: GPTQ has no Hessian")


def gptq(
    kind: Kind,
    w_RD: Tensor,
    hessian_DD: Tensor,
    group: int,
    *,
    damping: float = 0.01,
    act_order: bool = False,
    search: bool = True,
) -> tuple[Tensor, Grid]:
    """(codes (R, D) int8, their grid). `search`: each grid over the best share of its range (`lay_grid`)."""
    D = w_RD.shape[1]
    weight_D = hessian_DD.diagonal() if search else None
    grid = lay_grid(kind, w_RD, group, weight_D=weight_D)
    # Levels laid on the way need the columns of a group together, whole in one panel.
    static = act_order or group > PANEL
    panel = PANEL if static else PANEL // group * group
    order_D = torch.arange(D, device=w_RD.device)
    if act_order:
        order_D = hessian_DD.diagonal().argsort(descending=True, stable=True)
    upper_DD = factor(hessian_DD[order_D][:, order_D], damping)
    w_DR = w_RD.T[order_D].contiguous()  # a column at a time: each one's numbers together
    codes_DR = torch.empty_like(w_DR)
    groups = (order_D // group).tolist()
    for start in range(0, D, panel):
        stop = min(start + panel, D)
        w_PR, errors_PR = w_DR[start:stop], torch.empty_like(w_DR[start:stop])
        for i in range(stop - start):
            at = start + i
            if not static and at % group == 0:
                own_D = None if weight_D is None else weight_D[at : at + group]
                _replace(grid, groups[at], lay_grid(kind, w_PR[i : i + group].T, group, weight_D=own_D))
            scale_R, offset_R = grid.column(groups[at])
            codes_DR[at] = kind.round(w_PR[i], scale_R, offset_R)
            errors_PR[i] = (w_PR[i] - levels(codes_DR[at], scale_R, offset_R)) / upper_DD[at, at]
            w_PR[i:].addr_(upper_DD[at, at:stop], errors_PR[i], alpha=-1)
        w_DR[stop:].addmm_(upper_DD[start:stop, stop:].T, errors_PR, alpha=-1)
    codes_RD = torch.empty_like(w_RD, dtype=torch.int8)
    codes_RD[:, order_D] = codes_DR.T.to(torch.int8)
    return codes_RD, grid


def _replace(grid: Grid, group: int, laid: Grid) -> None:
    grid.scale_RG[:, group] = laid.scale_RG[:, 0]
    if grid.offset_RG is not None and laid.offset_RG is not None:
        grid.offset_RG[:, group] = laid.offset_RG[:, 0]
