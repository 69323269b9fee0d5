"""What a step measures, and what learns without a gradient: logged, heard of, and the same after a resume."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from tessera.config import build
from tessera.data.batches import IGNORE, Batch
from tessera.data.rows import DocumentRows
from tessera.model.decoder import Decoder
from tessera.objectives import NextToken
from tessera.optim import OPTIMIZERS, groups
from tessera.store.run import Run
from tessera.train.metrics import on_host
from tessera.train.progress import Log, Progress
from tessera.train.settings import TrainSettings
from tessera.train.trainer import Trainer

N_VOCAB = 13


class Given:
    """The batches of a list, over and over."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.batches = batches
        self.cursor = 0

    def __next__(self) -> Batch:
        self.cursor += 1
        return self.batches[(self.cursor - 1) % len(self.batches)]

    def state(self) -> dict[str, int]:
        return {"cursor": self.cursor}

    def restore(self, state: Any) -> None:
        self.cursor = state["cursor"]


class Notes(Log):
    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, step: int, values: dict[str, float]) -> None:
        self.rows.append((step, dict(values)))


def model_of(**shape: Any) -> Decoder:
    torch.manual_seed(0)
    return Decoder(n_vocab=N_VOCAB, **({"context": 8, "d_model": 8, "n_layers": 1, "n_heads": 2} | shape))


def trainer_of(
    model: Decoder, data: Any, settings: dict[str, Any], *, objective: type[NextToken] = NextToken, **parts: Any
) -> Trainer:
    learned = objective(model=model, data=data)
    optimizer = build(OPTIMIZERS, "adamw", params=groups(learned, 0.0), lr=0.02)
    parts = {"schedule": lambda step, steps: 1.0} | parts
    return Trainer(objective=learned, optimizer=optimizer, settings=TrainSettings(**settings), **parts)


def batches_of(lengths: Sequence[Sequence[int]]) -> list[Batch]:
    """A batch for each list: rows of 8 places of which so many are targets."""
    batches = []
    for seed, rows in enumerate(lengths):
        tokens_BS = torch.randint(0, N_VOCAB, (len(rows), 9), generator=torch.Generator().manual_seed(seed))
        targets_BT = tokens_BS[:, 1:].clone()
        for row, length in enumerate(rows):
            targets_BT[row, length:] = IGNORE
        batches.append(Batch(tokens_BS[:, :-1].clone(), targets_BT))
    return batches


EVEN = [[8, 8], [8, 8], [8, 8]]


class Measuring(NextToken):
    """Says of each batch how many targets it has; of those with more than 8 something else as well."""

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        loss, metrics = super().forward(batch)
        n = batch.n_targets
        extra = {"lr": 5.0, "vector": torch.tensor([n, 2 * n])} | ({"many": torch.tensor(n)} if n > 8 else {})
        return loss + 100.0, metrics | {"n": float(n)} | extra


def test_what_the_objective_measures_is_logged_as_a_mean_over_the_targets() -> None:
    log, data = Notes(), Given(batches_of([[8, 8], [2], [4, 5]]))
    seen: list[Progress] = []
    trainer_of(
        model_of(),
        data,
        {"steps": 1, "accumulate": 3, "detail_every": 1},
        objective=Measuring,
        log=log,
        watch=seen.append,
    ).run()
    (_, values), n, many = log.rows[0], (16**2 + 2**2 + 9**2) / 27, (16**2 + 9**2) / 25
    expected = {"n": n, "many": many, "vector.0": n, "vector.1": 2 * n}
    assert {name: values[name] for name in expected} == pytest.approx(expected)
    assert values["lr"] == 0.02  # the loop's own
    assert values["loss"] == seen[0].loss < 4.0  # and not the total, which is 100 more
    assert seen[0].metrics.keys() == {*expected, "lr"}


def test_figures_come_from_the_device_at_once_and_keep_their_value() -> None:
    metrics = {
        "a": torch.tensor(0.1),
        "b": 0.1,
        "c": torch.tensor([[1, 2]]),
        "d": torch.tensor(3.0, requires_grad=True),
    }
    values = on_host(metrics, like=torch.tensor(0.0))
    assert values == {"a": torch.tensor(0.1).item(), "b": torch.tensor(0.1).item(), "c.0": 1.0, "c.1": 2.0, "d": 3.0}
    assert on_host(metrics, like=torch.tensor(0.0), vectors=False).keys() == {"a", "b", "d"}
    assert on_host({}, like=torch.tensor(0.0)) == {}


