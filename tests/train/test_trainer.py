"""The loop: one step against a step by hand, what it looks up from and when, how it stops, and how it goes on."""

import math
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tessera.config import build
from tessera.data.batches import IGNORE, Batch
from tessera.data.rows import DocumentRows
from tessera.data.shards import Shard
from tessera.errors import DivergedError
from tessera.evaluate.loss import held_out_loss
from tessera.model.decoder import Decoder
from tessera.objectives import NextToken
from tessera.optim import OPTIMIZERS, groups
from tessera.optim.schedule import Cosine
from tessera.store.run import Run
from tessera.train.progress import Log, Progress
from tessera.train.settings import TrainSettings
from tessera.train.trainer import Trainer

N_VOCAB = 13
SHAPE = {"context": 8, "d_model": 8, "n_layers": 1, "n_heads": 2}
SHARD = Shard(np.random.default_rng(0).integers(0, N_VOCAB, 230).astype(np.uint16))


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

    def restore(self, state: Mapping[str, Any]) -> None:
        self.cursor = state["cursor"]


def model_of(seed: int = 0, **shape: Any) -> Decoder:
    torch.manual_seed(seed)
    return Decoder(n_vocab=N_VOCAB, **(SHAPE | shape))


def trainer_of(
    model: Decoder,
    data: Any,
    settings: dict[str, Any] | None = None,
    *,
    optimizer: str | dict[str, Any] = "sgd",
    lr: float = 0.1,
    objective: type[NextToken] = NextToken,
    **parts: Any,
) -> Trainer:
    learned = objective(model=model, data=data)
    made = build(OPTIMIZERS, optimizer, params=groups(learned, 0.0), lr=lr)
    parts = {"schedule": lambda step, steps: 1.0} | parts
    return Trainer(objective=learned, optimizer=made, settings=TrainSettings(**(settings or {})), **parts)


def padded_batches(lengths: Sequence[Sequence[int]]) -> list[Batch]:
    """A batch for each list: rows of 8 places of which so many are targets."""
    batches = []
    generator = torch.Generator().manual_seed(3)
    for rows in lengths:
        tokens_BS = torch.randint(0, N_VOCAB, (len(rows), 9), generator=generator)
        targets_BT = tokens_BS[:, 1:].clone()
        for row, length in enumerate(rows):
            targets_BT[row, length:] = IGNORE
        batches.append(Batch(tokens_BS[:, :-1].clone(), targets_BT))
    return batches


def one_big(batches: Sequence[Batch]) -> Batch:
    return Batch(torch.cat([b.inputs_BT for b in batches]), torch.cat([b.targets_BT for b in batches]))


