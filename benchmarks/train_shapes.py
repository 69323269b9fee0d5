"""What the contestants of `benchmarks.train` train: shapes of models, and rows of random tokens.

Nothing of Tessera is imported here, so that a process in which a peer is weighed holds that peer alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

LR, BETAS, DECAY, CLIP = 1e-3, (0.9, 0.95), 0.1, 1.0


class Rows(NamedTuple):
    """A batch: tokens, and the token after each."""

    inputs_BT: Tensor
    targets_BT: Tensor


TrainStep = Callable[[Rows], float]
"""Makes an update and returns the loss before it."""


@dataclass(frozen=True)
class Shape:
    """GPT-2's kind of block ("gpt2") or Llama's ("llama"); the rest is what the peers do not agree on."""

    kind: str
    n_layers: int
    d_model: int
    n_heads: int
    d_ff: int
    context: int
    batch_size: int
    n_vocab: int
    bias: bool = False
    norm_bias: bool = False
    position: str = "learned"
    tied: bool = True
    approximate: str = "none"

    @property
    def pieces(self) -> dict[str, Any]:
        """The settings of Tessera's decoder beside the sizes."""
        if self.kind == "llama":
            return {"norm": {"name": "rms", "eps": 1e-5}}
        return {
            "position": self.position,
            "norm": {"name": "layer", "bias": self.norm_bias},
            "feed_forward": {"name": "gelu", "approximate": self.approximate},
            "tied": self.tied,
            "bias": self.bias,
        }

    def batch(self, number: int) -> Rows:
        """Random tokens, the same for everybody."""
        random = torch.Generator().manual_seed(number)
        ids_BS = torch.randint(self.n_vocab, (self.batch_size, self.context + 1), generator=random)
        return Rows(ids_BS[:, :-1].contiguous(), ids_BS[:, 1:].contiguous())


SHAPES = {
    "S": Shape("gpt2", 6, 384, 6, 1536, 256, 16, 65),
    "M": Shape("llama", 8, 512, 8, 1376, 256, 8, 8192),
    "quick S": Shape("gpt2", 2, 64, 2, 256, 64, 4, 65),
    "quick M": Shape("llama", 2, 64, 2, 160, 64, 4, 256),
}
