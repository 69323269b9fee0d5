"""Eight bits: their values by hand, the nearest one by search, and how wrong a number comes back."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.optim.quantize import code, dequantize, dynamic_values, quantize

CPU = torch.device("cpu")


def test_the_values_by_hand() -> None:
    signed, unsigned = dynamic_values(signed=True), dynamic_values(signed=False)
    assert len(set(signed)) == len(set(unsigned)) == 256
    assert signed[127] == unsigned[0] == 0.0
    assert signed[-1] == unsigned[-1] == 1.0
    smallest = [value for value in signed if value > 0][:3]
    assert torch.allclose(torch.tensor(smallest), torch.tensor([0.55e-6, 3.25e-6, 7.75e-6]))
    assert torch.allclose(torch.tensor(unsigned[1:3]), torch.tensor([0.325e-6, 0.775e-6]))
    assert torch.allclose(torch.tensor(signed[-2]), torch.tensor(1 - 0.9 / 128))
    assert sorted(-value for value in signed if value not in (0.0, 1.0)) == sorted(v for v in signed if v not in (0, 1))


numbers = st.builds(
    lambda n, seed, power: (
        torch.randn(n, generator=torch.Generator().manual_seed(seed))
        * 10.0 ** (power * torch.rand(n, generator=torch.Generator().manual_seed(seed + 1)))
    ),
    st.integers(1, 700),
    st.integers(0, 2**31),
    st.integers(-12, 12),
)


@given(numbers, st.sampled_from([2, 16, 256]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_each_number_becomes_about_the_nearest_value(x, block, signed) -> None:
    """Found by looking at all 256; where two are nearly as near, fp16 may take the other."""
    x = x if signed else x.abs()
    codes, scales = quantize(x, code(signed=signed, device=CPU), block=block)
    values = torch.tensor(dynamic_values(signed=signed), dtype=torch.float64)
    values = values if signed else values[1:]
    share = torch.cat([part.double() / part.abs().max().double() for part in x.split(block)])
    nearest = (share[:, None] - values).abs().amin(dim=1)
    back = dequantize(codes, scales, code(signed=signed, device=CPU), block=block)
    back_share = back.double() / scales.repeat_interleave(block)[: len(x)].double()
    rounding = torch.maximum(share.abs() * 2**-11, torch.tensor(2**-25))  # of fp16: there and back
    assert ((back_share - share).abs() <= nearest + 2.001 * rounding + 1e-7 * share.abs()).all()
    assert torch.equal(scales, torch.stack([part.abs().max() for part in x.split(block)]))


def test_the_error_of_a_gradient_is_a_percent() -> None:
    x = torch.randn(2**16, generator=torch.Generator().manual_seed(0))

    def error(block: int) -> float:
        signed = code(signed=True, device=CPU)
        return ((dequantize(*quantize(x, signed, block=block), signed, block=block) - x).norm() / x.norm()).item()

    assert error(256) < 0.015
    assert error(256) < error(2048) < error(2**16) < 0.03
    outlier = x.clone()
    outlier[0] = 1000.0
    signed = code(signed=True, device=CPU)
    apart = dequantize(*quantize(outlier, signed, block=256), signed, block=256)
    assert ((apart - x)[256:].norm() / x.norm()).item() < 0.015, "an outlier spoils its own block alone"


def test_zeros_come_back_and_a_divisor_is_never_zero() -> None:
    zeros = torch.zeros(10)
    for signed in (True, False):
        kind = code(signed=signed, device=CPU)
        assert torch.equal(dequantize(*quantize(zeros, kind, block=4), kind, block=4), zeros)
    unsigned = code(signed=False, device=CPU)
    x = torch.tensor([1.0, 1e-12])
    assert dequantize(*quantize(x, unsigned, block=2), unsigned, block=2)[1] > 0


def test_codes_come_back_as_they_were() -> None:
    for signed in (True, False):
        kind = code(signed=signed, device=CPU)
        all_codes = torch.arange(0 if signed else 1, 256).to(torch.uint8)
        again, _ = quantize(dequantize(all_codes, torch.tensor([3.0]), kind, block=256), kind, block=256)
        assert torch.equal(again, all_codes)
