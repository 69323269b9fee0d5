"""torch.compile for training: each block on its own, so that a deep model does not compile for longer than it must.

What is compiled is kept on disk, so that the next run begins sooner. Only the training pass is compiled: validation
and generation have other shapes, and would compile for each of them.

Activation checkpointing (`tessera.model.recompute`) is laid out here as well, as the two meet: "selective" is the
compiler's own work where there is one. It knows what is dear, and fuses what it makes again into what needs it.
"""

import importlib
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from tessera.model.decoder import Decoder

GRAPHS_A_BLOCK = 8
"""Training has few shapes, that of the last batch of an epoch among them; each is a graph of its own."""
OLDEST = (7, 0)
"""Volta, the first generation that Triton compiles for."""

Compile = bool | Literal["auto"]
Checkpointing = int | Literal["selective"] | None


@dataclass(frozen=True)
class Compilation:
    """Whether the blocks are compiled, and why."""

    on: bool
    reason: str

    def describe(self) -> str:
        return f"blocks {'compiled' if self.on else 'not compiled'}: {self.reason}"


def choose_compilation(choice: Compile, device: torch.device) -> Compilation:
    """What `train.compile` means on `device`.

    "auto" is on where Triton makes kernels for the GPU: the blocks' norms, rotations and residual sums are limited by
    memory there, and are fused. On a CPU it is off: a compiled step was measured to take 0.96 times as long as an eager
    one (docs/benchmarks.md), which a run of minutes does not earn back after a minute of compiling.
    """
    if choice != "auto":
        return Compilation(choice, "asked for")
    if device.type != "cuda":
        return Compilation(False, f"it gains little on {device.type}; train.compile=true to do it")
    if importlib.util.find_spec("triton") is None:
        return Compilation(False, "Triton is not installed")
    if torch.cuda.get_device_capability(device) < OLDEST:
        return Compilation(False, f"{torch.cuda.get_device_name(device)} is too old for Triton")
    return Compilation(True, "it pays on a GPU; train.compile=false to begin without")


def lay_out(model: Decoder, *, compilation: Compilation, checkpointing: Checkpointing) -> None:
    """Let the model train compiled or not, and keep as much of a forward pass as `checkpointing` says."""
    selective = checkpointing == "selective"
    if compilation.on:
        compile_blocks(model, recompute_cheap=selective)
    by_us = not (selective and compilation.on)
    model.recompute_products = not selective
    model.recompute_every = (1 if checkpointing == "selective" else checkpointing) if by_us else None


def compile_blocks(model: Decoder, *, recompute_cheap: bool = False) -> None:
    """From now on the model trains by compiled blocks; each is compiled when it is first used.

    `recompute_cheap`: keep for the backward pass the results of products, attention and sums alone.
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder()))
    config = importlib.import_module("torch._dynamo.config")  # heavy: not for those who compile nothing
    config.recompile_limit = max(config.recompile_limit, GRAPHS_A_BLOCK * len(model.blocks))  # type: ignore[attr-defined]
    partition = importlib.import_module("torch._functorch.config")
    partition.aggressive_recomputation = recompute_cheap  # type: ignore[attr-defined]
    model.training_blocks = [torch.compile(block, dynamic=False) for block in model.blocks]


def cache_folder() -> Path:
    """Where compiled code is kept: $TESSERA_CACHE/inductor, else in the user's cache; PyTorch's own is in /tmp."""
    chosen = os.environ.get("TESSERA_CACHE")
    base = Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "tessera"
    return base.expanduser() / "inductor"


def compile_seconds() -> float:
    """What this process has spent on compiling."""
    return float(importlib.import_module("torch._dynamo.utils").calculate_time_spent().get("total_wall_time", 0.0))
