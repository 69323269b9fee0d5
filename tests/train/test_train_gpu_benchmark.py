"""The benchmark for a GPU, as far as it goes without one: a tiny shape on the CPU, beside a model of nanoGPT's form."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PEER = '''
import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F


@dataclass
class GPTConfig:
    block_size: int
    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float
    bias: bool


class GPT(nn.Module):
    """One table, looked up and multiplied: enough to be trained."""

    def __init__(self, config):
        super().__init__()
        self.transformer = nn.ModuleDict({"wte": nn.Embedding(config.vocab_size, config.n_embd)})

    def configure_optimizers(self, decay, lr, betas, device):
        return torch.optim.AdamW(self.parameters(), lr=lr, betas=betas, weight_decay=decay)

    def forward(self, ids, targets):
        logits = self.transformer.wte(ids) @ self.transformer.wte.weight.T
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())
'''


def figures(*arguments: str) -> dict:
    command = [sys.executable, "-m", "benchmarks.train_gpu", "--quick", "--json", "--device", "cpu", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_all_figures_are_there(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(PEER)
    found = figures("--no-checks", "--nanogpt", str(tmp_path))
    assert found["device"] == "cpu" and found["tokens_per_second_quick"] > 0
    assert 0 < found["mfu_quick"] < 2 and found["vs_nanogpt_quick"] > 0
    assert found["loss_apart_quick"] < 1


def test_without_a_gpu_the_real_shapes_are_refused() -> None:
    command = [sys.executable, "-m", "benchmarks.train_gpu", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=100)
    assert done.returncode == 1 and "--quick" in done.stderr


@pytest.mark.slow
def test_compiled_with_the_checks() -> None:
    found = figures("--compile", "--checks")
    assert found["checks_passed"] and found["vs_nanogpt_quick"] is None
