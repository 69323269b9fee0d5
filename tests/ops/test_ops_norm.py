import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.ops.norm import layer_norm, plain_layer_norm, plain_rms_norm, rms_norm


def test_by_hand() -> None:
    x = torch.tensor([[3.0, 4.0]])
    ones = torch.ones(2)
    # The root mean square of (3, 4) is sqrt(12.5); its mean is 3.5 and its standard deviation 0.5.
    torch.testing.assert_close(rms_norm(x, ones, 1e-12), x / 12.5**0.5)
    torch.testing.assert_close(layer_norm(x, ones, ones, 1e-12), torch.tensor([[0.0, 2.0]]))


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 4), st.integers(1, 40), st.sampled_from([1e-6, 1e-5, 0.1]), st.sampled_from([1e-3, 1.0, 1e3]))
def test_equals_torch_with_all_gradients(n_rows: int, width: int, eps: float, size: float) -> None:
    random = torch.Generator().manual_seed(width)
    x = (size * torch.randn(2, n_rows, width, generator=random, dtype=torch.float64)).requires_grad_()
    weight = torch.randn(width, generator=random, dtype=torch.float64).requires_grad_()
    bias = torch.randn(width, generator=random, dtype=torch.float64).requires_grad_()
    seed = torch.randn(x.shape, generator=random, dtype=torch.float64)
    pairs = [
        (rms_norm(x, weight, eps), F.rms_norm(x, (width,), weight, eps), (x, weight)),
        (plain_rms_norm(x, weight, eps), F.rms_norm(x, (width,), weight, eps), (x, weight)),
        (layer_norm(x, weight, bias, eps), F.layer_norm(x, (width,), weight, bias, eps), (x, weight, bias)),
        (layer_norm(x, weight, None, eps), F.layer_norm(x, (width,), weight, None, eps), (x, weight)),
        (plain_layer_norm(x, weight, bias, eps), F.layer_norm(x, (width,), weight, bias, eps), (x, weight, bias)),
    ]
    for ours, theirs, inputs in pairs:
        torch.testing.assert_close(ours, theirs)
        gradients = torch.autograd.grad(ours, inputs, seed), torch.autograd.grad(theirs, inputs, seed)
        torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-8)


def test_gradients_in_float64() -> None:
    x, weight, bias = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((2, 3, 5), (5,), (5,)))
    assert torch.autograd.gradcheck(lambda x, w: rms_norm(x, w, 1e-5), (x, weight))
    assert torch.autograd.gradcheck(lambda x, w, b: layer_norm(x, w, b, 1e-5), (x, weight, bias))


@pytest.mark.parametrize("shape", [(8,), (3, 8), (2, 3, 4, 8)])
def test_any_leading_shape(shape: tuple[int, ...]) -> None:
    x, weight = torch.randn(shape, requires_grad=True), torch.rand(8).requires_grad_()
    for ours, theirs in (
        (rms_norm(x, weight, 1e-5), plain_rms_norm(x, weight, 1e-5)),
        (layer_norm(x, weight, weight, 1e-5), plain_layer_norm(x, weight, weight, 1e-5)),
    ):
        torch.testing.assert_close(ours, theirs)
        gradients = (torch.autograd.grad(y.square().sum(), (x, weight)) for y in (ours, theirs))
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_takes_its_statistics_in_fp32(dtype: torch.dtype) -> None:
    # 300^2 summed over 64 overflows fp16.
    x = torch.full((2, 64), 300.0, dtype=dtype, requires_grad=True)
    weight = torch.ones(64, dtype=dtype, requires_grad=True)
    y = rms_norm(x, weight, 1e-5)
    assert y.dtype == dtype
    torch.testing.assert_close(y, torch.ones_like(y))
    y.sum().backward()
    assert x.grad is not None and x.grad.dtype == dtype and x.grad.isfinite().all()
    assert layer_norm(x, weight, None, 1e-5).isfinite().all()
