"""Figures that are read one step late: the same run, bit for bit, as where each step is waited for."""

import dataclasses
import math
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tessera.config import build
from tessera.data.rows import DocumentRows
from tessera.errors import DivergedError
from tessera.model.decoder import Decoder
from tessera.objectives import NextToken
from tessera.optim import OPTIMIZERS, groups
from tessera.optim.schedule import Cosine
from tessera.store.run import Run
from tessera.train.progress import Progress
from tessera.train.settings import TrainSettings
from tessera.train.spikes import SpikeDetector
from tessera.train.trainer import Trainer

N_VOCAB, CONTEXT, STEPS = 13, 8, 11
EXPERTS = {"feed_forward": {"name": "moe", "n_experts": 3, "n_active": 1, "d_expert": 8}}


class Prone(NextToken):
    """The forward passes in `factors` (by number, from 1) have a loss so many times larger."""

    def __init__(self, **of: Any) -> None:
        super().__init__(**of)
        self.calls, self.factors, self.order = 0, {}, []  # type: ignore[var-annotated]

    def forward(self, batch: Any) -> Any:
        loss, metrics = super().forward(batch)
        if self.training:
            self.calls += 1
            self.order.append(f"pass {self.calls}")
            factor = self.factors.get(self.calls, 1.0)
            metrics["by the row"] = torch.arange(3.0) * loss.detach()
            loss, metrics["loss"] = loss * factor, metrics["loss"] * factor
        return loss, metrics


def trainer_of(
    run: Run | None = None,
    *,
    late: bool,
    factors: dict[int, float] | None = None,
    optimizer: str = "adamw",
    model: dict[str, Any] | None = None,
    **settings: Any,
) -> Any:
    torch.manual_seed(0)
    shape = {"context": CONTEXT, "d_model": 8, "n_layers": 1, "n_heads": 2, "d_ff": 12, "dropout": 0.2} | (model or {})
    texts = [[(7 * i + j * j) % N_VOCAB for j in range(2 + i % 8)] for i in range(30)]
    data = DocumentRows(texts, context=CONTEXT, batch_size=4)
    objective = Prone(model=Decoder(n_vocab=N_VOCAB, **shape), data=data)  # type: ignore[arg-type]
    objective.factors = factors or {}
    settings = {"accumulate": 2, "eval_every": 4, "save_every": 3, "keep": STEPS, "detail_every": 2} | settings
    trainer: Any = Trainer(
        objective=objective,
        optimizer=build(OPTIMIZERS, optimizer, params=groups(objective, 0.1), lr=0.01),
        schedule=Cosine(warmup=2),
        settings=TrainSettings(**({"steps": STEPS} | settings)),
        checkpoints=run.checkpoints if run else None,
        log=run,
        validate=lambda: sum(float(one.detach().sum()) for one in objective.parameters()),
        late_anywhere=late,
    )
    trainer._step.guard.spikes = SpikeDetector(window=4)
    trainer.seen, trainer.said = [], []

    def watch(progress: Progress) -> None:
        trainer.seen.append(dataclasses.replace(progress, seconds=0.0))
        objective.order.append(f"told of {progress.step}")

    trainer.watch, trainer.say = watch, trainer.said.append
    return trainer


def trained(run: Run, **of: Any) -> Any:
    trainer = trainer_of(run, **of)
    assert trainer.run() == "finished"
    return trainer


def state(trainer: Any) -> dict[str, Tensor]:
    """Weights and the optimizer's state."""
    own = {name: value.detach().clone() for name, value in trainer.objective.model.state_dict().items()}
    for number, values in enumerate(trainer.optimizer.state.values()):
        own |= {f"{number}.{key}": torch.as_tensor(value).clone() for key, value in values.items()}
    return own


def different(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]


def noted(run: Run) -> dict[str, Any]:
    """All that a run's log holds, but for what is different each time."""
    return {name: run.metrics(name) for name in run.metric_names() if name != "tokens_per_second"}