def test_a_dense_model_logs_what_it_always_did() -> None:
    log = Notes()
    trainer_of(model_of(), Given(batches_of(EVEN)), {"steps": 2}, log=log).run()
    assert [list(values) for _, values in log.rows] == [["loss", "lr", "grad_norm", "tokens_per_second"]] * 2


def test_the_objective_hears_of_each_update_once_and_after_it() -> None:
    heard: list[Tensor] = []

    class Hearing(NextToken):
        def updated(self) -> None:
            super().updated()
            heard.append(self.model.head_weight.detach().clone())

    model = model_of()
    before = model.head_weight.detach().clone()
    trainer_of(model, Given(batches_of(EVEN)), {"steps": 3, "accumulate": 2}, objective=Hearing).run()
    assert len(heard) == 3
    assert not torch.equal(heard[0], before)
    assert torch.equal(heard[-1], model.head_weight)


MOE = {
    "feed_forward": {
        "name": "moe",
        "n_experts": 4,
        "d_expert": 8,
        "balance": "bias",
        "z_weight": 0.01,
        "capacity": 1.0,
    },
    "n_layers": 2,
    "n_future": 1,
    "dropout": 0.1,
}


def test_a_mixture_of_experts_says_its_loads_and_moves_its_bias() -> None:
    model, log = model_of(**MOE), Notes()
    settings = {"steps": 4, "accumulate": 2, "detail_every": 2}
    trainer_of(model, Given(batches_of(EVEN)), settings, log=log).run()
    detailed = [step for step, values in log.rows if any("expert_load" in name for name in values)]
    assert detailed == [2, 4]
    assert all("router_z_loss.0" in values for _, values in log.rows)
    values = log.rows[-1][1]
    for layer in range(3):
        loads = [values[f"expert_load.{layer}.{expert}"] for expert in range(4)]
        assert sum(loads) == pytest.approx(1.0)
        assert values[f"router_z_loss.{layer}"] > 0
        assert 0 <= values[f"share_dropped.{layer}"] < 1
    z = sum(values[f"router_z_loss.{layer}"] for layer in range(3))
    total = values["loss"] + 7 / 8 * values["loss_future_1"] + 0.01 * z
    assert values["total_loss"] == pytest.approx(total, rel=1e-5)
    biases = torch.stack([block.feed_forward.router_bias for block in (*model.blocks, *model.future)])
    assert biases.any(dim=1).all()
    steps = biases / 0.001  # each of 4 updates moves it by the rate, up or down
    torch.testing.assert_close(steps, steps.round(), atol=1e-3, rtol=0)
    assert steps.abs().max() <= 4.001


@pytest.mark.parametrize("cut", [1, 4])
def test_a_mixture_of_experts_goes_on_bit_for_bit(make_run: Callable[..., Run], cut: int) -> None:
    def made(log: Notes, **parts: Any) -> tuple[Decoder, Trainer]:
        model = model_of(**MOE)
        data = DocumentRows([[i % 13, 1, 2, i * i % 13, 5] for i in range(9)], context=8, batch_size=2, seed=1)
        settings = {"steps": 6, "accumulate": 2, "save_every": 1, "keep": 9, "detail_every": 1}
        return model, trainer_of(model, data, settings, log=log, **parts)

    whole_log, log, run = Notes(), Notes(), make_run()
    whole, trainer = made(whole_log, checkpoints=run.checkpoints)
    trainer.run()
    resumed, trainer = made(log, checkpoints=run.checkpoints)
    trainer.resume(cut)
    trainer.checkpoints = None
    trainer.run()
    state, expected = resumed.state_dict(), whole.state_dict()
    assert [name for name in expected if not torch.equal(state[name], expected[name])] == []
    assert any(value.any() for name, value in expected.items() if name.endswith("router_bias"))
    timed = "tokens_per_second"
    assert [{**values, timed: 0} for _, values in log.rows] == [
        {**values, timed: 0} for _, values in whole_log.rows[cut:]
    ]
