"""Compiled training: the same losses but for rounding, with all else that a step can have."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tessera.data.batches import RandomWindows
from tessera.data.shards import Shard
from tessera.model.decoder import Decoder
from tessera.objectives import NextToken
from tessera.optim import OPTIMIZERS, groups
from tessera.store.run import Run
from tessera.train.compile import (
    Compilation,
    cache_folder,
    choose_compilation,
    compile_blocks,
    compile_seconds,
    lay_out,
)
from tessera.train.precision import FP32, Precision
from tessera.train.progress import Progress
from tessera.train.settings import TrainSettings
from tessera.train.trainer import Trainer

CPU = torch.device("cpu")
COMPILED, EAGER = Compilation(True, "asked for"), Compilation(False, "asked for")

SHARD = Shard(np.random.default_rng(0).integers(0, 13, 400).astype(np.uint16))


def losses(compiled: bool, precision: Precision = FP32, **shape: Any) -> list[float]:
    torch.manual_seed(0)
    model = Decoder(n_vocab=13, context=8, d_model=16, n_layers=1, n_heads=2, **shape)
    names = list(model.state_dict())
    model.recompute_every = 1
    if compiled:
        compile_blocks(model)
    objective = NextToken(model=model, data=RandomWindows(shard=SHARD, context=8, batch_size=4))
    seen: list[Progress] = []
    Trainer(
        objective=objective,
        optimizer=OPTIMIZERS["adamw"](groups(objective, 0.0), lr=0.01),
        schedule=lambda step, steps: 1.0,
        settings=TrainSettings(steps=4),
        watch=seen.append,
        precision=precision,
    ).run()
    assert list(model.state_dict()) == names
    return [progress.loss for progress in seen]


@pytest.mark.slow
@pytest.mark.parametrize("precision", [FP32, Precision("fp32", onednn=True), Precision("bf16")], ids=str)
def test_the_losses_are_the_same(precision: Precision) -> None:
    tolerance = 1e-5 if precision.name == "fp32" else 3e-2
    assert losses(True, precision) == pytest.approx(losses(False, precision), abs=tolerance)
    assert compile_seconds() > 0


def test_only_the_training_pass_is_compiled() -> None:
    model = Decoder(n_vocab=13, context=8, d_model=16, n_layers=1, n_heads=2)
    model.training_blocks = [lambda *arguments: pytest.fail("the compiled block was used")]
    ids_BT = torch.zeros(1, 4, dtype=torch.int64)
    with torch.inference_mode():
        model(ids_BT)
        model(ids_BT, model.new_cache(1))
    with pytest.raises(pytest.fail.Exception):
        model(ids_BT)


def test_auto_is_off_on_a_cpu_and_says_why() -> None:
    found = choose_compilation("auto", CPU)
    assert (
        not found.on and found.describe() == "blocks not compiled: it gains little on cpu; train.compile=true to do it"
    )
    assert choose_compilation(True, CPU).on and not choose_compilation(False, torch.device("cuda")).on


def test_what_is_compiled_is_kept_where_the_user_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TESSERA_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "tessera" / "inductor"
    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own" / "inductor"


@pytest.mark.parametrize(
    ("checkpointing", "every", "products"), [(None, None, True), (3, 3, True), ("selective", 1, False)]
)
def test_checkpointing_without_the_compiler(checkpointing: Any, every: int | None, products: bool) -> None:
    model = Decoder(n_vocab=13, context=8, d_model=16, n_layers=1, n_heads=2)
    lay_out(model, compilation=EAGER, checkpointing=checkpointing)
    assert (model.recompute_every, model.recompute_products) == (every, products)
    assert model.training_blocks is None


def kept(checkpointing: Any, compilation: Compilation) -> tuple[int, list[torch.Tensor]]:
    """The bytes that a forward pass keeps, but for the weights, and the gradients."""
    torch.manual_seed(0)
    model = Decoder(n_vocab=64, context=64, d_model=64, n_layers=2, n_heads=2)
    lay_out(model, compilation=compilation, checkpointing=checkpointing)
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    sizes: dict[int, int] = {}

    def note(x: torch.Tensor) -> torch.Tensor:
        if x.data_ptr() not in weights:
            sizes[x.data_ptr()] = x.untyped_storage().nbytes()
        return x

    ids_BT = torch.arange(64)[None].expand(4, 64)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        x_BTD = model.trunk(ids_BT)
    model.loss(model.final_norm(x_BTD), ids_BT).backward()
    return sum(sizes.values()), [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.slow
def test_selective_checkpointing_is_the_compilers_own_work_where_there_is_one() -> None:
    all_of_it, exact = kept(None, COMPILED)
    products, close = kept("selective", COMPILED)
    assert products < 0.8 * all_of_it
    for one, other in zip(close, exact, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_compiled_run_that_is_resumed_is_the_run_that_was_not_stopped(make_run: Callable[..., Run]) -> None:
    def trainer(run: Run, steps: int) -> Trainer:
        torch.manual_seed(0)
        model = Decoder(n_vocab=13, context=8, d_model=16, n_layers=1, n_heads=2, dropout=0.1)
        lay_out(model, compilation=COMPILED, checkpointing="selective")
        objective = NextToken(model=model, data=RandomWindows(shard=SHARD, context=8, batch_size=4))
        return Trainer(
            objective=objective,
            optimizer=OPTIMIZERS["adamw"](groups(objective, 0.0), lr=0.01),
            schedule=lambda step, steps: 1.0,
            settings=TrainSettings(steps=steps, save_every=3),
            checkpoints=run.checkpoints,
        )

    whole = trainer(make_run(name="whole"), 6)
    whole.run()
    run = make_run(name="cut")
    trainer(run, 3).run()
    second = trainer(run, 6)
    second.resume()
    second.run()
    for name, one in whole.objective.state_dict().items():
        if isinstance(one, torch.Tensor):
            assert torch.equal(one, second.objective.state_dict()[name]), name
