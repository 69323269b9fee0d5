"""Every optimizer through a checkpoint on disk: what follows is the same bit for bit."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tessera.config import build
from tessera.data.batches import EpochWindows
from tessera.data.shards import Shard
from tessera.model.decoder import Decoder
from tessera.objectives import NextToken
from tessera.optim import OPTIMIZERS, groups
from tessera.optim.averaged import Averaged
from tessera.store.run import Run
from tessera.train.checkpoint import capture, restore

N_VOCAB = 13
TOKENS = np.random.default_rng(0).integers(0, N_VOCAB, 400).astype(np.uint16)
SPECS: dict[str, dict[str, Any]] = {name: {} for name in OPTIMIZERS} | {
    "sgd": {"momentum": 0.9},
    "adafactor": {"momentum": 0.5, "rate": "relative"},
    "adamw-8bit": {"keep": [], "lr_scale": {"head": 0.5}},
    "muon": {"scaling": "spectral"},
}


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    made = Run.create(tmp_path / "run", recipe={}, tokenizer_json="{}", vocabulary=[], store="files")
    yield made
    made.close()


def made(name: str, seed: int) -> tuple[NextToken, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = Decoder(n_vocab=N_VOCAB, context=8, d_model=64, n_layers=1, n_heads=2, dropout=0.2)
    objective = NextToken(model=model, data=EpochWindows(shard=Shard(TOKENS), context=8, batch_size=3, seed=5))
    spec = {"name": name, "lr": 0.01, **SPECS[name]}
    return objective, build(OPTIMIZERS, spec, params=groups(objective, 0.1))


def steps(objective: NextToken, optimizer: torch.optim.Optimizer, n: int) -> list[float]:
    losses, batches = [], objective.batches()
    for _ in range(n):
        loss, _ = objective(next(batches))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_goes_on_from_disk_bit_for_bit(name: str, run: Run) -> None:
    first = made(name, 0)
    steps(*first, 3)
    tensors, meta = capture(*first)
    run.checkpoints.write(3, tensors, meta, keep=2, protect=set())
    expected = steps(*first, 3)

    second = made(name, 1)
    steps(*second, 1)  # its own state must go
    loaded = run.checkpoints.read()
    restore(*second, loaded.tensors, loaded.meta)
    kinds = {key: value.dtype for values in first[1].state.values() for key, value in values.items()}
    assert kinds == {key: value.dtype for values in second[1].state.values() for key, value in values.items()}
    assert steps(*second, 3) == expected
    for one, other in zip(first[0].parameters(), second[0].parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_checkpoint_of_averages_is_what_to_use_and_goes_on_bit_for_bit(run: Run) -> None:
    """Captured while the averages are in: `model.*` are they, and the trained weights are beside them."""
    objective, optimizer = made("adamw-schedule-free", 0)
    assert isinstance(optimizer, Averaged)
    steps(objective, optimizer, 3)
    with optimizer.in_use():
        objective.eval()
        ids = torch.tensor([[1, 2, 3]])
        seen = objective.model(ids)
        run.checkpoints.write(3, *capture(objective, optimizer), keep=2, protect=set())
    objective.train()
    expected = steps(objective, optimizer, 3)

    loaded = run.checkpoints.read()
    weights = {name[6:]: value for name, value in loaded.tensors.items() if name.startswith("model.")}
    plain = Decoder(n_vocab=N_VOCAB, context=8, d_model=64, n_layers=1, n_heads=2).eval()
    plain.load_state_dict(weights)
    assert torch.equal(plain(ids), seen)

    second = made("adamw-schedule-free", 1)
    restore(*second, loaded.tensors, loaded.meta)
    assert isinstance(second[1], Averaged) and second[1].swapped
    second[1].swap_out()
    assert steps(*second, 3) == expected
