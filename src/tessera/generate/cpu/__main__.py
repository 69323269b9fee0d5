"""Tries all kernels out against NumPy; run by `check.py` in a process of its own.

They are made with the product of bytes that is the fastest here, whose name is printed.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tessera.config import check
from tessera.generate.cpu.fastest import fastest_product
from tessera.generate.cpu.model import CpuModel
from tessera.generate.cpu.panels import STORAGES
from tessera.generate.cpu.pool import CACHES
from tessera.generate.cpu.vectors import prefer_product
from tessera.generate.requests import StepRows
from tessera.model.plain import PIECES
from tessera.model.settings import DecoderSettings
from tessera.scratch.decoder import Decoder

BOUNDS = {"fp32": 1e-3, "bf16": 0.05, "q8_0": 0.1, "q4_0": 0.8, "q4_1": 0.8}
"""How far logits may lie from those of NumPy, as a share of their spread: far more than rounding, far less than
nonsense."""
SHAPE: dict[str, Any] = {"context": 48, "d_model": 64, "n_layers": 2, "n_heads": 4, "d_ff": 96}
SHAPE |= {"attention": {"name": "gqa", "n_kv_heads": 2}}
N_VOCAB = 100


@dataclass
class Held:
    """A decoder that is there, as a source of weights."""

    model: Decoder
    settings: DecoderSettings
    n_vocab: int = N_VOCAB
    path: Path = field(default_factory=Path)
    blocks: None = None

    def array(self, name: str) -> np.ndarray:
        return self.model.parameters[name].data


def trial() -> None:
    """Raise `SystemExit` with a reason where a kernel gives something else than it should."""
    source = Held(Decoder(n_vocab=N_VOCAB, **SHAPE), check(DecoderSettings, SHAPE, slots=PIECES))
    ids = np.random.default_rng(0).integers(0, N_VOCAB, (1, 33))
    expected = source.model.logits(ids)[0]
    for i, storage in enumerate(STORAGES):
        cache = list(CACHES)[i % len(CACHES)]
        made = CpuModel.from_source(source, storage, n_blocks=6, cache=cache, n_threads=2, check=False)
        made.read(np.zeros(2**16, np.uint8))
        tables = [[0, 1, 2], [5, 3, 4]]
        whole = made.step(StepRows(ids[0], [0] * 33, range(33), range(33)), tables)
        distance = float((whole - expected).std() / expected.std())
        if not distance < BOUNDS[storage]:
            sys.exit(f"the logits of {storage} are off by {distance:.2g} of their spread")
        for start, end in ((0, 3), (3, 4), (4, 9)):
            rows = StepRows(ids[0, start:end], [1] * (end - start), range(start, end), range(end - start))
            if not np.array_equal(made.step(rows, tables), whole[start:end]):
                sys.exit(f"the logits of {storage} depend on how many rows a step has")
        made.close()


if __name__ == "__main__":
    product = fastest_product()
    prefer_product(product)
    trial()
    print(product)
