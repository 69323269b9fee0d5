"""What a run may keep beside its weights, and sizes that grow: by hand, and over a stop at every step."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tessera.config import check
from tessera.data.batches import EpochWindows
from tessera.data.shards import Shard
from tessera.errors import SettingError
from tessera.evaluate.loss import held_out_loss
from tessera.model.decoder import Decoder
from tessera.objectives import NextToken
from tessera.optim import OPTIMIZERS, groups
from tessera.store.run import Run
from tessera.train.loader import Prefetched
from tessera.train.progress import Progress
from tessera.train.settings import TrainSettings
from tessera.train.trainer import Trainer

SHARD = Shard(np.random.default_rng(0).integers(0, 13, 400).astype(np.uint16))
STEPS = 6


class Small:
    def __init__(self, run: Run | None = None, *, optimizer: str = "adamw", **settings: Any) -> None:
        torch.manual_seed(0)
        self.model = Decoder(n_vocab=13, context=8, d_model=8, n_layers=2, n_heads=2, dropout=0.1)
        data = Prefetched(EpochWindows(shard=SHARD, context=8, batch_size=8, seed=1), depth=3)
        objective = NextToken(model=self.model, data=data)
        self.sizes: list[tuple[int, int]] = []
        objective.register_forward_pre_hook(lambda module, inputs: self.sizes.append(tuple(inputs[0].inputs_BT.shape)))
        self.seen: list[Progress] = []
        self.validated: list[dict[str, Tensor]] = []
        self.trainer = Trainer(
            objective=objective,
            optimizer=OPTIMIZERS[optimizer](groups(objective, 0.1), lr=0.02),
            schedule=lambda step, steps: 1.0,
            settings=check(
                TrainSettings,
                {"steps": STEPS, "batch_size": 8, "save_every": 1, "keep": 20, "eval_every": 2} | settings,
            ),
            validate=self._validate,
            checkpoints=run.checkpoints if run else None,
            watch=self.watch,
        )
        self.trained: list[dict[str, Tensor]] = []

    def _validate(self) -> float:
        self.validated.append(self.weights)
        return held_out_loss(self.model, [next(EpochWindows(shard=SHARD, context=8, batch_size=4))]).mean

    def watch(self, progress: Progress) -> None:
        self.seen.append(progress)
        self.trained.append(self.weights)

    @property
    def weights(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.model.named_parameters()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_average_is_validated_and_saved_and_in_the_end_in_the_model(make_run: Callable[..., Run]) -> None:
    run = make_run()
    plain = Small()
    plain.trainer.run()
    with_average = Small(run, ema=0.9)
    start = with_average.weights
    with_average.trainer.run()
    # What is trained is not touched by the average ...
    assert [progress.loss for progress in plain.seen] == [progress.loss for progress in with_average.seen]
    # ... which is this, by hand.
    average, averages = start, []
    for number, weights in enumerate(plain.trained, 1):
        decay = min(0.9, (1 + number) / (10 + number))
        average = {name: decay * average[name] + (1 - decay) * weights[name] for name in average}
        averages.append(average)
    for found, expected in zip(with_average.validated, averages[1::2], strict=True):
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(with_average.weights, averages[-1])
    loaded = run.checkpoints.read(3, prefix="model").tensors
    torch.testing.assert_close({name.removeprefix("model."): one for name, one in loaded.items()}, averages[2])


@pytest.mark.parametrize(
    "settings",
    [
        {"ema": 0.9},
        {"optimizer": "adamw-schedule-free"},
        {"batch_ramp": {"name": "linear", "start": 2, "steps": 5}},
        {"context_ramp": {"name": "doubling", "start": 2, "steps": 4}, "accumulate": 2},
    ],
    ids=["ema", "schedule-free", "batch", "context"],
)
def test_a_stop_after_any_step_changes_nothing(make_run: Callable[..., Run], settings: dict[str, Any]) -> None:
    whole = Small(make_run(), **settings)
    whole.trainer.run()
    for cut in range(1, STEPS):
        run = make_run(name=f"cut-{cut}")
        first = Small(run, **{**settings, "steps": cut})
        first.trainer.run()
        second = Small(run, **settings)
        second.trainer.resume()
        second.trainer.run()
        assert [p.loss for p in first.seen + second.seen] == [p.loss for p in whole.seen]
        assert first.sizes + second.sizes == whole.sizes
        assert equal(second.weights, whole.weights)


def test_an_average_may_begin_and_end_with_a_resumed_run(make_run: Callable[..., Run]) -> None:
    plain, run = Small(), make_run()
    plain.trainer.run()
    Small(run, steps=2).trainer.run()
    begins = Small(run, steps=4, ema=0.9)
    begins.trainer.resume()
    begins.trainer.run()
    ends = Small(run)
    ends.trainer.resume()
    ends.trainer.run()
    assert equal(ends.weights, plain.weights)


def test_two_kinds_of_average_are_one_too_many() -> None:
    with pytest.raises(SettingError, match=r"train\.ema = 0\.9"):
        Small(optimizer="adamw-schedule-free", ema=0.9)


def test_the_batch_grows_and_each_window_is_still_seen_once() -> None:
    small = Small(batch_ramp={"name": "linear", "start": 2, "steps": 4, "multiple": 2}, steps=8)
    small.trainer.run()
    assert [rows for rows, _ in small.sizes] == [2, 2, 4, 6, 8, 8, 8, 8]
    assert small.trainer.objective.get_extra_state()["position"] == sum(rows for rows, _ in small.sizes)


def test_rows_grow_and_the_tokens_of_a_step_stay() -> None:
    small = Small(optimizer="sgd", context_ramp={"name": "doubling", "start": 2, "steps": 4})
    small.trainer.run()
    assert small.sizes == [(32, 2), (32, 2), (16, 4), (16, 4), (8, 8), (8, 8)]
    assert {progress.tokens for progress in small.seen} <= {63, 64}  # one batch holds the end of the text


def test_a_ramp_is_checked_before_the_start() -> None:
    with pytest.raises(SettingError, match=r"train\.batch_ramp has no 'line'.*'linear'"):
        check(TrainSettings, {"batch_ramp": {"name": "line", "start": 2, "steps": 4}})
    with pytest.raises(SettingError, match=r"start = 0"):
        check(TrainSettings, {"context_ramp": {"name": "linear", "start": 0, "steps": 4}})
