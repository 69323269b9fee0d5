"""What is captured decides the next step: put back elsewhere, the very same future follows."""

import json
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tessera.config import build
from tessera.data.batches import EpochWindows
from tessera.data.shards import Shard
from tessera.errors import InputError
from tessera.model.decoder import Decoder
from tessera.objectives import NextToken
from tessera.optim import OPTIMIZERS, groups
from tessera.train.checkpoint import capture, restore, seed_generators

N_VOCAB = 13
TOKENS = np.random.default_rng(0).integers(0, N_VOCAB, 200).astype(np.uint16)


def made(
    seed: int, optimizer: str = "adamw", settings: dict[str, Any] | None = None, **shape: Any
) -> tuple[NextToken, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    shape = {"context": 8, "d_model": 8, "n_layers": 1, "n_heads": 2, "dropout": 0.2} | shape
    data = EpochWindows(shard=Shard(TOKENS), context=8, batch_size=3, seed=5)
    objective = NextToken(model=Decoder(n_vocab=N_VOCAB, **shape), data=data)
    spec = {"name": optimizer, "lr": 0.01, **(settings or {})}
    return objective, build(OPTIMIZERS, spec, params=groups(objective, 0.1))


def steps(objective: NextToken, optimizer: torch.optim.Optimizer, n: int) -> list[float]:
    losses = []
    batches = objective.batches()
    for _ in range(n):
        loss, _ = objective(next(batches))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def kept(objective: NextToken, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A copy, as a store gives it back: other memory, and the dictionary through JSON."""
    tensors, meta = capture(objective, optimizer)
    return {name: tensor.clone() for name, tensor in tensors.items()}, json.loads(json.dumps(meta))


@pytest.mark.parametrize("shape", [{}, {"tied": True, "position": "learned", "norm": "layer", "bias": True}])
@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_a_restored_state_goes_on_as_the_captured_one(optimizer: str, shape: dict[str, Any]) -> None:
    settings = {"momentum": 0.9} if optimizer.startswith("sgd") else {}
    first = made(0, optimizer, settings, **shape)
    steps(*first, 3)
    tensors, meta = kept(*first)
    expected = steps(*first, 4)
    final, final_meta = kept(*first)

    second = made(1, optimizer, settings, **shape)
    steps(*second, 2)  # its own state must go, not be mixed in
    restore(*second, tensors, meta)
    assert steps(*second, 4) == expected
    again, again_meta = kept(*second)
    assert again.keys() == final.keys()
    assert [name for name in final if not torch.equal(final[name], again[name])] == []
    assert again_meta == final_meta


def test_the_state_is_named_by_group_and_parameter() -> None:
    objective, optimizer = made(0)
    steps(objective, optimizer, 1)
    tensors, meta = capture(objective, optimizer)
    names = [name for name, _ in objective.named_parameters()]
    assert {name for name in tensors if name.startswith("model.")} == set(objective.state_dict()) - {"_extra_state"}
    for part in ("step", "exp_avg", "exp_avg_sq"):
        assert {f"optimizer.{part}.{name}" for name in names} <= tensors.keys()
    assert sorted(name for group in meta["optimizer"]["groups"] for name in group["params"]) == sorted(names)
    assert meta["cursor"] == objective.data.state()


def test_all_three_generators_go_on_where_they_stood() -> None:
    objective, optimizer = made(0)

    def draws() -> list[float]:
        return [random.gauss(0, 1), float(np.random.randn()), random.random(), torch.randn(()).item()]

    random.gauss(0, 1)  # leaves a second value behind in both, which is a part of their state
    np.random.randn()
    tensors, meta = kept(objective, optimizer)
    expected = draws()
    seed_generators(123)
    assert draws() != expected
    restore(objective, optimizer, tensors, meta)
    assert draws() == expected


def test_a_seed_decides_all_three_generators() -> None:
    drawn = []
    for seed in (7, 7, 8, 2**40):
        seed_generators(seed)
        drawn.append([random.random(), float(np.random.rand()), torch.rand(()).item()])
    assert drawn[0] == drawn[1]
    for column in zip(*drawn, strict=True):
        assert len(set(column)) == 3


def test_restoring_copies_the_optimizer_state() -> None:
    first = made(0)
    steps(*first, 2)
    tensors, meta = kept(*first)
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    second = made(1)
    restore(*second, tensors, meta)
    steps(*second, 2)
    assert all(torch.equal(tensors[name], before[name]) for name in before)


@pytest.mark.parametrize("shape", [{"d_model": 16}, {"n_layers": 2}, {"bias": True}, {"tied": True}])
def test_another_model_is_refused_and_left_as_it_was(shape: dict[str, Any]) -> None:
    first = made(0)
    steps(*first, 1)
    tensors, meta = kept(*first)
    other, optimizer = made(1, **shape)
    before = {name: value.clone() for name, value in other.model.state_dict().items()}
    with pytest.raises(InputError, match=r"another model: 'model\.[\w.]+' differs"):
        restore(other, optimizer, tensors, meta)
    assert all(torch.equal(value, before[name]) for name, value in other.model.state_dict().items())


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_another_optimizer_is_refused(optimizer: str) -> None:
    first = made(0)
    steps(*first, 1)
    with pytest.raises(InputError, match="another optimizer"):
        restore(*made(0, optimizer), *kept(*first))


def test_other_groups_are_refused() -> None:
    objective, optimizer = made(0)
    steps(objective, optimizer, 1)
    one_group = build(OPTIMIZERS, "adamw", params=list(objective.parameters()), lr=0.01)
    with pytest.raises(InputError, match="another optimizer: it groups the parameters differently"):
        restore(objective, one_group, *kept(objective, optimizer))


def test_a_cursor_of_other_data_is_refused() -> None:
    objective, optimizer = made(0)
    tensors, meta = kept(objective, optimizer)
    objective.data = EpochWindows(shard=Shard(TOKENS[:-20]), context=8, batch_size=3, seed=5)
    with pytest.raises(InputError, match="n_tokens was 200 and is now 180"):
        restore(objective, optimizer, tensors, meta)
