"""Steps that must not be made: nothing is updated, and stop, skip and rewind do what they say."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tessera.config import build
from tessera.data.batches import Batch
from tessera.errors import DivergedError, SettingError
from tessera.model.decoder import Decoder
from tessera.objectives import NextToken
from tessera.optim import OPTIMIZERS, groups
from tessera.store.run import Run
from tessera.train.nonfinite import NOT_FINITE, SPIKE, WITHIN, Guard, what_is_not_finite
from tessera.train.settings import TrainSettings
from tessera.train.spikes import SpikeDetector
from tessera.train.trainer import Trainer

N_VOCAB, CONTEXT = 13, 8


@pytest.mark.parametrize(
    ("losses", "norm", "said"),
    [
        ([1.0, 2.0], 3.0, None),
        ([1.0, math.nan], math.nan, "the loss of micro-batch 2 of 2 is nan"),
        ([-math.inf, 1.0], 1.0, "the loss of micro-batch 1 of 2 is -inf"),
        ([1.0], math.inf, "the gradient's norm is inf"),
    ],
)
def test_what_is_not_finite_is_said(losses: list[float], norm: float, said: str | None) -> None:
    assert what_is_not_finite(losses, norm) == said


def test_so_many_and_no_more_are_passed_over_within_a_stretch_of_steps() -> None:
    guard = Guard(on_nonfinite="skip", limit=3)
    actions = []
    for step in (5, 5, 9, 5 + WITHIN, 9 + WITHIN, 10 + WITHIN, 11 + WITHIN):
        trouble = guard.judge(step, [math.nan], math.nan, math.nan)
        assert trouble is not None
        actions.append(trouble.action)
    assert actions == ["skip"] * 6 + ["stop"]
    assert "passed over 3 times before" in trouble.what


def test_the_limit_survives_a_resume() -> None:
    guard, again = Guard(on_nonfinite="skip", limit=1), Guard(on_nonfinite="skip", limit=1)
    guard.judge(3, [math.nan], math.nan, math.nan)
    again.restore(json.loads(json.dumps(guard.state())))
    trouble = again.judge(4, [math.nan], math.nan, math.nan)
    assert trouble is not None
    assert trouble.action == "stop"


@pytest.mark.parametrize("on_spike", ["off", "record", "skip", "rewind"])
def test_what_a_spike_leads_to(on_spike: Any) -> None:
    guard = Guard(on_spike=on_spike, spikes=SpikeDetector(window=4))
    for step, loss in enumerate([3.0, 3.1, 2.9, 3.0], 1):
        assert guard.judge(step, [loss], loss, 1.0) is None
    trouble = guard.judge(5, [9.0], 9.0, 1.0)
    if on_spike == "off":
        assert trouble is None
        return
    assert trouble is not None
    assert (trouble.kind, trouble.action) == (SPIKE, on_spike)
    assert trouble.is_learned_from == (on_spike == "record")
    assert "the loss 9.0000 is" in trouble.what
    remembered = guard.spikes.state()["losses"]
    assert (9.0 in remembered) == (on_spike == "record")  # the loss of a step that is not made is no measure


class Numbered:
    """Batch k is a function of k."""

    def __init__(self) -> None:
        self.cursor = 0

    def __next__(self) -> Batch:
        generator = torch.Generator().manual_seed(self.cursor)
        self.cursor += 1
        tokens_BS = torch.randint(0, N_VOCAB, (2, CONTEXT + 1), generator=generator)
        return Batch(tokens_BS[:, :-1], tokens_BS[:, 1:])

    def state(self) -> dict[str, int]:
        return {"cursor": self.cursor}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.cursor = state["cursor"]


class Sick(NextToken):
    """The batches `bad` (by number, from 1) give a loss that is NaN, one that is a hundred times too large, or one
    that is a number and whose gradient is none."""

    bad: Mapping[int, str]
    learned: list[int]

    def forward(self, batch: Batch) -> Any:
        loss, metrics = super().forward(batch)
        number = self.data.cursor  # type: ignore[attr-defined]
        self.learned.append(number)
        if self.bad.get(number) == "gradient":
            return loss + torch.sqrt(loss * 0.0), metrics  # the root's slope at 0 is infinite: times 0, NaN
        factor = {"nan": math.nan, "spike": 100.0}.get(self.bad.get(number, ""))
        return (loss, metrics) if factor is None else (loss * factor, {"loss": loss.detach() * factor})


def trainer_of(run: Run | None, bad: Mapping[int, str], *, model: dict[str, Any] | None = None, **settings: Any) -> Any:
    torch.manual_seed(0)
    shape = {"context": CONTEXT, "d_model": 8, "n_layers": 1, "n_heads": 2, "dropout": 0.2} | (model or {})
    objective = Sick(model=Decoder(n_vocab=N_VOCAB, **shape), data=Numbered())
    objective.bad, objective.learned = bad, []
    trainer = Trainer(
        objective=objective,
        optimizer=build(OPTIMIZERS, "adamw", params=groups(objective, 0.0), lr=0.01),
        schedule=lambda step, steps: 1.0,
        settings=TrainSettings(**({"steps": 12, "save_every": 4, "eval_every": 0, "keep": 5} | settings)),
        checkpoints=run.checkpoints if run else None,
        log=run,
    )
    trainer.said = []
    trainer.say = trainer.said.append
    return trainer


def weights(trainer: Any) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in trainer.objective.model.state_dict().items()}


def optimizer_state(trainer: Any) -> dict[str, Tensor]:
    states = enumerate(trainer.optimizer.state.values())
    return {f"{number}/{name}": value.clone() for number, state in states for name, value in state.items()}


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("bad", "said"), [("nan", "the loss .* is nan"), ("gradient", "the gradient's norm is nan")])
def test_stop_leaves_the_optimizer_untouched_and_notes_the_event_and_the_batches(
    make_run: Callable[..., Run], bad: str, said: str
) -> None:
    run = make_run()
    trainer = trainer_of(run, {6: bad})
    kept: dict[int, dict[str, Tensor]] = {}
    trainer.watch = lambda progress: kept.update({progress.step: weights(trainer) | optimizer_state(trainer)})
    with pytest.raises(DivergedError, match=rf"step 6: {said} .*\{{'cursor': 6\}}"):
        trainer.run()
    assert same(weights(trainer) | optimizer_state(trainer), kept[5])
    assert {int(state["step"]) for state in trainer.optimizer.state.values()} == {5}
    (event,) = run.events()
    assert (event.step, event.kind, event.action, event.cursor) == (6, NOT_FINITE, "stop", {"cursor": 6})
    assert event.drawn == {"cursor": {"cursor": 5}, "rows": [2]}
    assert "is nan" in event.detail


EXPERTS = {"feed_forward": {"name": "moe", "n_experts": 4, "n_active": 1, "d_expert": 8, "balance": "bias"}}


@pytest.mark.parametrize("model", [{}, EXPERTS], ids=["dense", "experts"])
@pytest.mark.parametrize("settings", [{"on_nonfinite": "skip"}, {"on_nonfinite": "skip", "accumulate": 2}])
def test_skip_is_as_if_the_batches_had_not_been_there(
    make_run: Callable[..., Run], settings: dict[str, Any], model: dict[str, Any]
) -> None:
    """Without dropout, whose draws are gone, the weights are those of a run on the other batches."""
    run, accumulate = make_run(), settings.get("accumulate", 1)
    bad = {accumulate * 5: "nan", accumulate * 6: "nan"}
    trainer = trainer_of(run, bad, model={"dropout": 0.0} | model, **settings)
    assert trainer.run() == "finished"
    assert trainer.step == 12
    left_out = {number for end in bad for number in range(end - accumulate + 1, end + 1)}

    class Others(Numbered):
        def __next__(self) -> Batch:
            while self.cursor + 1 in left_out:
                self.cursor += 1
            return super().__next__()

    other = trainer_of(None, {}, model={"dropout": 0.0} | model, **settings)
    other.objective.data = Others()
    other.run()
    assert same(weights(trainer), weights(other))
    assert [(event.step, event.action) for event in run.events()] == [(5, "skip"), (5, "skip")]
    assert [event.cursor for event in run.events()] == [{"cursor": accumulate * 5}, {"cursor": accumulate * 6}]
    assert [step for step, _ in run.metrics("loss")] == list(range(1, 13))
    assert any("step 5: the loss" in line and "skipped" in line for line in trainer.said)


@pytest.mark.parametrize("average", [{}, {"ema": 0.9}], ids=["", "ema"])
@pytest.mark.parametrize(("kind", "settings"), [("nan", {"on_nonfinite": "rewind"}), ("spike", {"on_spike": "rewind"})])
def test_rewind_goes_back_to_the_checkpoint_and_on_with_the_batches_that_follow(
    make_run: Callable[..., Run], kind: str, settings: dict[str, Any], average: dict[str, Any]
) -> None:
    run = make_run()
    steps = {"steps": 50, "save_every": 10}
    trainer = trainer_of(run, {46: kind}, **steps, **settings, **average)
    assert trainer.run() == "finished"
    assert trainer.objective.learned == [*range(1, 47), *range(47, 57)]  # 40 was saved; 41 to 46 are passed over
    (event,) = run.events()
    assert (event.step, event.action, event.cursor) == (46, "rewind", {"cursor": 46})
    assert event.drawn == {"cursor": {"cursor": 45}, "rows": [2]}
    assert "went back to step 40" in trainer.said[-1]
    assert [step for step, _ in run.metrics("loss")] == list(range(1, 51))

    # The reference: a run that is stopped at 40, and given the batches from 47 on by hand.
    first = trainer_of(make_run(name="first"), {}, **steps | {"steps": 40}, **average)
    first.run()
    second = trainer_of(None, {}, **steps, **average)
    second.checkpoints = first.checkpoints
    second.resume()
    second.objective.data.cursor = 46
    second.checkpoints = None
    assert second.run() == "finished"
    assert same(weights(trainer), weights(second))


def test_a_run_that_is_killed_right_after_a_rewind_does_not_meet_the_same_batches_again(
    make_run: Callable[..., Run],
) -> None:
    whole = trainer_of(make_run(name="whole"), {6: "nan"}, on_nonfinite="rewind")
    whole.run()

    run = make_run()
    killed = trainer_of(run, {6: "nan"}, on_nonfinite="rewind")

    def kill(line: str) -> None:
        raise KeyboardInterrupt

    killed.say = kill  # it is said when all is done
    with pytest.raises(KeyboardInterrupt):
        killed.run()
    resumed = trainer_of(run, {6: "nan"}, on_nonfinite="rewind")
    torch.manual_seed(77)
    resumed.resume()
    assert (resumed.step, resumed.objective.data.cursor) == (4, 6)
    resumed.run()
    assert 6 not in resumed.objective.learned
    assert same(weights(resumed), weights(whole))
    assert len(run.events()) == 1


def test_rewind_before_the_first_interval_goes_back_to_the_start(make_run: Callable[..., Run]) -> None:
    trainer = trainer_of(make_run(), {2: "nan"}, on_nonfinite="rewind")
    assert trainer.run() == "finished"
    assert trainer.objective.learned == list(range(1, 15))


def test_rewind_without_checkpoints_is_refused_before_the_start() -> None:
    with pytest.raises(SettingError, match=r"train\.on_nonfinite = 'rewind'"):
        trainer_of(None, {}, on_nonfinite="rewind").run()


def test_batches_that_are_all_bad_stop_it(make_run: Callable[..., Run]) -> None:
    trainer = trainer_of(make_run(), dict.fromkeys(range(6, 99), "nan"), on_nonfinite="skip", max_passed_over=4)
    with pytest.raises(DivergedError, match="passed over 4 times before"):
        trainer.run()
    assert trainer.objective.learned == list(range(1, 11))


def test_a_spike_is_recorded_and_learned_from_all_the_same(make_run: Callable[..., Run]) -> None:
    run = make_run()
    settings = {"steps": 60, "save_every": 0}
    recording = trainer_of(run, {50: "spike"}, **settings)
    recording.run()
    off = trainer_of(None, {50: "spike"}, **settings, on_spike="off")
    off.run()
    assert same(weights(recording), weights(off))
    (event,) = run.events()
    assert (event.step, event.kind, event.action) == (50, SPIKE, "record")


def test_an_event_that_is_met_again_is_noted_once(tmp_path: Path, make_run: Callable[..., Run]) -> None:
    run = make_run()
    for _ in range(2):
        run.add_event(3, NOT_FINITE, action="skip", detail="a", cursor={"step": 3})
    run.add_event(3, NOT_FINITE, action="skip", detail="a", cursor={"step": 4})
    run.add_event(4, "out of memory", action="b", detail="c")
    run.truncate_after(0)
    assert [(event.step, event.cursor) for event in run.events()] == [(3, {"step": 3}), (3, {"step": 4}), (4, None)]
