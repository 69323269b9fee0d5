"""Products in 8 bits: the scale, the cast, and a linear layer within the formats' error of fp32."""

import math

import pytest
import torch

from tessera.ops.float8 import E4M3, E5M2, fits, float8_linear, from_float8, plain_product, product, scale_of, to_float8

HALF_STEP = {E4M3: 2.0**-4, E5M2: 2.0**-3}
"""The largest relative error of rounding to 3 and to 2 bits of mantissa."""


def random(*sizes: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
@pytest.mark.parametrize("size", [1e-30, 1e-6, 1.0, 3e4, 1e30])
def test_a_tensor_comes_back_within_the_error_of_the_format(dtype: torch.dtype, size: float) -> None:
    x = random(64, 64) * size
    scale = scale_of(x, dtype)
    back = from_float8(to_float8(x, scale, dtype), scale)
    largest = x.abs().max().item()
    # Below the smallest normal number the steps are even: an error of half of one of them.
    smallest = torch.finfo(dtype).smallest_normal / torch.finfo(dtype).max * largest
    allowed = HALF_STEP[dtype] * x.abs().clamp(min=smallest) * 1.001
    assert bool(((back - x).abs() <= allowed).all())
    assert back.abs().max().item() == pytest.approx(largest, rel=1e-5)  # the largest number is the format's largest


def test_the_cast_rounds_by_the_definition_of_the_format() -> None:
    one = torch.tensor(1.0)
    # e4m3: 1 + n / 8 between 1 and 2; halves go to the even one. The smallest number is 2^-9.
    numbers = {1.0: 1.0, 1.06: 1.0, 1.0625: 1.0, 1.07: 1.125, 1.1875: 1.25, 300.0: 288.0, 2.0**-9: 2.0**-9, 9e-4: 0.0}
    found = to_float8(torch.tensor(list(numbers)), one, E4M3).float().tolist()
    assert found == list(numbers.values())


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_a_cast_saturates_and_keeps_nan(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    found = to_float8(torch.tensor([1e9, -1e9, math.inf, math.nan, largest]), torch.tensor(1.0), dtype).float().tolist()
    assert found[:3] == [largest, -largest, largest] and math.isnan(found[3]) and found[4] == largest


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_seen_in_the_result_and_the_gradients(bad: float) -> None:
    x, weight = random(16, 32), random(48, 32).requires_grad_()
    x[3, 5] = bad
    x.requires_grad_()
    y = float8_linear(x, weight, None, torch.float32)
    assert bool(y.isnan().any())
    y.sum().backward()
    assert bool(weight.grad.isnan().any())


def test_zeros_have_a_scale_and_give_zeros() -> None:
    x, weight = torch.zeros(16, 32, requires_grad=True), random(48, 32).requires_grad_()
    assert scale_of(x, E4M3).item() == 1.0
    y = float8_linear(x, weight, None, torch.float32)
    y.backward(torch.zeros_like(y))
    assert not y.any() and not x.grad.any() and not weight.grad.any()


def test_a_tensor_of_tiny_numbers_has_a_finite_scale() -> None:
    assert math.isfinite(scale_of(torch.full((4,), 1e-44), E5M2).item())


@pytest.mark.parametrize("bias", [False, True])
def test_a_linear_layer_is_that_in_fp32_but_for_the_error_of_the_formats(bias: bool) -> None:
    x, weight, grad = random(4, 32, 64), random(96, 64, seed=1) / 8, random(4, 32, 96, seed=2)
    b = random(96, seed=3).requires_grad_() if bias else None
    found, exact = [], []
    for results, layer in ((found, float8_linear), (exact, lambda x, w, b, _: torch.nn.functional.linear(x, w, b))):
        leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
        if b is not None:
            b.grad = None
        y = layer(*leaves, b, torch.float32)
        y.backward(grad)
        results += [y.detach(), *(leaf.grad for leaf in leaves), *([b.grad.clone()] if b is not None else [])]
    # Independent roundings of both factors: uniform in +- half a step, so 1/sqrt(3) of it on the average, and less.
    forward = math.hypot(HALF_STEP[E4M3], HALF_STEP[E4M3]) / math.sqrt(3)
    backward = math.hypot(HALF_STEP[E5M2], HALF_STEP[E4M3]) / math.sqrt(3)
    for one, other, allowed in zip(found, exact, (forward, backward, backward, 1e-6), strict=False):
        error = (one - other).norm() / other.norm()
        assert error < allowed
        assert allowed == 1e-6 or error > 0.1 * allowed  # it is in 8 bits


@pytest.mark.parametrize(("a_type", "b_type"), [(E4M3, E4M3), (E5M2, E4M3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_products_of_pytorch_are_those_in_fp32(a_type, b_type, dtype) -> None:  # type: ignore[no-untyped-def]
    """What a GPU is asked for, asked of the CPU in the same layout: a row-major, b column-major, scales inverted."""
    a, b = random(32, 64), random(48, 64, seed=1)
    scale_a, scale_b = scale_of(a, a_type), scale_of(b, b_type)
    a8, b8 = to_float8(a, scale_a, a_type), to_float8(b, scale_b, b_type)
    back = {"scale_a": scale_a.reciprocal(), "scale_b": scale_b.reciprocal()}
    theirs = torch._scaled_mm(a8, b8.t(), **back, out_dtype=dtype)
    ours = plain_product(a8, b8, scale_a, scale_b, dtype)
    torch.testing.assert_close(ours, theirs, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-5)
    assert torch.equal(ours, product(a8, b8, scale_a, scale_b, dtype))


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9), reason="no GPU with 8-bit products"
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpu_computes_what_the_emulation_does(dtype: torch.dtype) -> None:
    results = []
    for device in ("cpu", "cuda"):
        leaves = [
            random(64, 128).to(device).requires_grad_(),
            (random(96, 128, seed=1) / 8).to(device).requires_grad_(),
        ]
        y = float8_linear(*leaves, None, dtype)
        y.backward(random(64, 96, seed=2).to(y))
        results.append([y.detach().float().cpu(), *(leaf.grad.cpu() for leaf in leaves)])
    for cpu, cuda in zip(*results, strict=True):
        torch.testing.assert_close(cuda, cpu, rtol=2e-2, atol=2e-2)


def test_sizes_that_the_kernels_take() -> None:
    assert fits(64, 32, 16) and not fits(63, 32, 16) and not fits(64, 40, 16) and not fits(64, 32, 65)
