"""Weights in codes: what is stored is had back, as the blocks of GGUF files byte for byte, tile by tile."""

from typing import Any

import numpy as np
import pytest
import torch

from tessera.errors import InputError, SettingError
from tessera.formats.gguf import blocks
from tessera.generate.quantize import KINDS, QuantizedExpertLinear, QuantizedLinear, QuantizedWeight, group_for, stored
from tessera.generate.quantize.rounding import from_codes, nearest


def weight(kind: str, n_rows: int = 12, width: int = 64, seed: int = 0) -> tuple[torch.Tensor, QuantizedWeight]:
    """Numbers, and the same in codes."""
    w_RD = torch.randn(n_rows, width, generator=torch.Generator().manual_seed(seed))
    codes, grid = nearest(KINDS[kind], w_RD, group_for(KINDS[kind], width, KINDS[kind].usual_group))
    return w_RD, QuantizedWeight.of(kind, w_RD.shape, codes, grid)


@pytest.mark.parametrize("kind", KINDS)
def test_codes_are_had_back(kind: str) -> None:
    w_RD, kept = weight(kind)
    codes, grid = nearest(KINDS[kind], w_RD, group_for(KINDS[kind], 64, KINDS[kind].usual_group))
    again, its_grid = kept.read()
    assert torch.equal(again.to(torch.int8), codes)
    assert torch.equal(its_grid.scale_RG, grid.scale_RG)
    assert torch.equal(kept.whole(), from_codes(codes, grid))
    assert torch.equal(kept.rows(torch.tensor([3, 0])), kept.whole()[[3, 0]])


@pytest.mark.parametrize("kind", KINDS)
def test_no_number_is_further_off_than_half_a_level(kind: str) -> None:
    w_RD, kept = weight(kind)
    _, grid = kept.read()
    off_RGB = (kept.whole() - w_RD).abs().unflatten(1, (grid.scale_RG.shape[1], -1))
    allowed = grid.scale_RG.abs().unsqueeze(2) * (1.01 if kind == "q4_0" else 0.51)  # q4_0 has no +8: cut off there
    assert bool((off_RGB <= allowed + 1e-6).all())


@pytest.mark.parametrize("kind", ["q8_0", "q4_0", "q4_1"])
def test_blocks_are_those_of_gguf_files(kind: str) -> None:
    w_RD, kept = weight(kind)
    content = kept.parts["blocks"].numpy()
    theirs = blocks.dequantize(blocks.KINDS[kind], content.tobytes())
    np.testing.assert_array_equal(kept.whole().numpy().reshape(-1), theirs)
    # Codes that our writer of GGUF files made are read as what they are, too.
    made = blocks.quantize(blocks.KINDS[kind], w_RD.numpy().reshape(-1))
    other = QuantizedWeight(kind=kind, shape=(12, 64), parts={"blocks": torch.from_numpy(made.reshape(12, -1))})
    np.testing.assert_array_equal(other.whole().numpy().reshape(-1), blocks.dequantize(blocks.KINDS[kind], made.data))


def test_a_row_of_zeros_stays_zeros() -> None:
    for kind in KINDS.values():
        codes, grid = nearest(kind, torch.zeros(2, 64), 32)
        assert torch.equal(from_codes(codes, grid), torch.zeros(2, 64))


@pytest.mark.parametrize("kind", KINDS)
def test_the_product_is_that_of_the_matrix_and_never_has_more_than_a_tile(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, kept = weight(kind, n_rows=40)
    bias = torch.nn.Parameter(torch.randn(40))
    layer = QuantizedLinear(stored=kept, bias=bias).requires_grad_(False)
    x = torch.randn(2, 5, 64)
    expected = x @ kept.whole().T + bias
    seen: list[int] = []
    real = QuantizedWeight.rows

    def rows(self: QuantizedWeight, *given: Any) -> torch.Tensor:
        made = real(self, *given)
        seen.append(made.numel())
        return made

    monkeypatch.setitem(stored.TILE, "cpu", 7 * 64)
    monkeypatch.setattr(QuantizedWeight, "rows", rows)
    torch.testing.assert_close(layer(x), expected)
    assert max(seen) <= 7 * 64
    assert sum(seen) == 40 * 64


def test_experts_take_their_rows() -> None:
    _, kept = weight("int8", n_rows=3 * 8)
    kept.shape = (3, 8, 64)
    x = torch.randn(7, 64)
    made = QuantizedExpertLinear(stored=kept)(x, [4, 0, 3])
    whole = kept.whole()
    torch.testing.assert_close(made, torch.cat((x[:4] @ whole[0].T, x[4:] @ whole[2].T)))
    with pytest.raises(InputError, match="3 matrices"):
        QuantizedExpertLinear(stored=kept)(x, [7])


def test_another_float_type_leaves_the_levels_alone() -> None:
    _, kept = weight("int8")
    before = kept.whole()
    assert torch.equal(kept.to(torch.bfloat16).whole(), before)


def test_nothing_is_learned_through_codes() -> None:
    _, kept = weight("int4")
    with pytest.raises(InputError, match="learn nothing"):
        QuantizedLinear(stored=kept)(torch.randn(1, 64, requires_grad=True))


def test_groups_divide_the_row() -> None:
    assert group_for(KINDS["int4"], 576, 128) == 96
    assert group_for(KINDS["int4"], 576, 64) == 64
    assert group_for(KINDS["int4"], 2 * 97, 64) == 2 * 97  # nothing near divides it
    assert group_for(KINDS["int8"], 576, None) == 576


def test_an_unknown_kind_names_the_choices() -> None:
    from tessera.generate.quantize import Quantization

    with pytest.raises(SettingError, match="q4_0"):
        Quantization(to="int3")
    with pytest.raises(SettingError, match="groups of 32"):
        Quantization(to="q4_0", group=64)
    with pytest.raises(SettingError, match="32, 64 or 128"):
        Quantization(to="int4", group=5)
