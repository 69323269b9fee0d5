"""The feed-forward in pieces against the composition that autograd differentiates."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tessera.model.dense import ReluFeedForward
from tessera.model.feedforward import FEED_FORWARDS
from tessera.model.flow import Flow
from tessera.model.linear import Linear
from tessera.ops import feedforward
from tessera.ops.activation import Activation, Gelu, Relu, Silu, SquaredRelu
from tessera.ops.feedforward import chunked_feed_forward, plain_feed_forward, serves

ACTIVATIONS = [Relu(), SquaredRelu(), Gelu("tanh"), Gelu("none"), Silu()]
each_activation = pytest.mark.parametrize("activation", ACTIVATIONS, ids=repr)
both_kinds = pytest.mark.parametrize("gated", [False, True])


@pytest.fixture(autouse=True)
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feedforward, "LEAST_ROWS", 3)
    monkeypatch.setattr(feedforward, "AT_ONCE", 1)


def made(gated: bool, bias: bool, dtype: torch.dtype = torch.float64) -> tuple[Tensor, list[Any], Any]:
    """Seven rows, which are three pieces: x, the maps into the layer, the one out of it."""
    torch.manual_seed(0)

    def leaf(*sizes: int) -> Tensor:
        return torch.randn(sizes, dtype=dtype).requires_grad_()

    into = [(leaf(5, 4), leaf(5) if bias else None) for _ in range(2 if gated else 1)]
    return leaf(7, 4), into, (leaf(4, 5), leaf(4) if bias else None)


def leaves(x: Tensor, into: list[Any], output: Any) -> list[Tensor]:
    return [one for one in (x, *(part for each in (*into, output) for part in each)) if one is not None]


@each_activation
@both_kinds
@pytest.mark.parametrize("bias", [False, True])
def test_values_and_gradients(activation: Activation, gated: bool, bias: bool) -> None:
    x, into, output = made(gated, bias)
    ours, plain = chunked_feed_forward(x, into, output, activation), plain_feed_forward(x, into, output, activation)
    torch.testing.assert_close(ours, plain)
    seed = torch.randn_like(plain)
    found, expected = (torch.autograd.grad(y, leaves(x, into, output), seed) for y in (ours, plain))
    torch.testing.assert_close(found, expected)


@both_kinds
def test_gradcheck(gated: bool) -> None:
    x, into, output = made(gated, True)

    def run(*_: Tensor) -> Tensor:
        return chunked_feed_forward(x, into, output, Gelu("none"))

    assert torch.autograd.gradcheck(run, tuple(leaves(x, into, output)))


@both_kinds
def test_in_fp32_only_the_order_of_sums_differs(gated: bool) -> None:
    x, into, output = made(gated, True, torch.float32)
    results = [
        torch.autograd.grad(run(x, into, output, Gelu()).square().sum(), leaves(x, into, output))
        for run in (chunked_feed_forward, plain_feed_forward)
    ]
    for ours, plain in zip(*results, strict=True):
        assert (ours - plain).norm() <= 1e-6 * plain.norm()


@both_kinds
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast(gated: bool, dtype: torch.dtype) -> None:
    x, into, output = made(gated, True, torch.float32)
    results = []
    for run in (chunked_feed_forward, plain_feed_forward):
        with torch.autocast("cpu", dtype):
            y = run(x, into, output, Silu())
        assert y.dtype == dtype
        results.append([y, *torch.autograd.grad(y.float().square().sum(), leaves(x, into, output))])
    for ours, plain in zip(*results, strict=True):
        assert ours.dtype == plain.dtype
        assert (ours - plain).norm() <= 2e-2 * plain.norm()


@both_kinds
def test_only_what_is_learned_gets_a_gradient(gated: bool) -> None:
    x, into, output = made(gated, True)
    frozen = [into[0][0], output[1], x]
    for one in frozen:
        one.requires_grad_(False)
    chunked_feed_forward(x, into, output, Gelu()).sum().backward()
    for one in leaves(x, into, output):
        assert (one.grad is None) == any(one is other for other in frozen)


@pytest.mark.parametrize("name", ["relu", "relu2", "gelu", "swiglu", "geglu"])
def test_a_layer_keeps_no_activation(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = filled(name)
    x = torch.randn(7, 4, requires_grad=True)
    kept: dict[bool, list[int]] = {}
    for in_pieces in (True, False):
        if not in_pieces:
            monkeypatch.setattr(feedforward, "LEAST_ROWS", 100)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda one, s=sizes: s.append(one.numel()) or one, lambda one: one
        ):
            layer(x, Flow(start=0, length=7))
        kept[in_pieces] = sizes
    wide = 2 if name in ("swiglu", "geglu") else 1
    assert kept[True].count(7 * 6) == wide < kept[False].count(7 * 6)


def filled(name: str) -> Any:
    torch.manual_seed(1)
    layer = FEED_FORWARDS[name](d_model=4, d_ff=6, bias=True)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


@pytest.mark.parametrize("name", ["relu", "gelu", "swiglu"])
def test_a_replaced_or_a_watched_map_is_called(name: str) -> None:
    class Doubled(Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    flow, x = Flow(start=0, length=7), torch.randn(7, 4)
    layer = filled(name)
    before = layer(x, flow)
    seen: list[Tensor] = []
    handle = layer.output.register_forward_hook(lambda module, inputs, y: seen.append(y))
    torch.testing.assert_close(layer(x, flow), before)
    assert len(seen) == 1
    handle.remove()
    doubled = Doubled(d_in=6, d_out=4, bias=True)
    doubled.load_state_dict(layer.output.state_dict())
    layer.output = doubled
    torch.testing.assert_close(layer(x, flow), 2 * before)


def test_for_whom_it_is() -> None:
    layer = ReluFeedForward(d_model=4, d_ff=6)
    maps = [(layer.input.weight, None), (layer.output.weight, None)]
    assert serves(torch.ones(2, 2, 4), maps)
    assert not serves(torch.ones(1, 3, 4), maps)  # one piece
    assert not serves(torch.ones(7, 4, device="meta"), maps)
    with torch.no_grad():
        assert not serves(torch.ones(7, 4), maps)


@pytest.mark.parametrize("name", ["gelu", "swiglu"])
def test_under_activation_checkpointing(name: str) -> None:
    layer, flow = filled(name), Flow(start=0, length=7)
    x = torch.randn(7, 4, requires_grad=True)
    learned = (x, *layer.parameters())
    plain = torch.autograd.grad(layer(x, flow).square().sum(), learned)
    again = torch.utils.checkpoint.checkpoint(layer, x, flow, use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad(again.square().sum(), learned), plain, rtol=0, atol=0)
