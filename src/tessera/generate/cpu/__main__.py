"""Tries all kernels out against PyTorch; run by `check.py` in a process of its own."""

import sys

import torch

from tessera.generate.cpu.model import CpuModel
from tessera.generate.cpu.panels import STORAGES
from tessera.generate.cpu.pool import CACHES
from tessera.generate.requests import StepRows
from tessera.model.decoder import Decoder

BOUNDS = {"fp32": 1e-3, "bf16": 0.05, "q8_0": 0.1, "q4_0": 0.8, "q4_1": 0.8}
"""How far logits may lie from those of PyTorch, as a share of their spread: far more than rounding, far less than
nonsense."""


@torch.inference_mode()
def trial() -> None:
    """Raise `SystemExit` with a reason where a kernel gives something else than it should."""
    torch.manual_seed(0)
    attention = {"name": "gqa", "n_kv_heads": 2}
    model = Decoder(n_vocab=100, context=48, d_model=64, n_layers=2, n_heads=4, d_ff=96, attention=attention).eval()
    ids = torch.randint(0, 100, (1, 33))
    expected = model(ids)[0]
    for i, storage in enumerate(STORAGES):
        cache = list(CACHES)[i % len(CACHES)]
        made = CpuModel.from_source(model, storage, n_blocks=6, cache=cache, n_threads=2, check=False)
        made.read_all()
        tables = [[0, 1, 2], [5, 3, 4]]
        whole = made.step(StepRows(ids[0], [0] * 33, range(33), range(33)), tables)
        distance = float((whole - expected).std() / expected.std())
        if not distance < BOUNDS[storage]:
            sys.exit(f"the logits of {storage} are off by {distance:.2g} of their spread")
        for start, end in ((0, 3), (3, 4), (4, 9)):
            rows = StepRows(ids[0, start:end], [1] * (end - start), range(start, end), range(end - start))
            if not torch.equal(made.step(rows, tables), whole[start:end]):
                sys.exit(f"the logits of {storage} depend on how many rows a step has")
        made.close()


if __name__ == "__main__":
    trial()
