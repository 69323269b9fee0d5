"""Codes and levels in turns: against a search of all codes, against least squares, and never worse than before."""

from itertools import pairwise, product

import pytest
import torch
from tests.generate.test_quantize_methods import layer

from tessera.generate.quantize import KINDS
from tessera.generate.quantize.gptq import damped, gptq
from tessera.generate.quantize.kinds import Grid
from tessera.generate.quantize.refine import best_codes, best_levels, refine, row_errors
from tessera.generate.quantize.rounding import from_codes, layer_error, nearest


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("group", [32, 96])
def test_each_step_lessens_the_error(kind: str, group: int) -> None:
    w_RD, h_DD = layer()
    h_DD = damped(h_DD, 0.01)
    codes, grid = gptq(KINDS[kind], w_RD, h_DD, group)
    errors = [layer_error(from_codes(codes, grid) - w_RD, h_DD)]
    for _ in range(2):
        grid = best_levels(KINDS[kind], w_RD, codes, grid, h_DD)
        errors.append(layer_error(from_codes(codes, grid) - w_RD, h_DD))
        codes = best_codes(KINDS[kind], w_RD, codes, grid, h_DD)
        errors.append(layer_error(from_codes(codes, grid) - w_RD, h_DD))
    assert all(later <= earlier * (1 + 1e-5) for earlier, later in pairwise(errors))
    assert errors[-1] < 0.95 * errors[0]
    assert codes.dtype == torch.int8
    assert KINDS[kind].low <= int(codes.min()) <= int(codes.max()) <= KINDS[kind].high


def test_levels_are_those_of_least_squares() -> None:
    """In the coordinates where H is the identity it is an ordinary regression, that of torch."""
    w_RD, h_DD = layer(n_rows=3, width=32)
    h_DD = damped(h_DD, 0.01)
    kind = KINDS["int4"]
    codes, grid = nearest(kind, w_RD, 16)
    found = best_levels(kind, w_RD, codes, grid, h_DD)
    root_DD = torch.linalg.cholesky(h_DD.double()).T  # H = R^T R
    for row in range(3):
        columns = torch.zeros(32, 4, dtype=torch.float64)
        for g in range(2):
            columns[16 * g : 16 * g + 16, g] = codes[row, 16 * g : 16 * g + 16].double()
            columns[16 * g : 16 * g + 16, 2 + g] = 1
        solution = torch.linalg.lstsq(root_DD @ columns, (root_DD @ w_RD[row].double())[:, None]).solution[:, 0]
        assert found.offset_RG is not None
        made = torch.cat((found.scale_RG[row], found.offset_RG[row])).double()
        torch.testing.assert_close(made, solution, rtol=0.02, atol=0.02)


def test_no_code_can_be_moved_alone_and_few_choices_are_better() -> None:
    """Five columns: all 7^5 choices tried."""
    w_RD, h_DD = layer(n_rows=6, width=5)
    h_DD = damped(h_DD, 0.01)
    kind, grid = KINDS["int8"], Grid(torch.full((6, 1), 0.7))
    codes = torch.zeros(6, 5, dtype=torch.int8)
    for _ in range(6):
        codes = best_codes(kind, w_RD, codes, grid, h_DD)
    made_RD = from_codes(codes, grid)
    error_R = row_errors(made_RD, w_RD, h_DD)
    for column, sign in product(range(5), (-1, 1)):
        moved_RD = made_RD + sign * 0.7 * torch.eye(5)[column]
        assert bool((row_errors(moved_RD, w_RD, h_DD) >= error_R - 1e-4).all())
    every_ND = 0.7 * torch.tensor(list(product(range(-3, 4), repeat=5)), dtype=torch.float32)
    for w_D, error in zip(w_RD, error_R, strict=True):
        others_N = row_errors(every_ND, w_D.expand_as(every_ND), h_DD)
        assert float((others_N < error - 1e-4).float().mean()) < 0.002


def test_without_input_each_number_counts_by_itself() -> None:
    w_RD, _ = layer()
    kind = KINDS["int4"]
    before = nearest(kind, w_RD, 32)
    after = refine(kind, w_RD, *before, torch.zeros(96, 96))
    assert float((from_codes(*after) - w_RD).square().sum()) < float((from_codes(*before) - w_RD).square().sum())


def test_rows_at_a_time_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    w_RD, h_DD = layer()
    codes, grid = nearest(KINDS["q4_1"], w_RD, 32)
    h_DD = damped(h_DD, 0.01)
    whole = best_levels(KINDS["q4_1"], w_RD, codes, grid, h_DD)
    monkeypatch.setattr("tessera.generate.quantize.refine.AT_ONCE", 96 * 3 * 5)
    assert torch.equal(best_levels(KINDS["q4_1"], w_RD, codes, grid, h_DD).scale_RG, whole.scale_RG)
