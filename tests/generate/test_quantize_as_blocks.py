"""Codes of our own kinds as blocks of GGUF files: the same numbers."""

import pytest
import torch

from tessera.generate.quantize import KINDS, QuantizedWeight
from tessera.generate.quantize.as_blocks import as_blocks


def quantized(kind: str, width: int, group: int) -> QuantizedWeight:
    x_RGB = torch.randn(5, width // group, group, generator=torch.Generator().manual_seed(0))
    grid = KINDS[kind].lay(x_RGB, 1.0)
    offset = None if grid.offset_RG is None else grid.offset_RG[..., None]
    codes_RD = KINDS[kind].round(x_RGB, grid.scale_RG[..., None], offset).flatten(1).to(torch.int8)
    return QuantizedWeight.of(kind, (5, width), codes_RD, grid)


@pytest.mark.parametrize(
    ("kind", "block", "group"),
    [("int4", "q4_1", 64), ("int4", "q4_1", 32), ("int8", "q8_0", 192), ("q4_0", "q4_0", 32)],
)
def test_the_blocks_have_the_same_numbers(kind: str, block: str, group: int) -> None:
    weight = quantized(kind, 192, group)
    found = as_blocks(weight)
    assert found is not None and found[0] == block
    same = QuantizedWeight(kind=block, shape=weight.shape, parts={"blocks": torch.from_numpy(found[1]())})
    torch.testing.assert_close(same.whole(), weight.whole(), rtol=2**-10, atol=0.0 if kind != "int8" else 1e-3)
    torch.testing.assert_close(same.read()[0], weight.read()[0])


def test_groups_that_are_no_whole_blocks_have_none() -> None:
    assert as_blocks(quantized("int4", 192, 48)) is None


def test_a_scale_that_half_precision_loses_has_none() -> None:
    codes_RD = torch.ones(1, 32, dtype=torch.int8)
    weight = QuantizedWeight(kind="int8", shape=(1, 32), parts={"codes": codes_RD, "scales": torch.tensor([[3e-8]])})
    assert as_blocks(weight) is None
