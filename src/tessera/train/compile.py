"""torch.compile for training: each block on its own, so that a deep model does not compile for longer than it must.

What is compiled stays in PyTorch's cache on disk (`TORCHINDUCTOR_CACHE_DIR`), so that the next run begins sooner. Only
the training pass is compiled: validation and generation have other shapes, and would compile for each of them.
"""

import importlib

import torch

from tessera.model.decoder import Decoder

GRAPHS_A_BLOCK = 8
"""Training has few shapes, that of the last batch of an epoch among them; each is a graph of its own."""


def compile_blocks(model: Decoder) -> None:
    """From now on the model trains by compiled blocks; each is compiled when it is first used."""
    config = importlib.import_module("torch._dynamo.config")  # heavy: not for those who compile nothing
    config.recompile_limit = max(config.recompile_limit, GRAPHS_A_BLOCK * len(model.blocks))  # type: ignore[attr-defined]
    model.training_blocks = [torch.compile(block, dynamic=False) for block in model.blocks]


def compile_seconds() -> float:
    """What this process has spent on compiling."""
    return float(importlib.import_module("torch._dynamo.utils").calculate_time_spent().get("total_wall_time", 0.0))
