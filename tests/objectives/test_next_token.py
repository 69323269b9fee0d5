"""The next-token objective against torch's cross-entropy over all logits, and its cursor."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tessera.data.batches import IGNORE, Batch
from tessera.errors import InputError
from tessera.model.decoder import Decoder
from tessera.objectives import OBJECTIVES, Objective


class Counting:
    """Batch number i is made of i alone."""

    def __init__(self) -> None:
        self.cursor = 0

    def __next__(self) -> Batch:
        generator = torch.Generator().manual_seed(self.cursor)
        self.cursor += 1
        tokens_BS = torch.randint(0, 11, (3, 6), generator=generator)
        return Batch(tokens_BS[:, :-1].clone(), tokens_BS[:, 1:].clone())

    def state(self) -> dict[str, int]:
        return {"cursor": self.cursor}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.cursor = state["cursor"]


def small(tied: bool = False) -> Decoder:
    torch.manual_seed(0)
    return Decoder(n_vocab=11, context=8, d_model=16, n_layers=1, n_heads=2, tied=tied).double()


def gradients(model: Decoder) -> dict[str, torch.Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("tied", [False, True])
def test_loss_and_gradients_equal_those_over_all_logits(tied):
    batch = next(Counting())
    batch.targets_BT[0, 2:] = IGNORE
    batch.targets_BT[2, 0] = IGNORE
    model, reference = small(tied), small(tied)
    loss, metrics = OBJECTIVES["next-token"](model=model, data=Counting())(batch)
    expected = F.cross_entropy(reference(batch.inputs_BT).flatten(0, 1), batch.targets_BT.flatten())
    torch.testing.assert_close(loss, expected)
    assert metrics["loss"] == loss
    assert not metrics["loss"].requires_grad
    loss.backward()
    expected.backward()
    torch.testing.assert_close(gradients(model), gradients(reference))


def test_a_batch_without_a_target_is_an_error():
    batch = next(Counting())
    batch.targets_BT.fill_(IGNORE)
    with pytest.raises(InputError, match="nothing to learn"):
        OBJECTIVES["next-token"](model=small(), data=Counting())(batch)


def test_the_cursor_travels_in_the_state():
    objective = OBJECTIVES["next-token"](model=small(), data=Counting())
    batches = objective.batches()
    for _ in range(3):
        next(batches)
    state = objective.state_dict()
    state["_extra_state"] = json.loads(json.dumps(state["_extra_state"]))
    resumed = OBJECTIVES["next-token"](model=small(), data=Counting())
    resumed.load_state_dict(state)
    for _ in range(2):
        assert torch.equal(next(resumed.batches()).inputs_BT, next(batches).inputs_BT)


@pytest.mark.parametrize("name", ["next-token", "sft"])
def test_its_parameters_are_the_models(name):
    objective = OBJECTIVES[name](model=small(), data=Counting())
    assert [key for key, _ in objective.named_parameters()] == [f"model.{key}" for key, _ in small().named_parameters()]


@pytest.mark.parametrize("name", ["next-token", "sft"])
def test_learns_one_batch(name):
    objective = OBJECTIVES[name](model=small(), data=Counting())
    batch = next(objective.batches())
    optimizer = torch.optim.AdamW(objective.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        loss, _ = objective(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_an_objective_without_a_loss_cannot_be_made() -> None:
    class NoLoss(Objective):
        pass

    with pytest.raises(TypeError, match="forward"):
        NoLoss(model=small(), data=Counting())


def test_a_model_that_is_no_decoder_hears_nothing_of_an_update() -> None:
    class Mean(Objective):
        def forward(self, batch):
            return self.model(batch.inputs_BT.float()).mean(), {}

    Mean(model=torch.nn.Linear(5, 1), data=Counting()).updated()
