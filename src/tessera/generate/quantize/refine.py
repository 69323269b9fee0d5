"""Codes and levels in turns, each the best for the other: what GPTQ settled column by column is gone over as a whole.

GPTQ lays the levels of a group before it knows the codes, and never comes back to a column. The error that it lessens,
E = tr((W' - W) H (W' - W)^T), is quadratic, so that both can be had exactly while the other stands:

    levels      W' is linear in the scales and offsets of a row, b: W' = C b with C made of the codes, and
                b = (C^T H C)^-1 C^T H w is the least squares;
    codes       column j alone is best at  w'_j + ((W - W') H)_j / H_jj,  to the nearest level; then the next
                (coordinate descent, as Behdin et al. 2023, "QuantEase", algorithm 1).

Neither makes E larger, nor does a row take levels that do.
"""

import torch
from torch import Tensor

from tessera.generate.quantize.gptq import PANEL, damped
from tessera.generate.quantize.kinds import Grid, Kind, levels
from tessera.generate.quantize.rounding import from_codes, in_groups

ROUNDS = 2
PULL = 1e-3
"""How much least squares hold on to the levels that were there, of the diagonal: a group of equal codes says nothing of
its scale."""
AT_ONCE = 2**24
"""Numbers that the least squares of some rows may take at a time."""


def refine(
    kind: Kind,
    w_RD: Tensor,
    codes_RD: Tensor,
    grid: Grid,
    hessian_DD: Tensor,
    *,
    damping: float = 0.01,
    rounds: int = ROUNDS,
) -> tuple[Tensor, Grid]:
    """Better codes (R, D) int8 and a better grid for the weights, by the Hessian as GPTQ has it."""
    h_DD = damped(hessian_DD, damping)
    for _ in range(rounds):
        grid = best_levels(kind, w_RD, codes_RD, grid, h_DD)
        codes_RD = best_codes(kind, w_RD, codes_RD, grid, h_DD)
    return codes_RD, best_levels(kind, w_RD, codes_RD, grid, h_DD)


def row_errors(made_RD: Tensor, w_RD: Tensor, h_DD: Tensor) -> Tensor:
    off_RD = made_RD - w_RD
    return ((off_RD @ h_DD) * off_RD).sum(dim=1)


def best_levels(kind: Kind, w_RD: Tensor, codes_RD: Tensor, grid: Grid, h_DD: Tensor) -> Grid:
    """The grid by least squares, as it can be stored; rows that it would not help keep theirs."""
    D, G = w_RD.shape[1], grid.scale_RG.shape[1]
    parts = []
    for rows in torch.arange(len(w_RD), device=w_RD.device).split(max(1, AT_ONCE // (D * G))):
        offset = None if grid.offset_RG is None else grid.offset_RG[rows]
        parts.append(_solved(w_RD[rows], codes_RD[rows], Grid(grid.scale_RG[rows], offset), h_DD))
    found_RB = torch.cat(parts).to(kind.grid_dtype).float()
    found = Grid(found_RB[:, :G], None if grid.offset_RG is None else found_RB[:, G:])
    better_R = row_errors(from_codes(codes_RD, found), w_RD, h_DD) < row_errors(from_codes(codes_RD, grid), w_RD, h_DD)
    better_R1 = better_R.unsqueeze(1)
    scale_RG = torch.where(better_R1, found.scale_RG, grid.scale_RG)
    if grid.offset_RG is None or found.offset_RG is None:
        return Grid(scale_RG)
    return Grid(scale_RG, torch.where(better_R1, found.offset_RG, grid.offset_RG))


def _solved(w_RD: Tensor, codes_RD: Tensor, grid: Grid, h_DD: Tensor) -> Tensor:
    """The scales of some rows and, behind them, their offsets where they have them."""
    G = grid.scale_RG.shape[1]
    codes_RGB = in_groups(codes_RD.float(), codes_RD.shape[1] // G)
    h_GBD = h_DD.view(G, -1, h_DD.shape[1])
    seen_RGHB = torch.einsum("rgb,gbd->rgd", codes_RGB, h_GBD).unflatten(2, (G, -1))
    wanted_RGB = in_groups(w_RD @ h_DD, codes_RGB.shape[2])
    a_RBB = torch.einsum("rghb,rhb->rgh", seen_RGHB, codes_RGB)
    b_RB, before_RB = (wanted_RGB * codes_RGB).sum(dim=2), grid.scale_RG
    if grid.offset_RG is not None:
        mixed_RGG = seen_RGHB.sum(dim=3)
        ones_RGG = h_GBD.sum(dim=1).unflatten(1, (G, -1)).sum(dim=2).expand_as(mixed_RGG)
        upper, lower = torch.cat((a_RBB, mixed_RGG), dim=2), torch.cat((mixed_RGG.transpose(1, 2), ones_RGG), dim=2)
        a_RBB, b_RB = torch.cat((upper, lower), dim=1), torch.cat((b_RB, wanted_RGB.sum(dim=2)), dim=1)
        before_RB = torch.cat((before_RB, grid.offset_RG), dim=1)
    a_RBB, b_RB, before_RB = a_RBB.double(), b_RB.double(), before_RB.double()
    pull_RB = PULL * a_RBB.diagonal(dim1=1, dim2=2) + torch.finfo(torch.float32).tiny
    a_RBB = a_RBB + torch.diag_embed(pull_RB)
    return torch.linalg.solve(a_RBB, b_RB + pull_RB * before_RB).float()


def best_codes(kind: Kind, w_RD: Tensor, codes_RD: Tensor, grid: Grid, h_DD: Tensor) -> Tensor:
    """One sweep over the columns, each at its best beside all others as they are by then."""
    D = w_RD.shape[1]
    group = D // grid.scale_RG.shape[1]
    codes_DR = codes_RD.float().T.contiguous()  # a column at a time: each one's numbers together
    made_DR = from_codes(codes_RD, grid).T.contiguous()
    pull_DR = h_DD @ (w_RD.T - made_DR)
    diagonal_D = h_DD.diagonal()
    for start in range(0, D, PANEL):
        stop = min(start + PANEL, D)
        moved_PR = made_DR[start:stop].clone()
        for j in range(start, stop):
            scale_R, offset_R = grid.column(j // group)
            codes_DR[j] = kind.round(made_DR[j] + pull_DR[j] / diagonal_D[j], scale_R, offset_R)
            move_R = levels(codes_DR[j], scale_R, offset_R) - made_DR[j]
            made_DR[j] += move_R
            pull_DR[start:stop].addr_(h_DD[start:stop, j], move_R, alpha=-1)
        moved_PR = made_DR[start:stop] - moved_PR
        pull_DR[:start].addmm_(h_DD[:start, start:stop], moved_PR, alpha=-1)
        pull_DR[stop:].addmm_(h_DD[stop:, start:stop], moved_PR, alpha=-1)
    return codes_DR.T.to(torch.int8)
