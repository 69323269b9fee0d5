"""Steps by the model as it is, in PyTorch: the reference of every other backend, and the one that serves all models."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from tessera.generate.requests import StepRows
from tessera.model.decoder import Decoder
from tessera.model.paged import PagedCache, Run


class TorchStep:
    """A decoder and a cache of `n_blocks` blocks, taken at once. `n_vocab`: ids beyond are left out of the logits.
    `cache`: what keys and values are kept as, "float" (as the model computes) or "int8".

    The model is in evaluation mode during each step and as it was between two.
    """

    def __init__(
        self,
        model: Decoder,
        *,
        n_blocks: int,
        block_size: int = 16,
        n_vocab: int | None = None,
        cache: str = "float",
    ) -> None:
        self.model, self.context = model, model.context
        self.n_vocab = model.n_vocab if n_vocab is None else n_vocab
        self.n_blocks, self.block_size = n_blocks, block_size
        self.cache = PagedCache(model.new_cache(1, 1), n_blocks=n_blocks, block_size=block_size, kept=cache)

    @torch.inference_mode()
    def step(self, rows: StepRows, tables: Sequence[Sequence[int]]) -> np.ndarray:
        """The logits after each wanted row, (wanted, V) in float32: here they leave the GPU."""
        with evaluating(self.model):
            h_ND = self._hidden(rows, tables)
            wanted_W = torch.as_tensor(np.asarray(rows.wanted, dtype=np.int64), device=h_ND.device)
            logits_WV: np.ndarray = self.model.logits(h_ND[wanted_W])[:, : self.n_vocab].float().cpu().numpy()
            return logits_WV

    def _hidden(self, rows: StepRows, tables: Sequence[Sequence[int]]) -> Tensor:
        """What the head reads after each row, (N, D) or more rows."""
        ids_1N = torch.as_tensor(np.asarray(rows.ids, dtype=np.int64), device=self.model.device)[None]
        return self.model.hidden(ids_1N, self.cache, self.cache.flow(runs_of(rows, tables)))[0]


def runs_of(rows: StepRows, tables: Sequence[Sequence[int]]) -> list[Run]:
    """The rows of each sequence, which stand together."""
    sequences_N, positions_N = np.asarray(rows.sequences), np.asarray(rows.positions)
    firsts = np.flatnonzero(np.diff(sequences_N, prepend=-1))
    counts = np.diff(firsts, append=len(sequences_N))
    return [
        Run(int(first), int(count), int(positions_N[first]), tables[int(sequences_N[first])])
        for first, count in zip(firsts, counts, strict=True)
    ]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, without dropout; afterwards each part is in the mode in which it was."""
    training = [module for module in model.modules() if module.training] if model.training else []
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
