"""Activation checkpointing: the same loss and the same gradients, whatever the pieces leave in the flow."""

from typing import Any

import pytest
import torch

from tessera.model.decoder import Decoder
from tessera.model.flow import Flow

SHAPE = {"n_vocab": 31, "context": 16, "d_model": 16, "n_layers": 5, "n_heads": 4}
EXPERTS = {"name": "moe", "n_experts": 4, "n_active": 2, "d_expert": 8}
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "dropout": {"dropout": 0.2},
    "experts that balance by a bias": {"feed_forward": EXPERTS | {"balance": "bias"}},
    "experts that balance by a loss": {"feed_forward": EXPERTS | {"balance": "loss"}},
    "values of the first layer": {"attention": {"name": "gqa", "value_residual": True}},
    "a learned bias that layers share": {"position": "t5"},
    "further heads": {"n_future": 2},
    "gpt2": {"position": "learned", "norm": "layer", "feed_forward": "gelu", "tied": True, "bias": True},
    "latent attention": {"attention": "mla", "feed_forward": "geglu", "placement": "sandwich"},
    "a cap and sinks": {"attention": {"name": "gqa", "score_cap": 5.0, "sinks": True}, "placement": "parallel"},
    "windows": {"attention": {"name": "gqa", "window": 4, "qk_norm": True}},
}


def learned(every: int | None, shape: dict[str, Any], *, products: bool = True) -> tuple[Decoder, Flow, torch.Tensor]:
    torch.manual_seed(0)
    model = Decoder(**(SHAPE | shape)).train()
    model.recompute_every, model.recompute_products = every, products
    ids_BT = torch.randint(31, (3, 16), generator=torch.Generator().manual_seed(1))
    documents_BT = (ids_BT == 3).cumsum(dim=1)
    torch.manual_seed(2)
    flow = Flow.of(ids_BT, documents_BT=None if "position" in shape else documents_BT)
    x_BTD = model.trunk(ids_BT, flow=flow)
    loss = model.loss(model.final_norm(x_BTD), ids_BT) + sum(flow.losses)
    for h_BTD in model.future_hidden(x_BTD, flow):
        loss = loss + model.loss(h_BTD, ids_BT)
    loss.backward()
    return model, flow, loss


@pytest.mark.parametrize("every", [1, 2, 5, 9])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_loss_gradients_and_what_is_noted_are_the_same(every: int, shape: dict[str, Any]) -> None:
    plain, plain_flow, expected = learned(None, shape)
    model, flow, loss = learned(every, shape)
    assert loss.item() == expected.item()
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-7, msg=name)
    for (name, ours), theirs in zip(model.named_buffers(), plain.buffers(), strict=True):
        assert torch.equal(ours, theirs), name  # the load of the experts is counted once
    assert flow.figures.keys() == plain_flow.figures.keys()
    assert len(flow.losses) == len(plain_flow.losses)


def test_less_is_kept_for_the_backward_pass() -> None:
    kept = []
    for every in (None, 2):
        torch.manual_seed(0)
        model = Decoder(**SHAPE)
        model.recompute_every = every
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, sizes=sizes: sizes.append(x.numel()) or x, lambda x: x):
            model.trunk(torch.zeros(3, 16, dtype=torch.int64))
        kept.append(sum(sizes))
    assert kept[1] < 0.4 * kept[0]


def test_nothing_is_made_again_without_gradients() -> None:
    model = Decoder(**SHAPE).eval()
    ids_BT = torch.arange(16)[None]
    expected = model(ids_BT)
    model.recompute_every = 2
    with torch.inference_mode():
        assert torch.equal(model(ids_BT), expected)
        cache = model.new_cache(1)
        torch.testing.assert_close(model(ids_BT, cache), expected)


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_gradients_are_the_same_bit_for_bit_where_products_are_kept(every: int, shape: dict[str, Any]) -> None:
    plain, plain_flow, expected = learned(every, shape)
    model, flow, loss = learned(every, shape, products=False)
    assert loss.item() == expected.item()
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        assert ours.grad is None or torch.equal(ours.grad, theirs.grad), name
    for (name, ours), theirs in zip(model.named_buffers(), plain.buffers(), strict=True):
        assert torch.equal(ours, theirs), name
    assert flow.figures.keys() == plain_flow.figures.keys()
