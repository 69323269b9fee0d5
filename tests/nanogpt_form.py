"""A model.py of nanoGPT's form: what its folder holds for the benchmarks, in a few lines."""

from pathlib import Path

MODEL = '''
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
        print("number of parameters: few")

    def configure_optimizers(self, decay, lr, betas, device):
        print("using fused AdamW: False")
        return torch.optim.AdamW(self.parameters(), lr=lr, betas=betas, weight_decay=decay)

    def forward(self, ids, targets):
        logits = self.transformer.wte(ids) @ self.transformer.wte.weight.T
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())
'''


def make_nanogpt(folder: Path) -> Path:
    """Write model.py into the folder; returns the folder."""
    folder.mkdir(exist_ok=True)
    (folder / "model.py").write_text(MODEL)
    return folder
