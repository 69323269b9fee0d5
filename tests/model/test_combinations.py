"""Every combination of pieces trains, generates from a cache as without one, and survives saving."""

from itertools import product

import pytest
import safetensors.torch
import torch

from tessera.model.attention import ATTENTIONS
from tessera.model.decoder import PLACEMENTS, Decoder
from tessera.model.feedforward import FEED_FORWARDS
from tessera.model.norm import NORMS
from tessera.model.position import POSITIONS
from tessera.ops.loss import linear_cross_entropy

VARIANTS = {
    "full": {},
    "grouped": {"n_kv_heads": 2},
    "multi-query": {"n_kv_heads": 1},
    "window": {"window": 3},
}
ALL = list(product(POSITIONS, NORMS, PLACEMENTS, ATTENTIONS, VARIANTS, FEED_FORWARDS))
PREFILLS = [[1] * 10, [4, 3, 1, 1, 1], [10]]


def build(choice: tuple[str, ...], seed: int) -> Decoder:
    position, norm, placement, attention, variant, feed_forward = choice
    torch.manual_seed(seed)
    return Decoder(
        n_vocab=13,
        context=10,
        d_model=16,
        n_layers=2,
        n_heads=4,
        d_ff=24,
        position=position,
        norm=norm,
        placement=placement,
        attention={"name": attention, **VARIANTS[variant]},
        feed_forward=feed_forward,
        init={"name": "normal", "std": 0.2},
    )


@pytest.mark.parametrize("choice", ALL, ids="-".join)
def test_trains_caches_and_saves(choice: tuple[str, ...]) -> None:
    model = build(choice, seed=1)
    ids = torch.randint(13, (2, 11))
    train_three_steps(model, ids)
    with torch.no_grad():
        logits = model(ids[:, :-1])
        for sizes in PREFILLS:
            cache = model.new_cache(2)
            parts = [model(part, cache) for part in ids[:, :-1].split(sizes, dim=1)]
            assert (torch.cat(parts, dim=1) - logits).abs().max() <= 1e-5
        other = build(choice, seed=2)
        other.load_state_dict(safetensors.torch.load(safetensors.torch.save(model.state_dict())))
        assert torch.equal(other(ids[:, :-1]), logits)


def train_three_steps(model: Decoder, ids: torch.Tensor) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(4):
        hidden_ND = model.hidden(ids[:, :-1]).flatten(0, 1)
        loss = linear_cross_entropy(hidden_ND, model.head_weight, ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        without = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
        assert not without, "no gradient reaches them"
        optimizer.step()
    assert losses[3] < losses[0]