def weights(model: Decoder) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def farthest(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((a[name].detach() - b[name].detach()).abs().max().item() for name in a)


def watched() -> tuple[list[Progress], Callable[[Progress], None]]:
    seen: list[Progress] = []
    return seen, seen.append


EVEN = [[8, 8], [8, 8], [8, 8]]
UNEVEN = [[8, 8, 8], [1], [3, 8], [2, 1]]


@pytest.mark.parametrize("lengths", [EVEN, UNEVEN], ids=["even", "uneven"])
def test_accumulated_micro_batches_are_the_step_of_one_big_batch_by_hand(lengths: list[list[int]]) -> None:
    batches, model = padded_batches(lengths), model_of()
    big = one_big(batches)
    reference = model_of()
    loss = F.cross_entropy(
        reference(big.inputs_BT).flatten(0, 1), big.targets_BT.flatten(), ignore_index=IGNORE, reduction="mean"
    )
    loss.backward()
    expected = {name: (p - 0.1 * p.grad).detach() for name, p in reference.named_parameters() if p.grad is not None}

    seen, watch = watched()
    settings = {"steps": 1, "accumulate": len(batches), "clip": None}
    trainer_of(model, Given(batches), settings, watch=watch).run()
    learned = {name: value for name, value in weights(model).items() if name in expected}
    assert farthest(learned, expected) <= 1e-6
    assert farthest(learned, dict(reference.named_parameters())) > 1e-4  # there was something to be equal in
    assert seen[0].loss == pytest.approx(loss.item(), abs=1e-6)
    gradients = [p.grad.flatten() for p in reference.parameters() if p.grad is not None]
    assert seen[0].grad_norm == pytest.approx(torch.cat(gradients).norm().item(), rel=1e-5)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_accumulating_equals_the_big_batch_over_steps(optimizer: str) -> None:
    """Rows of texts of many lengths: 2 and 2 and 1 of them in three micro-batches, or all 5 in one."""
    texts = [[1, 2, 3, 4, 5, 6, 7, 8], [9, 1], [2, 4, 6], [12, 11, 10, 9, 8, 7], [5, 5, 5, 1]]
    ends = []
    for batch_size, accumulate in ((5, 1), (2, 3)):
        model = model_of()
        rows = DocumentRows(texts, context=8, batch_size=batch_size, seed=1)
        trainer_of(model, rows, {"steps": 3, "accumulate": accumulate}, optimizer=optimizer, lr=1e-3).run()
        ends.append(weights(model))
    assert farthest(*ends) <= 1e-6
    assert farthest(ends[0], weights(model_of())) > 1e-4


def test_the_schedule_scales_each_groups_rate_from_its_own_peak() -> None:
    batches, model = padded_batches(EVEN), model_of()
    schedule = Cosine(warmup=3, floor=0.1)
    seen, watch = watched()
    trainer = trainer_of(model, Given(batches), {"steps": 9}, lr=0.2, schedule=schedule, watch=watch)
    peaks = [0.2 * (number + 1) for number in range(len(trainer.optimizer.param_groups))]
    for group, peak in zip(trainer.optimizer.param_groups, peaks, strict=True):
        group["lr"] = peak
    trainer = replace(trainer)  # a trainer takes the rates that it finds as the peaks
    rates = []
    trainer.optimizer.register_step_pre_hook(
        lambda optimizer, *_: rates.append([group["lr"] for group in optimizer.param_groups])
    )
    trainer.run()
    expected = [schedule(step, 9) for step in range(9)]
    assert rates == [[pytest.approx(peak * factor) for peak in peaks] for factor in expected]
    assert len(peaks) >= 2
    assert [progress.lr for progress in seen] == [pytest.approx(0.2 * factor) for factor in expected]
    assert expected[0] < expected[1] < expected[3] == 1.0 > expected[8]


@pytest.mark.parametrize("clip", [1e-3, 0.05, 100.0, None])
def test_clipping_limits_the_length_of_the_step(clip: float | None) -> None:
    model = model_of()
    before, (seen, watch) = weights(model), watched()
    trainer_of(model, Given(padded_batches(EVEN)), {"steps": 1, "clip": clip}, lr=1.0, watch=watch).run()
    after = weights(model)
    moved = math.sqrt(sum(float(((after[name] - before[name]) ** 2).sum()) for name in before))
    norm = seen[0].grad_norm
    assert norm > 0.1
    assert moved == pytest.approx(min(norm, clip or math.inf), rel=1e-3)


class NotFinite(NextToken):
    """The loss, or only its gradient, breaks at the fifth batch."""

    breaks = "loss"

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        loss, metrics = super().forward(batch)
        if self.data.cursor >= 5 and torch.equal(batch.inputs_BT, self.data.batches[4].inputs_BT):  # type: ignore[attr-defined]
            if self.breaks == "gradient":
                zero = (self.model.head_weight * 0.0).sum()
                return loss + zero.sqrt(), metrics  # 0, whose derivative is 0 / 0
            return loss * {"loss": math.nan, "infinite": math.inf}[self.breaks], metrics
        return loss, metrics


@pytest.mark.parametrize(
    ("breaks", "what"),
    [
        ("loss", "the loss of micro-batch 2 of 3 is nan"),
        ("infinite", "the loss of micro-batch 2 of 3 is inf"),
        ("gradient", "the gradient's norm is nan"),
    ],
)
def test_a_loss_that_is_not_finite_stops_before_the_update_and_names_the_batch(
    breaks: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NotFinite, "breaks", breaks)
    model, batches = model_of(), padded_batches([[8], [8], [8], [8], [7], [8]])
    kept: list[dict[str, Tensor]] = []
    trainer = trainer_of(
        model,
        Given(batches),
        {"steps": 10, "accumulate": 3},
        optimizer="adamw",
        objective=NotFinite,
        watch=lambda progress: kept.append(weights(model)),
    )
    with pytest.raises(DivergedError, match=r"step 2: .*cursor.*\{'cursor': 6\}") as raised:
        trainer.run()
    assert what in str(raised.value)
    assert raised.value.exit_code == 3
    assert len(kept) == 1
    assert farthest(weights(model), kept[0]) == 0.0
    assert {int(state["step"]) for state in trainer.optimizer.state.values()} == {1}
    assert trainer.step == 1
    assert all(parameter.grad is None for parameter in model.parameters())


class Notes(Log):
    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, step: int, values: dict[str, float]) -> None:
        self.rows.append((step, dict(values)))


