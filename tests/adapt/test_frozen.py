"""A run with adapters: small checkpoints that know their base, and that go on bit for bit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tessera.adapt import Lora, base_sha256, frozen_sha256, merge_and_remove, quantize_base, remove
from tessera.config import build
from tessera.data.batches import BATCHES
from tessera.data.shards import Shard
from tessera.errors import InputError
from tessera.model.decoder import Decoder
from tessera.objectives import NextToken
from tessera.optim import OPTIMIZERS, groups
from tessera.optim.schedule import Cosine
from tessera.store.run import Run
from tessera.train.checkpoint import capture
from tessera.train.trainer import Trainer, TrainSettings

N_VOCAB, STEPS = 13, 6
SHARD = Shard(np.random.default_rng(0).integers(0, N_VOCAB, 230).astype(np.uint16))
MOE = {"name": "moe", "n_experts": 4, "n_active": 2, "balance": "bias"}


def trainer(run: Run | None, lora: dict[str, Any], *, seed: int = 0, steps: int = STEPS, **shape: Any) -> Trainer:
    torch.manual_seed(seed)
    settings: dict[str, Any] = {"context": 8, "d_model": 8, "n_layers": 2, "n_heads": 2, "dropout": 0.1, "bias": True}
    model = Decoder(n_vocab=N_VOCAB, **(settings | shape))
    Lora(rank=2, dropout=0.2, **lora)(model)
    data = build(BATCHES, "epoch", shard=SHARD, context=8, batch_size=4, seed=2)
    objective = NextToken(model=model, data=data)
    return Trainer(
        objective=objective,
        optimizer=build(OPTIMIZERS, {"name": "adamw-8bit", "lr": 0.02}, params=groups(objective, 0.1)),
        schedule=Cosine(warmup=1),
        settings=TrainSettings(steps=steps, save_every=1, keep=STEPS, ema=0.9),
        checkpoints=run.checkpoints if run else None,
    )


@pytest.fixture
def run(tmp_path: Path) -> Any:
    made = Run.create(tmp_path / "run", recipe={}, tokenizer_json="{}", vocabulary=[])
    yield made
    made.close()


@pytest.mark.parametrize("lora", [{}, {"dora": True}, {"base": "nf4"}, {"base": "int8", "rslora": True}])
def test_a_run_goes_on_bit_for_bit_from_its_adapter(lora: dict[str, Any], run: Run) -> None:
    whole = trainer(run, lora, feed_forward=MOE)
    whole.run()
    second = trainer(run, lora, feed_forward=MOE)
    torch.manual_seed(99)
    second.resume(3)
    assert second.step == 3
    second.run()
    first, other = whole.objective.state_dict(), second.objective.state_dict()
    assert list(first) == list(other)
    assert any("router_bias" in name for name in first), "what is learned without a gradient is kept"
    for name, value in first.items():
        assert not isinstance(value, torch.Tensor) or torch.equal(value, other[name]), name


def test_a_checkpoint_has_what_is_learned_and_the_bases_sha256() -> None:
    made = trainer(None, {})
    tensors, _ = capture(made.objective, made.optimizer)
    weights = {name for name in tensors if name.startswith("model.")}
    others = {name for name in weights if ".adapters." not in name}
    assert others == {"model.adapted_base.sha256"}
    assert len(weights) == 1 + 2 * 14
    digest = bytes(tensors["model.adapted_base.sha256"].tolist()).hex()
    assert digest == frozen_sha256(made.objective.model) == base_sha256(made.objective.model).hex()


def test_an_adapter_of_another_base_is_refused(run: Run) -> None:
    trainer(run, {}, steps=1).run()
    other = trainer(run, {}, seed=1)
    before = {name: param.clone() for name, param in other.objective.named_parameters()}
    with pytest.raises(InputError, match="made for another base"):
        other.resume()
    for name, param in other.objective.named_parameters():
        assert torch.equal(param, before[name])


def test_the_sha256_is_of_the_base_whatever_is_around_it() -> None:
    torch.manual_seed(0)
    model = Decoder(n_vocab=9, context=4, d_model=8, n_layers=1, n_heads=2)
    plain = base_sha256(model)
    Lora(targets=("query",))(model, "one")
    assert base_sha256(model) == plain
    Lora(dora=True)(model, "two")
    assert base_sha256(model) == plain
    remove(model)
    assert base_sha256(model) == plain
    with torch.no_grad():
        model.embedding.weight[0, 0] += 1e-6
    assert base_sha256(model) != plain
    before = base_sha256(model)
    quantize_base(model, "nf4")
    assert base_sha256(model) != before


def test_a_plain_model_has_its_whole_state_again() -> None:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"n_vocab": 9, "context": 4, "d_model": 8, "n_layers": 1, "n_heads": 2}
    model, plain = Decoder(**shape), Decoder(**shape)
    names = list(plain.state_dict())
    Lora(base="nf4")(model)
    assert all(".adapters." in name or name.startswith("adapted_base") for name in model.state_dict())
    merge_and_remove(model)
    assert list(model.state_dict()) == names
    plain.load_state_dict(model.state_dict())
    assert all(param.requires_grad for param in model.parameters())
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(model(ids), plain(ids))
