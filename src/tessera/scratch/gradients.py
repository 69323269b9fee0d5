"""One batch's gradients, added up: what a training step does before the update, in this process or in several.

Each micro-batch has a weight, its share of the step's targets: loss = sum of weight * loss_i, so gradients are scaled
by it as well, and their sum is that of one big batch.

B batch, T time.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tessera.scratch.decoder import Decoder
from tessera.scratch.ops.loss import IGNORE

Batch = tuple[np.ndarray, np.ndarray, np.ndarray | None]
"""inputs_BT, targets_BT and documents_BT, which numbers the documents of each row, or None."""


class Part(NamedTuple):
    """Of the rows of a micro-batch that one process had: their share of the step's targets, and their mean loss."""

    micro_batch: int
    weight: float
    loss: float


def count_targets(batch: Batch) -> int:
    """How many tokens are predicted: what a loss is averaged over."""
    return int(np.count_nonzero(batch[1] != IGNORE))


def learn(
    model: Decoder, micro_batches: Sequence[Batch], n_targets: int, *, step: int, seed: int, process: int = 0
) -> list[Part]:
    """Add the gradients of `micro_batches` to the model's; `n_targets` are those of the whole step, everywhere."""
    parts = []
    for i, batch in enumerate(micro_batches):
        if own := count_targets(batch):
            loss = model.loss(*batch, rng=generator(seed, step, i, process))
            model.backward(scale=own / n_targets)
            parts.append(Part(i, own / n_targets, loss))
    return parts


def generator(*numbers: int) -> np.random.Generator:
    """A stream of random numbers that is a function of `numbers`, such as the seed and the step."""
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(numbers)))