@pytest.mark.parametrize(
    ("every", "validated", "sampled", "saved"),
    [
        ({"eval_every": 3, "sample_every": 4, "save_every": 5}, [3, 6, 8], [4, 8], [5, 8]),
        ({"eval_every": 0, "sample_every": 0, "save_every": 0}, [8], [], [8]),
        ({"eval_every": 4, "sample_every": 100, "save_every": 4}, [4, 8], [], [4, 8]),
    ],
)
def test_it_validates_samples_and_saves_when_it_should(
    make_run: Callable[..., Run], every: dict[str, int], validated: list[int], sampled: list[int], saved: list[int]
) -> None:
    model, log, run = model_of(dropout=0.5), Notes(), make_run()
    modes: list[bool] = []
    calls: list[int] = []
    seen, watch = watched()

    def validate() -> float:
        modes.append(model.training)
        return 10.0 - len(modes)

    def sample(step: int) -> None:
        modes.append(model.training)
        calls.append(step)

    trainer = trainer_of(
        model,
        Given(padded_batches(EVEN)),
        {"steps": 8, "keep": 10, **every},
        validate=validate,
        sample=sample,
        log=log,
        checkpoints=run.checkpoints,
        watch=watch,
    )
    model.eval()
    assert trainer.run() == "finished"
    assert model.training
    assert modes == [False] * (len(validated) + len(sampled))
    assert [step for step, values in log.rows if "validation_loss" in values] == validated
    assert calls == sampled
    assert run.checkpoints.steps() == saved
    assert [progress.step for progress in seen if progress.saved] == saved
    assert [step for step, _ in log.rows] == list(range(1, 9))
    assert [values["loss"] for _, values in log.rows] == [progress.loss for progress in seen]
    assert all(values.keys() >= {"loss", "lr", "grad_norm", "tokens_per_second"} for _, values in log.rows)
    assert seen[-1].validation == log.rows[-1][1]["validation_loss"] == trainer.validation


def test_looking_up_does_not_change_what_is_learned() -> None:
    """With dropout every draw from the global generator counts: validation must not move it."""
    ends = []
    for eval_every in (0, 1):
        model = model_of(dropout=0.3)
        torch.manual_seed(4)
        batches = padded_batches(EVEN)
        trainer = trainer_of(
            model,
            Given(batches),
            {"steps": 6, "eval_every": eval_every},
            validate=lambda model=model, batches=batches: held_out_loss(model, batches).mean,
        )
        trainer.run()
        ends.append(weights(model))
    assert farthest(*ends) == 0.0


