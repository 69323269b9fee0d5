"""Fewer bits, the same model: over thousands of steps, where roundings that all go one way would add up."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tessera.data.batches import RandomWindows, validation_batches
from tessera.data.shards import Shard
from tessera.evaluate.loss import held_out_loss
from tessera.model.decoder import Decoder
from tessera.objectives import NextToken
from tessera.optim import OPTIMIZERS, groups
from tessera.optim.schedule import SCHEDULES
from tessera.train.precision import FP32, Precision
from tessera.train.settings import TrainSettings
from tessera.train.trainer import Trainer

STEPS = 2000


def held_out(precision: Precision, text: np.ndarray) -> float:
    """The loss of what was not learned from, in nats a byte, after a whole schedule."""
    torch.manual_seed(0)
    model = Decoder(n_vocab=128, context=32, d_model=64, n_layers=2, n_heads=2)
    precision.prepare(model)
    data = RandomWindows(shard=Shard(text[:-50_000]), context=32, batch_size=12, seed=0)
    objective = NextToken(model=model, data=data)
    Trainer(
        objective=objective,
        optimizer=OPTIMIZERS["adamw"](groups(objective, 0.1), lr=3e-3, betas=(0.9, 0.95)),
        schedule=SCHEDULES["cosine"](warmup=100, floor=0.1),
        settings=TrainSettings(steps=STEPS),
        precision=precision,
    ).run()
    model.eval()
    return held_out_loss(model, validation_batches(Shard(text[-50_000:]), 32, 64)).mean


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bf16", "fp8", "int8"])
def test_after_2000_steps_the_loss_is_within_1_percent_of_that_in_fp32(name: str, shared_data: Path) -> None:
    text = np.frombuffer((shared_data / "text" / "tinyshakespeare.txt").read_bytes(), dtype=np.uint8).astype(np.uint16)
    exact, close = held_out(FP32, text), held_out(Precision(name), text)
    print(f"fp32 {exact:.4f}, {name} {close:.4f}: {close / exact - 1:+.2%}")
    assert exact < 2.2  # it has learned
    assert close == pytest.approx(exact, rel=0.01)
