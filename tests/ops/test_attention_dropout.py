"""Dropout of attention weights: which are dropped is read off with values that are the unit matrix."""

import pytest
import torch
from torch import Tensor

from tessera.ops.attention import attention
from tessera.ops.attention_formula import formula_attention
from tessera.ops.attention_plain import sight_of

SHARE = 0.3


def drop_attention(seed: int, q: Tensor, k: Tensor, v: Tensor, **options: object) -> Tensor:
    torch.manual_seed(seed)
    sight = sight_of(q, k, v, None, 0, None)
    defaults = {"bias_HTS": None, "scale": 0.5, "score_cap": None, "sinks_H": None, "share_dropped": SHARE}
    return formula_attention(q, k, v, sight, **(defaults | options))  # type: ignore[arg-type]


@pytest.mark.parametrize(("block", "cap"), [(4, None), (7, None), (64, 2.0)])
def test_value_and_gradients_are_those_of_the_formula_with_the_same_weights_dropped(
    block: int, cap: float | None
) -> None:
    torch.manual_seed(0)
    B, H, G, T = 2, 4, 2, 11
    q, k, v = (torch.randn(B, heads, T, 4, dtype=torch.float64, requires_grad=True) for heads in (H, G, G))
    unit = torch.eye(T, dtype=torch.float64).expand(B, G, T, T)
    used = drop_attention(5, q.detach(), k.detach(), unit, block=block, score_cap=cap)
    scores = 0.5 * q @ k.repeat_interleave(H // G, dim=1).transpose(-1, -2)
    scores = scores if cap is None else cap * torch.tanh(scores / cap)
    hidden = torch.ones(T, T, dtype=torch.bool).triu(1)
    weights = scores.masked_fill(hidden, float("-inf")).softmax(dim=-1)
    factors = torch.where(hidden, 0.0, used / weights.detach().clamp(min=1e-30))
    seen = factors[~hidden.expand_as(factors)]
    assert sorted({round(x, 9) for x in seen.tolist()}) == [0.0, pytest.approx(1 / (1 - SHARE), rel=1e-4)]

    expected = (weights * factors) @ v.repeat_interleave(H // G, dim=1)
    found = drop_attention(5, q, k, v, block=block, score_cap=cap)
    torch.testing.assert_close(found, expected)
    given = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(found, (q, k, v), given), torch.autograd.grad(expected, (q, k, v), given), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_each_call_and_each_block_drops_others_and_a_seed_brings_them_back() -> None:
    T = 64
    q = torch.zeros(1, 2, T, 4)
    unit = torch.eye(T).expand(1, 2, T, T)
    torch.manual_seed(1)
    first, second = (attention(q, q, unit, share_dropped=0.5) for _ in range(2))
    torch.manual_seed(1)
    assert torch.equal(attention(q, q, unit, share_dropped=0.5), first)
    assert not torch.equal(first, second)
    blocks = drop_attention(1, q, q, unit, block=16)
    kept = [(blocks[0, 0, start : start + 16, :16] > 0).tril() for start in (16, 32)]
    assert not torch.equal(*kept)
    share = (first[0] > 0).float().sum() / (T * (T + 1))
    assert share.item() == pytest.approx(0.5, abs=0.05)
