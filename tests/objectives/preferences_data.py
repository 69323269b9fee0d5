"""A small model and made-up answers to learn from, for the tests of the objectives."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tessera.data.examples import Example
from tessera.data.preferences import Judged, Pair
from tessera.model.decoder import Decoder

N_VOCAB = 13


def small_model(seed: int = 0, **settings: Any) -> Decoder:
    torch.manual_seed(seed)
    shape = {"n_vocab": N_VOCAB, "context": 12, "d_model": 16, "n_layers": 1, "n_heads": 2, "d_ff": 24}
    return Decoder(init={"name": "normal", "std": 0.3}, **(shape | settings)).double()


def example(random: np.random.Generator, n_prompt: int = 3) -> Example:
    """A prompt of tokens and an answer of 2 to 6."""
    n = n_prompt + int(random.integers(2, 7))
    return Example.of(random.integers(0, N_VOCAB, n).tolist(), [i >= n_prompt for i in range(n)], "made up")


def pairs(n: int, seed: int = 0) -> list[Pair]:
    random = np.random.default_rng(seed)
    return [Pair(example(random), example(random), margin=float(random.random())) for _ in range(n)]


def judged(n: int, seed: int = 0) -> list[Judged]:
    random = np.random.default_rng(seed)
    return [Judged(example(random), i % 3 != 1, example(random)) for i in range(n)]


def padded(examples: list[Example]) -> tuple[Tensor, Tensor]:
    """The ids and the mask of the answers, as trl has them: padded on the right, one row an example."""
    width = max(len(each.ids) for each in examples)
    ids, mask = torch.zeros(len(examples), width, dtype=torch.long), torch.zeros(len(examples), width, dtype=torch.long)
    for row, each in enumerate(examples):
        ids[row, : len(each.ids)] = torch.from_numpy(each.ids.astype(np.int64))
        mask[row, : len(each.ids)] = torch.from_numpy(each.learned.astype(np.int64))
    return ids, mask


def gradients(model: torch.nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
