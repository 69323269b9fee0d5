import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tessera.errors import SettingError
from tessera.model.attention import GroupedQueryAttention
from tessera.model.position import Position, RotaryPosition


def filled(**settings) -> GroupedQueryAttention:
    torch.manual_seed(0)
    layer = GroupedQueryAttention(**settings)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return layer.eval()


@pytest.mark.parametrize("bias", [True, False])
def test_equals_torch_multi_head_attention(bias: bool) -> None:
    ours = filled(d_model=12, n_heads=3, bias=bias)
    theirs = nn.MultiheadAttention(12, 3, bias=bias, batch_first=True)
    parts = [ours.query, ours.key, ours.value]
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        theirs.out_proj.weight.copy_(ours.output.weight)
        if bias:
            theirs.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
            theirs.out_proj.bias.copy_(ours.output.bias)
    x = torch.randn(2, 5, 12)
    expected, _ = theirs(x, x, x, attn_mask=torch.ones(5, 5, dtype=torch.bool).triu(1))
    torch.testing.assert_close(ours(x, Position()), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n_kv_heads", [1, 2])
def test_shared_heads_equal_multi_head_with_repeated_weights(n_kv_heads: int) -> None:
    grouped = filled(d_model=16, n_heads=4, n_kv_heads=n_kv_heads)
    full = filled(d_model=16, n_heads=4)
    full.query.load_state_dict(grouped.query.state_dict())
    full.output.load_state_dict(grouped.output.state_dict())
    with torch.no_grad():
        for ours, theirs in ((grouped.key, full.key), (grouped.value, full.value)):
            rows = ours.weight.view(n_kv_heads, 4, 16)
            theirs.weight.copy_(rows.repeat_interleave(4 // n_kv_heads, dim=0).view(16, 16))
    x, position = torch.randn(2, 6, 16), RotaryPosition(context=6, d_head=4)
    torch.testing.assert_close(grouped(x, position), full(x, position), rtol=1e-5, atol=1e-5)


@settings(deadline=None)
@given(st.integers(1, 8), st.integers(0, 7))
def test_a_window_sees_its_last_tokens_only(window: int, changed: int) -> None:
    layer = filled(d_model=8, n_heads=2, window=window)
    x = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(1))
    other = x.clone()
    other[0, changed] += 1.0
    differs = (layer(x, Position()) - layer(other, Position())).abs().amax(-1)[0] > 1e-6
    assert differs.tolist() == [changed <= t < changed + window for t in range(8)]


def test_a_position_may_add_to_the_scores() -> None:
    class Nearest(Position):
        """So strong a wish for the present that nothing else is seen."""

        def bias(self, n_queries: int, n_keys: int) -> Tensor:
            distance = torch.arange(n_keys - n_queries, n_keys)[:, None] - torch.arange(n_keys)
            return (-1e4 * distance.float()).expand(2, n_queries, n_keys)

    layer = filled(d_model=8, n_heads=2)
    x = torch.randn(2, 5, 8)
    torch.testing.assert_close(layer(x, Nearest()), layer.output(layer.value(x)))


def test_qk_norm_makes_the_scale_of_queries_irrelevant() -> None:
    layer = filled(d_model=8, n_heads=2, qk_norm=True)
    x = torch.randn(1, 4, 8)
    before = layer(x, Position())
    with torch.no_grad():
        layer.query.weight.mul_(1000.0)
    torch.testing.assert_close(layer(x, Position()), before, rtol=1e-3, atol=1e-3)
    assert {name for name, _ in layer.named_parameters() if "norm" in name} == {"query_norm.weight", "key_norm.weight"}


def test_dropout_only_while_training() -> None:
    layer = filled(d_model=8, n_heads=2, dropout=0.5)
    x = torch.randn(1, 6, 8)
    assert torch.equal(layer(x, Position()), layer(x, Position()))
    layer.train()
    assert not torch.equal(layer(x, Position()), layer(x, Position()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"d_model": 10, "n_heads": 4}, "d_model = 10: expected a multiple of n_heads = 4"),
        ({"d_model": 8, "n_heads": 4, "n_kv_heads": 3}, "n_kv_heads = 3: expected a divisor of n_heads = 4"),
        ({"d_model": 8, "n_heads": 4, "n_kv_heads": 0}, "n_kv_heads = 0"),
        ({"d_model": 8, "n_heads": 4, "window": 0}, "window = 0"),
    ],
)
def test_impossible_shapes_are_errors(settings: dict[str, int], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        GroupedQueryAttention(**settings)
