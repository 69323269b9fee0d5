import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tessera.ops.attention import attention, fused_attention, plain_attention, visible


def heads(
    n_queries: int, n_keys: int, n_heads: int, n_kv_heads: int, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    random = torch.Generator().manual_seed(n_queries * 31 + n_keys)
    shapes = [(2, n_heads, n_queries, 4), (2, n_kv_heads, n_keys, 4), (2, n_kv_heads, n_keys, 4)]
    return [torch.randn(shape, generator=random, dtype=dtype).requires_grad_() for shape in shapes]


def test_visible_is_a_band() -> None:
    assert visible(3, 4, window=2).int().tolist() == [[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    assert torch.equal(visible(5, 5), torch.ones(5, 5, dtype=torch.bool).tril())


def test_by_hand() -> None:
    # Two keys of equal score: the second query gets the mean of both values, the first its own only.
    q, k = torch.zeros(1, 1, 2, 1), torch.zeros(1, 1, 2, 1)
    v = torch.tensor([2.0, 4.0]).view(1, 1, 2, 1)
    assert plain_attention(q, k, v).flatten().tolist() == [2.0, 3.0]


@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
def test_plain_equals_torch(n_kv_heads: int) -> None:
    q, k, v = heads(7, 7, 4, n_kv_heads)
    ours = plain_attention(q, k, v)
    theirs = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(
        torch.autograd.grad(ours.square().sum(), (q, k, v)), torch.autograd.grad(theirs.square().sum(), (q, k, v))
    )


@settings(deadline=None, max_examples=80)
@given(
    n_queries=st.integers(1, 9),
    n_before=st.integers(0, 9),
    groups=st.sampled_from([(4, 4), (4, 2), (4, 1), (1, 1)]),
    window=st.none() | st.integers(1, 20),
    biased=st.booleans(),
)
def test_fused_equals_plain(
    n_queries: int, n_before: int, groups: tuple[int, int], window: int | None, biased: bool
) -> None:
    n_keys = n_queries + n_before
    q, k, v = heads(n_queries, n_keys, *groups)
    bias = torch.randn(groups[0], n_queries, n_keys) if biased else None
    plain = plain_attention(q, k, v, window=window, bias_HTS=bias)
    fused = fused_attention(q, k, v, window=window, bias_HTS=bias)
    assert torch.equal(attention(q, k, v, window=window, bias_HTS=bias), fused)
    torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-5)
    a, b = (torch.autograd.grad(y.square().sum(), (q, k, v)) for y in (fused, plain))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_gradients_in_float64() -> None:
    q, k, v = heads(3, 5, 2, 1, torch.float64)
    assert torch.autograd.gradcheck(lambda q, k, v: plain_attention(q, k, v, window=2), (q, k, v))


def test_dropout_falls_on_the_weights_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    q, k, v = torch.zeros(1, 1, 400, 1), torch.zeros(1, 1, 400, 1), torch.ones(1, 1, 400, 1)
    y = attention(q, k, v, share_dropped=0.5)
    assert not torch.allclose(y, torch.ones_like(y))
    assert y[0, 0, 200:].mean().item() == pytest.approx(1.0, abs=0.02)


def test_scores_of_any_size_stay_finite() -> None:
    q, k, v = heads(6, 6, 2, 2)
    assert plain_attention(q * 1e6, k * 1e6, v).isfinite().all()
