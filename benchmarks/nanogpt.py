"""Karpathy's nanoGPT, from a folder with its model.py: its model and its optimizer, without what they print.

Nothing of Tessera is imported here, so that a process in which nanoGPT is weighed holds nanoGPT alone.
"""

import contextlib
import importlib.util
import io
import sys
from pathlib import Path
from typing import Any

import torch


class NotHereError(Exception):
    """A peer that cannot take part, and why."""


def module(folder: Path | None) -> Any:
    if folder is None:
        raise NotHereError("no folder is given (--nanogpt)")
    if not (path := folder / "model.py").is_file():
        raise NotHereError(f"there is no {path}")
    spec = importlib.util.spec_from_file_location("nanogpt_model", path)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules["nanogpt_model"] = loaded  # its dataclass looks itself up
    spec.loader.exec_module(loaded)
    return loaded


def gpt(folder: Path | None, *, context: int, n_vocab: int, n_layers: int, n_heads: int, d_model: int) -> Any:
    """Its model, without dropout and biases, in training."""
    its = module(folder)
    config = its.GPTConfig(
        block_size=context,
        vocab_size=n_vocab,
        n_layer=n_layers,
        n_head=n_heads,
        n_embd=d_model,
        dropout=0.0,
        bias=False,
    )
    with contextlib.redirect_stdout(io.StringIO()):
        return its.GPT(config).train()


def optimizer(
    model: Any, *, decay: float, lr: float, betas: tuple[float, float], device: str = "cpu"
) -> torch.optim.Optimizer:
    with contextlib.redirect_stdout(io.StringIO()):
        return model.configure_optimizers(decay, lr, betas, device)
