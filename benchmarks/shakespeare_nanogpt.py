"""nanoGPT's own recipe for characters on a CPU, as it ships, in a given time: for `benchmarks.shakespeare_char`.

The setting is the one of its README (4 layers, 4 heads, width 128, context 64, batch 12, no dropout, and what its
config/train_shakespeare_char.py and train.py say beside it). Its 2,000 steps do not fill the time: as many are made as
fit, and the rate comes down over them, which gives it more than its README does.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import nanogpt

CONTEXT, BATCH, WARMUP = 64, 12, 100
RATE, LOWEST, DECAY, BETAS, CLIP = 1e-3, 1e-4, 0.1, (0.9, 0.99), 1.0
SHAPE = {"n_layers": 4, "n_heads": 4, "d_model": 128}
MEASURED = 30


@dataclass(frozen=True)
class Trained:
    """What it reached."""

    loss: float
    """Nats a character over the full validation split, in windows of its context, each character once."""
    steps: int
    seconds: float
    """Of training, without the evaluation."""


def train(folder: Path, text: str, *, seconds: float, seed: int) -> Trained:
    """nanoGPT from `folder` on the first nine tenths of the text, for so many seconds; the last tenth is held out."""
    torch.manual_seed(seed)
    ids = {character: i for i, character in enumerate(sorted(set(text)))}
    ids_N = torch.tensor([ids[character] for character in text])
    cut = int(0.9 * len(ids_N))
    model = nanogpt.gpt(folder, context=CONTEXT, n_vocab=len(ids), **SHAPE)
    optimizer = nanogpt.optimizer(model, decay=DECAY, lr=RATE, betas=BETAS)
    start = time.perf_counter()
    step, steps = 0, 2000
    while (spent := time.perf_counter() - start) < seconds and step < steps:
        if step == MEASURED:  # the first were slower, if anything: the rate comes down a little before the time is up
            steps = max(steps, int(step * seconds / spent))
        for group in optimizer.param_groups:
            group["lr"] = rate(max(step, int(steps * spent / seconds)), steps)
        inputs_BT, targets_BT = batch(ids_N[:cut])
        model(inputs_BT, targets_BT)[1].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
    spent = time.perf_counter() - start
    return Trained(full_loss(model, ids_N[cut:]), step, spent)


def rate(step: int, steps: int) -> float:
    """Up over the warm-up, then half a cosine down to a tenth."""
    if step < WARMUP:
        return RATE * (step + 1) / (WARMUP + 1)
    progress = (step - WARMUP) / (steps - WARMUP)
    return LOWEST + 0.5 * (1.0 + math.cos(math.pi * progress)) * (RATE - LOWEST)


def batch(ids_N: Tensor) -> tuple[Tensor, Tensor]:
    """Windows at random places, and the same one character later."""
    starts_B = torch.randint(len(ids_N) - CONTEXT, (BATCH,))
    windows_BS = ids_N[starts_B[:, None] + torch.arange(CONTEXT + 1)]
    return windows_BS[:, :-1].contiguous(), windows_BS[:, 1:].contiguous()


@torch.no_grad()
def full_loss(model: Callable[..., Any], ids_N: Tensor) -> float:
    """The mean over all characters after the first, in windows one after the other."""
    model.eval()  # type: ignore[attr-defined]
    total = 0.0
    for start in range(0, len(ids_N) - 1, CONTEXT):
        window_S = ids_N[start : start + CONTEXT + 1]
        total += float(model(window_S[None, :-1], window_S[None, 1:])[1]) * (len(window_S) - 1)
    return total / (len(ids_N) - 1)
