"""Clipping against torch.nn.utils.clip_grad_norm_."""

import math

import pytest
import torch
from torch import nn

from tessera.errors import SettingError
from tessera.optim.clip import clip_grad_norm


def with_gradients(dtype: torch.dtype = torch.float32, scale: float = 1.0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in [(4, 3), (7,), (), (2, 2, 2)]]
    for param in params[1:]:
        param.grad = (scale * torch.randn(param.shape, generator=generator)).to(dtype)
    return params


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("max_norm", [0.1, 1.0, 100.0])
def test_equals_torch(dtype, max_norm):
    ours, theirs = with_gradients(dtype), with_gradients(dtype)
    norm = clip_grad_norm(ours, max_norm)
    assert norm.item() == pytest.approx(nn.utils.clip_grad_norm_(theirs, max_norm).item(), rel=1e-6)
    for param, other in zip(ours[1:], theirs[1:], strict=True):
        torch.testing.assert_close(param.grad, other.grad)
    assert ours[0].grad is None


def test_the_norm_of_half_precision_is_summed_in_float32():
    param = nn.Parameter(torch.zeros(10_000, dtype=torch.float16))
    param.grad = torch.full_like(param, 100.0)
    assert clip_grad_norm([param], 1.0).item() == pytest.approx(10_000.0)
    assert param.grad.float().norm().item() == pytest.approx(1.0, rel=1e-2)


def test_infinity_measures_only():
    params, same = with_gradients(), with_gradients()
    assert clip_grad_norm(params, math.inf) > 0
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(params[1:], same[1:], strict=True))


def test_a_norm_that_is_not_finite_is_told():
    params = with_gradients()
    params[1].grad[0] = math.nan
    assert clip_grad_norm(params, 1.0).isnan()


def test_no_gradient_is_norm_zero():
    assert clip_grad_norm([nn.Parameter(torch.ones(2))], 1.0) == 0.0
    assert clip_grad_norm([], 1.0) == 0.0


@pytest.mark.parametrize("max_norm", [0.0, -1.0, math.nan])
def test_wrong_norms_are_named(max_norm):
    with pytest.raises(SettingError, match=r"^max_norm = "):
        clip_grad_norm(with_gradients(), max_norm)
