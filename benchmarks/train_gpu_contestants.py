"""Who takes part in `benchmarks.train_gpu`: Tessera's training step, and nanoGPT's as its train.py makes it.

A step returns how to read its loss, and does not wait for it: neither of the two loops does, but where it writes a
line.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import nanogpt as karpathys
from benchmarks.train_ours import Nothing, decoder
from benchmarks.train_shapes import BETAS, CLIP, DECAY, LR, Shape
from benchmarks.train_weights import gpt2_weights
from tessera.data.batches import Batch
from tessera.objectives import NextToken
from tessera.optim import OPTIMIZERS, groups
from tessera.train.compile import Compilation, lay_out
from tessera.train.precision import Precision
from tessera.train.step import Step

MULTIPLE = 128
"""Of rows of the tables of embedding and head: products of odd sizes are slow on a GPU."""

TrainStep = Callable[[Batch], Callable[[], float]]


@dataclass(frozen=True)
class GpuShape(Shape):
    """With a vocabulary that is padded; nanoGPT has the padding as further words."""

    @property
    def pieces(self) -> dict[str, Any]:
        return super().pieces | {"vocab_multiple": MULTIPLE}

    @property
    def padded(self) -> int:
        return -(-self.n_vocab // MULTIPLE) * MULTIPLE

    def batch(self, number: int, device: torch.device | None = None) -> Batch:
        """Random tokens on the host, where a GPU can fetch them."""
        batch = Batch(*super().batch(number))
        return batch.pinned() if device is not None and device.type == "cuda" else batch


def tessera(shape: GpuShape, precision: Precision, device: torch.device, *, compiled: bool) -> TrainStep:
    """The step of the training loop, with all that it measures and guards."""
    model = decoder(shape).to(device)
    precision.prepare(model)
    lay_out(model, compilation=Compilation(compiled, "asked for"), checkpointing=None)
    objective = NextToken(model=model, data=Nothing()).train()
    optimizer = OPTIMIZERS["adamw"](groups(objective, DECAY), lr=LR, betas=BETAS)
    step = Step(objective, optimizer, CLIP, device)
    step.precision = precision

    def take(batch: Batch) -> Callable[[], float]:
        taken = step.take([batch], step=1, rate=1.0, detail=False)
        return lambda: taken.loss

    return take


def nanogpt(
    shape: GpuShape, folder: Path | None, precision: Precision, device: torch.device, *, compiled: bool
) -> TrainStep:
    """Karpathy's nanoGPT, from a folder with its model.py: its optimizer, its autocast, its clipping."""
    model = karpathys.gpt(
        folder,
        context=shape.context,
        n_vocab=shape.padded,
        n_layers=shape.n_layers,
        n_heads=shape.n_heads,
        d_model=shape.d_model,
    ).to(device)
    optimizer = karpathys.optimizer(model, decay=DECAY, lr=LR, betas=BETAS, device=device.type)
    model.load_state_dict(gpt2_weights(decoder(shape).state_dict(), transposed=False), strict=False)
    forward = torch.compile(model) if compiled else model
    own = Precision("bf16") if precision.name == "fp8" else precision

    def take(batch: Batch) -> Callable[[], float]:
        batch = batch.to(device)
        with own.step():
            with own.forward(device):
                loss = forward(batch.inputs_BT, batch.targets_BT)[1]
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return lambda: loss.item()

    return take