@pytest.mark.parametrize("clip", [1.0, None])
@pytest.mark.parametrize("optimizer", ["adamw", "adam"])
def test_it_is_the_same_run_bit_for_bit(make_run: Callable[..., Run], optimizer: str, clip: float | None) -> None:
    runs = [make_run(name=name) for name in ("at once", "late")]
    spike = {2 * 8: 100.0}  # is noted, and learned from
    at_once, late = (
        trained(run, late=late, factors=spike, optimizer=optimizer, clip=clip)
        for run, late in zip(runs, (False, True), strict=True)
    )
    assert different(state(late), state(at_once)) == []
    assert late.seen == at_once.seen
    assert [progress.step for progress in late.seen] == list(range(1, STEPS + 1))
    assert noted(runs[1]) == noted(runs[0])
    events = [[dataclasses.replace(event, written="") for event in run.events()] for run in runs]
    assert events[0] == events[1] != []
    assert runs[1].checkpoints.steps() == runs[0].checkpoints.steps() == [3, 6, 9, STEPS]
    for step in runs[0].checkpoints.steps():
        ours, theirs = runs[1].checkpoints.read(step), runs[0].checkpoints.read(step)
        assert different(dict(ours.tensors), dict(theirs.tensors)) == []
        assert ours.meta["guard"] == theirs.meta["guard"]
        assert ours.meta["cursor"] == theirs.meta["cursor"]


def test_a_step_is_told_of_when_the_next_one_has_begun_unless_something_is_due() -> None:
    late = trainer_of(late=True, accumulate=1, eval_every=4, steps=5)
    late.run()
    told = ["pass 1", "pass 2", "told of 1", "pass 3", "told of 2", "pass 4", "told of 3", "told of 4", "pass 5"]
    assert late.objective.order == [*told, "told of 5"]


@pytest.mark.parametrize("call", [2 * 5 - 1, 2 * 5])
@pytest.mark.parametrize("what", [math.nan, math.inf])
def test_a_step_that_is_not_finite_changes_nothing_nor_does_the_one_after_it(
    make_run: Callable[..., Run], call: int, what: float
) -> None:
    """It is met when the sixth step has begun; weights and optimizer are those after the fourth."""
    kept: dict[int, dict[str, Tensor]] = {}
    reference = trainer_of(late=False)
    reference.watch = lambda progress: kept.update({progress.step: state(reference)})
    reference.run()
    run = make_run()
    sick = trainer_of(run, late=True, factors={call: what})
    with pytest.raises(DivergedError, match=r"step 5: the loss of micro-batch [12] of 2 is (nan|inf)"):
        sick.run()
    assert sick.objective.calls == 2 * 6
    assert different(state(sick), kept[4]) == []
    (event,) = run.events()
    assert (event.step, event.action) == (5, "stop")
    assert [step for step, _ in run.metrics("loss")] == [1, 2, 3, 4]
    assert run.checkpoints.steps() == [3]


def test_a_signal_stops_it_with_all_figures_read(make_run: Callable[..., Run]) -> None:
    run = make_run()
    late = trainer_of(run, late=True, save_every=0, eval_every=0)
    late.drew = lambda step, cursor, rows: os.kill(os.getpid(), signal.SIGTERM) if step == 6 else None
    assert late.run() == "interrupted"
    assert run.checkpoints.steps() == [6]
    assert [step for step, _ in run.metrics("loss")] == [1, 2, 3, 4, 5, 6]


def test_it_is_resumed_bit_for_bit(make_run: Callable[..., Run]) -> None:
    whole, run = trainer_of(make_run(name="whole"), late=True), make_run(name="cut")
    whole.run()
    cut = trainer_of(run, late=True)
    cut.drew = lambda step, cursor, rows: os.kill(os.getpid(), signal.SIGTERM) if step == 7 else None
    assert cut.run() == "interrupted"
    resumed = trainer_of(run, late=True)
    resumed.resume()
    assert resumed.run() == "finished"
    assert different(state(resumed), state(whole)) == []
    assert resumed.seen == whole.seen[7:]


@pytest.mark.parametrize(
    "of",
    [
        {"optimizer": "muon"},
        {"ema": 0.9},
        {"on_nonfinite": "skip"},
        {"on_spike": "skip"},
        {"on_spike": "rewind"},
        {"model": EXPERTS},
    ],
    ids=str,
)
def test_what_must_be_known_before_the_next_step_is_read_at_once(of: dict[str, Any]) -> None:
    trainer = trainer_of(late=True, steps=2, accumulate=1, eval_every=0, **of | {"on_spike": of.get("on_spike", "off")})
    if of.get("on_spike") != "rewind":
        trainer.run()
        assert trainer.objective.order == ["pass 1", "told of 1", "pass 2", "told of 2"]
    assert trainer._late is None