def test_the_best_checkpoint_stays_and_is_marked(make_run: Callable[..., Run]) -> None:
    run, figures = make_run(), iter([3.0, 1.0, 2.0, 1.5, 4.0])
    settings = {"steps": 5, "eval_every": 1, "save_every": 1, "keep": 2}
    trainer_of(
        model_of(),
        Given(padded_batches(EVEN)),
        settings,
        validate=lambda: next(figures),
        checkpoints=run.checkpoints,
    ).run()
    assert run.checkpoints.best() == 2
    assert run.checkpoints.steps() == [2, 4, 5]


def test_a_kill_between_the_best_checkpoint_and_its_mark_loses_nothing(
    make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, settings = make_run(), {"steps": 2, "eval_every": 1, "save_every": 1}

    def killed(step: int) -> None:
        raise SystemExit

    parts = {"validate": lambda: 1.0, "checkpoints": run.checkpoints}
    with monkeypatch.context() as patch:
        patch.setattr(run.checkpoints, "mark_best", killed)
        with pytest.raises(SystemExit):
            trainer_of(model_of(), Given(padded_batches(EVEN)), settings, **parts).run()
    assert run.checkpoints.best() is None
    trainer = trainer_of(model_of(), Given(padded_batches(EVEN)), settings, **parts)
    trainer.resume()
    assert run.checkpoints.best() == 1
    trainer.run()
    assert run.checkpoints.best() == 1  # 1.0 again is no better


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_interrupt_finishes_the_step_saves_and_stops(make_run: Callable[..., Run], number: signal.Signals) -> None:
    run, (seen, watch) = make_run(), watched()

    def interrupting(progress: Progress) -> None:
        watch(progress)
        if progress.step == 3:
            signal.raise_signal(number)

    trainer = trainer_of(
        model_of(),
        Given(padded_batches(EVEN)),
        {"steps": 9, "save_every": 0},
        checkpoints=run.checkpoints,
        watch=interrupting,
    )
    assert trainer.run() == "interrupted"
    assert trainer.step == seen[-1].step == 4
    assert run.checkpoints.steps() == [4]


def test_two_interrupts_stop_at_once(make_run: Callable[..., Run]) -> None:
    run = make_run()

    class Impatient(NextToken):
        def forward(self, batch: Batch) -> Any:
            if self.data.cursor == 3:  # type: ignore[attr-defined]
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)
            return super().forward(batch)

    trainer = trainer_of(
        model_of(), Given(padded_batches(EVEN)), {"steps": 9}, objective=Impatient, checkpoints=run.checkpoints
    )
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert trainer.step == 2
    assert run.checkpoints.steps() == []


def test_an_interrupt_in_the_last_step_finishes() -> None:
    trainer = trainer_of(
        model_of(),
        Given(padded_batches(EVEN)),
        {"steps": 3},
        validate=lambda: signal.raise_signal(signal.SIGINT) or 1.0,
    )
    assert trainer.run() == "finished"


def test_out_of_time_saves_and_stops(make_run: Callable[..., Run]) -> None:
    run = make_run()
    settings = {"steps": 1000, "save_every": 0, "max_minutes": 1e-9}
    trainer = trainer_of(model_of(), Given(padded_batches(EVEN)), settings, checkpoints=run.checkpoints)
    assert trainer.run() == "out of time"
    assert run.checkpoints.steps() == [1]


def test_training_learns() -> None:
    """A row that repeats is soon known by heart: all of the loop pulls in one direction."""
    tokens_BS = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8, 9]])
    seen, watch = watched()
    data = Given([Batch(tokens_BS[:, :-1], tokens_BS[:, 1:])])
    trainer_of(model_of(), data, {"steps": 60}, optimizer="adamw", lr=0.03, watch=watch).run()
    assert seen[0].loss == pytest.approx(math.log(N_VOCAB), rel=0.2)
    assert seen[-1].loss < 0.1


def test_a_run_that_must_finish_stops_when_its_time_is_up() -> None:
    trainer = trainer_of(model_of(), Given(padded_batches(EVEN)), {"steps": 100, "finish_minutes": 1.0})
    trainer.step, trainer.seconds = 70, 59.9999
    assert trainer.run() == "out of time"
    assert trainer.step == 71
