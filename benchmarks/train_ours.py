"""Tessera among the contestants of `benchmarks.train`: the step of the training loop, with all that it guards."""

from collections.abc import Mapping
from typing import Any

import torch

from benchmarks.train_shapes import BETAS, CLIP, DECAY, LR, Shape, TrainStep
from tessera.data.batches import Batch
from tessera.model.decoder import Decoder
from tessera.objectives import NextToken
from tessera.optim import OPTIMIZERS, groups
from tessera.train.precision import FP32, Precision
from tessera.train.step import Step

CPU = torch.device("cpu")


def decoder(shape: Shape) -> Decoder:
    """The model of a shape, always with the same weights."""
    torch.manual_seed(0)
    return Decoder(
        n_vocab=shape.n_vocab,
        context=shape.context,
        d_model=shape.d_model,
        n_layers=shape.n_layers,
        n_heads=shape.n_heads,
        d_ff=shape.d_ff,
        **shape.pieces,
    )


def tessera(shape: Shape, precision: Precision = FP32, *, optimizer: str = "adamw") -> TrainStep:
    model = decoder(shape)
    precision.prepare(model)
    objective = NextToken(model=model, data=Nothing())
    learner = OPTIMIZERS[optimizer](groups(objective, DECAY), lr=LR, betas=BETAS)
    step = Step(objective.train(), learner, CLIP, CPU)
    step.precision = precision
    return lambda rows: step.take([Batch(*rows)], step=1, rate=1.0, detail=False).loss


class Nothing:
    """No data: the batches are given."""

    def __next__(self) -> Any:
        raise StopIteration

    def state(self) -> Mapping[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        pass
