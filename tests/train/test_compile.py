"""Compiled training: the same losses but for rounding, with all else that a step can have."""

from typing import Any

import numpy as np
import pytest
import torch

from tessera.data.batches import RandomWindows
from tessera.data.shards import Shard
from tessera.model.decoder import Decoder
from tessera.objectives import NextToken
from tessera.optim import OPTIMIZERS, groups
from tessera.train.compile import compile_blocks, compile_seconds
from tessera.train.precision import FP32, Precision
from tessera.train.settings import TrainSettings
from tessera.train.trainer import Progress, Trainer

SHARD = Shard(np.random.default_rng(0).integers(0, 13, 400).astype(np.uint16))


def losses(compiled: bool, precision: Precision = FP32, **shape: Any) -> list[float]:
    torch.manual_seed(0)
    model = Decoder(n_vocab=13, context=8, d_model=16, n_layers=1, n_heads=2, **shape)
    names = list(model.state_dict())
    model.recompute_every = 1
    if compiled:
        compile_blocks(model)
    objective = NextToken(model=model, data=RandomWindows(shard=SHARD, context=8, batch_size=4))
    seen: list[Progress] = []
    Trainer(
        objective=objective,
        optimizer=OPTIMIZERS["adamw"](groups(objective, 0.0), lr=0.01),
        schedule=lambda step, steps: 1.0,
        settings=TrainSettings(steps=4),
        watch=seen.append,
        precision=precision,
    ).run()
    assert list(model.state_dict()) == names
    return [progress.loss for progress in seen]


@pytest.mark.slow
@pytest.mark.parametrize("precision", [FP32, Precision("fp32", onednn=True), Precision("bf16")], ids=str)
def test_the_losses_are_the_same(precision: Precision) -> None:
    tolerance = 1e-5 if precision.name == "fp32" else 3e-2
    assert losses(True, precision) == pytest.approx(losses(False, precision), abs=tolerance)
    assert compile_seconds() > 0


def test_only_the_training_pass_is_compiled() -> None:
    model = Decoder(n_vocab=13, context=8, d_model=16, n_layers=1, n_heads=2)
    model.training_blocks = [lambda *arguments: pytest.fail("the compiled block was used")]
    ids_BT = torch.zeros(1, 4, dtype=torch.int64)
    with torch.inference_mode():
        model(ids_BT)
        model(ids_BT, model.new_cache(1))
    with pytest.raises(pytest.fail.Exception):
        model(ids_BT)
