"""Weights in codes: the levels against their definition, codes and absmax against bitsandbytes, the errors' bounds."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tessera.adapt.blockwise import BLOCK, KINDS, NF4_LEVELS, QuantizedWeight, encode_scales, shares
from tessera.errors import InputError, SettingError

WIDEST = max(b - a for a, b in pairwise(NF4_LEVELS)) / 2
ERROR = {"nf4": WIDEST, "int8": 0.5 / 127}
"""The most that a number is off, over the absmax of its block."""


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_levels_are_the_papers() -> None:
    """Quantiles of N(0, 1): eight of the upper half and seven of the lower, at equal distances from 1 - offset on."""
    offset = 0.9677083

    def quantiles(n: int) -> Tensor:
        return torch.special.ndtri(torch.linspace(offset, 0.5, n, dtype=torch.float64))[:-1]

    levels = torch.cat((quantiles(9), torch.zeros(1, dtype=torch.float64), -quantiles(8))).sort().values
    assert torch.allclose(torch.tensor(NF4_LEVELS, dtype=torch.float64), levels / levels.max(), atol=1e-6)


def test_a_block_by_hand() -> None:
    """absmax 2: -2 is level 0, 0 level 7, 0.9 / 2 is nearest to 0.4407 (12), 0.1 / 2 to 0.0796 (8)."""
    stored = QuantizedWeight.of(torch.tensor([-2.0, 0.0, 0.9, 0.1, 2.0]), "nf4", double=False)
    assert stored.codes.tolist() == [0x07, 0xC8, 0xF7]
    assert stored.absmax.tolist() == [2.0]
    expected = torch.tensor([-2.0, 0.0, 2 * NF4_LEVELS[12], 2 * NF4_LEVELS[8], 2.0])
    assert torch.equal(stored.whole(), expected)


@pytest.mark.parametrize("shape", [(96, 64), (7, 33), (300, 576), (1, 1), (64 * 257 + 5,)])
def test_nf4_is_that_of_bitsandbytes(shape: tuple[int, ...]) -> None:
    functional = pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes is not installed")
    weight = normal(*shape) * 0.02
    plain, plain_state = functional.quantize_4bit(weight, quant_type="nf4", blocksize=64)
    mine = QuantizedWeight.of(weight, "nf4", double=False)
    n_bytes = -(-weight.numel() // 2)
    assert torch.equal(mine.codes, plain.view(-1)[:n_bytes])
    assert torch.equal(mine.scales(), plain_state.absmax)
    assert torch.equal(mine.whole(), functional.dequantize_4bit(plain, plain_state).view(shape))

    _, state = functional.quantize_4bit(weight, quant_type="nf4", blocksize=64, compress_statistics=True)
    double = QuantizedWeight.of(weight, "nf4")
    assert torch.equal(double.codes, mine.codes)
    assert torch.equal(double.absmax_sizes, state.state2.absmax)
    assert torch.allclose(double.absmax_mean, state.offset, rtol=1e-6)
    # Its CPU kernel misses the nearest level now and then, where two are about as near.
    differing = double.absmax_codes != state.absmax
    assert differing.float().mean() < 0.01 or len(differing) == 1
    theirs = functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
    assert torch.allclose(double.scales()[~differing], theirs[~differing], rtol=1e-5, atol=1e-9)
    off, other_off = (double.scales() - mine.scales()).abs(), (theirs - mine.scales()).abs()
    assert (off <= other_off + 1e-8).all()


shapes = st.lists(st.integers(1, 40), min_size=1, max_size=3).map(tuple)
cases = settings(max_examples=80, deadline=None)


@given(shape=shapes, kind=st.sampled_from(list(KINDS)), double=st.booleans(), seed=st.integers(0, 99))
@cases
def test_the_error_is_bounded(shape: tuple[int, ...], kind: str, double: bool, seed: int) -> None:
    weight = normal(*shape, seed=seed) * 10.0 ** (seed % 9 - 4)
    stored = QuantizedWeight.of(weight, kind, double=double)
    assert stored.whole().shape == weight.shape
    _, absmax_M = shares(weight.view(-1))
    off_M = (stored.scales() - absmax_M).abs()
    if double:  # half of the distance of the widest levels, over the largest difference from the mean
        assert (off_M <= 0.0071 * (absmax_M - absmax_M.mean()).abs().max() + 1e-6 * absmax_M.max()).all()
    else:
        assert torch.equal(stored.scales(), absmax_M)
    bound_M = absmax_M * ERROR[kind] * (1 + 1e-5) + off_M
    error = (stored.whole() - weight).view(-1).abs()
    assert (error <= bound_M.repeat_interleave(BLOCK)[: len(error)] + 1e-12).all()


@given(shape=shapes, kind=st.sampled_from(list(KINDS)), seed=st.integers(0, 99))
@cases
def test_what_was_brought_back_has_the_same_codes(shape: tuple[int, ...], kind: str, seed: int) -> None:
    once = QuantizedWeight.of(normal(*shape, seed=seed), kind, double=False)
    twice = QuantizedWeight.of(once.whole(), kind, double=False)
    assert torch.equal(once.codes, twice.codes)
    assert torch.equal(once.whole(), twice.whole())


@given(data=st.data(), n_rows=st.integers(1, 30), width=st.integers(1, 90), kind=st.sampled_from(list(KINDS)))
@cases
def test_any_rows_are_those_of_the_whole(data: st.DataObject, n_rows: int, width: int, kind: str) -> None:
    stored = QuantizedWeight.of(normal(n_rows, width), kind)
    start = data.draw(st.integers(0, n_rows - 1))
    stop = data.draw(st.integers(start + 1, n_rows))
    assert torch.equal(stored.rows(start, stop), stored.whole()[start:stop])


def test_a_block_of_zeros_stays_zeros_and_a_tiny_one_keeps_its_signs() -> None:
    weight = normal(64 * 300).view(300, 64)
    weight[7] = 0.0
    weight[9] *= 1e-6
    stored = QuantizedWeight.of(weight, "nf4")
    back = stored.whole()
    assert back[7].abs().max() == 0
    assert (back[9] * weight[9]).min() >= 0
    assert stored.scales().min() >= 0


def test_numbers_beyond_a_piece_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = normal(50, 77)
    whole = QuantizedWeight.of(weight, "nf4")
    monkeypatch.setattr("tessera.adapt.blockwise.PIECE", 2 * BLOCK)
    pieces = QuantizedWeight.of(weight, "nf4")
    assert torch.equal(whole.codes, pieces.codes)
    assert torch.equal(whole.whole(), pieces.whole())


def test_the_memory_is_what_the_paper_says() -> None:
    """4 + 8/64 + 32/(64 * 256) bits with double quantization, 4 + 32/64 without; int8 8 + 32/64."""
    n = 64 * 256 * 4
    weight = normal(n)
    assert QuantizedWeight.of(weight, "nf4").n_bytes * 8 / n == pytest.approx(4.127, abs=0.001)
    assert QuantizedWeight.of(weight, "nf4", double=False).n_bytes * 8 / n == 4.5
    assert QuantizedWeight.of(weight, "int8").n_bytes * 8 / n == 8.5


def test_nf4_is_better_than_equal_distances_for_normal_numbers() -> None:
    """What the levels are for: less error in the mean than 16 at equal distances (of which one is 0)."""
    weight = normal(64 * 500)
    share, absmax = shares(weight)
    even = ((share * 7).round() / 7).view(-1, 64) * absmax[:, None]
    nf4 = QuantizedWeight.of(weight, "nf4", double=False).whole()
    assert (nf4 - weight).square().mean() < 0.85 * (even.view(-1) - weight).square().mean()


def test_scales_that_are_all_alike_come_back_exactly() -> None:
    codes, sizes, mean = encode_scales(torch.full((300,), 0.25))
    assert (sizes == 0).all()
    assert mean == 0.25
    assert len(codes) == 300


def test_what_cannot_be_stored_is_an_error() -> None:
    with pytest.raises(InputError, match=r"'blocks.0.x' holds numbers that are NaN"):
        QuantizedWeight.of(torch.tensor([1.0, float("inf")]), "nf4", name="blocks.0.x")
    with pytest.raises(SettingError, match="did you mean 'nf4'"):
        QuantizedWeight.of(torch.ones(3), "nf5")
