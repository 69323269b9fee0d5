"""Training on each device that is here: batches that are fetched while it works, and the losses of the CPU."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from tessera.data.batches import BATCHES
from tessera.data.mixture import Mixture, Source
from tessera.data.shards import Shard
from tessera.model.decoder import Decoder
from tessera.objectives import NextToken
from tessera.optim import OPTIMIZERS, groups
from tessera.store.run import Run
from tessera.train.compile import Compilation, lay_out
from tessera.train.loader import Prefetched
from tessera.train.precision import FP32, Precision
from tessera.train.progress import Progress
from tessera.train.settings import TrainSettings
from tessera.train.trainer import Trainer

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=gpu)]
CPU = torch.device("cpu")
EAGER, COMPILED = Compilation(False, "asked for"), Compilation(True, "asked for")


def shard(seed: int) -> Shard:
    """Few tokens are frequent, which is soon learned."""
    return Shard(np.minimum(np.random.default_rng(seed).geometric(0.15, 4000) - 1, 60).astype(np.uint16))


def mixture(kind: str) -> Mixture:
    sources = [
        Source(str(i), BATCHES[kind](shard=shard(i), context=32, batch_size=1, seed=i, separate_at=0), weight)
        for i, weight in enumerate((0.7, 0.3))
    ]
    return Mixture(sources=sources, batch_size=8)


def trainer(device: torch.device, seen: list[Progress], **given: Any) -> Trainer:
    precision, compilation = given.pop("precision", FP32), given.pop("compilation", EAGER)
    kind, checkpointing, steps = given.pop("kind", "packed"), given.pop("checkpointing", None), given.pop("steps", 12)
    torch.manual_seed(0)
    model = Decoder(n_vocab=61, context=32, d_model=64, n_layers=2, n_heads=2).to(device)
    precision.prepare(model)
    lay_out(model, compilation=compilation, checkpointing=checkpointing)
    objective = NextToken(model=model, data=Prefetched(mixture(kind), pin=device.type == "cuda"))
    return Trainer(
        objective=objective,
        optimizer=OPTIMIZERS["adamw"](groups(objective, 0.1), lr=0.003),
        schedule=lambda step, steps: 1.0,
        settings=TrainSettings(steps=steps, accumulate=2, save_every=4, eval_every=0),
        watch=seen.append,
        device=device,
        precision=precision,
        **given,
    )


def losses(device: torch.device, **given: Any) -> list[float]:
    seen: list[Progress] = []
    trainer(device, seen, **given).run()
    return [each.loss for each in seen]


@pytest.fixture
def exact_products() -> Iterator[None]:
    """float32 in the products of a GPU, whatever was set before."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("kind", sorted(BATCHES))
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.usefixtures("exact_products")
def test_losses_are_those_of_the_cpu(device: str, kind: str) -> None:
    wanted = losses(CPU, kind=kind)
    assert wanted[-1] < wanted[0] - 0.05
    assert losses(torch.device(device), kind=kind) == pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize("checkpointing", [1, 2, "selective"])
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.usefixtures("exact_products")
def test_losses_are_the_same_with_less_kept(device: str, checkpointing: Any) -> None:
    there = torch.device(device)
    assert losses(there, checkpointing=checkpointing) == pytest.approx(losses(there), abs=1e-4)


@gpu
@pytest.mark.parametrize("checkpointing", [None, "selective"])
@pytest.mark.parametrize("name", ["fp32", "tf32", "bf16", "fp16"])
def test_compiled_on_a_gpu_losses_are_near_to_those_of_the_cpu(name: str, checkpointing: Any) -> None:
    there = torch.device("cuda")
    found = losses(there, precision=Precision(name), compilation=COMPILED, checkpointing=checkpointing)
    assert found == pytest.approx(losses(CPU), abs=1e-3 if name == "fp32" else 5e-2)


@gpu
def test_fp8_on_a_gpu_that_has_it() -> None:
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU has no products in 8 bits")
    found = losses(torch.device("cuda"), precision=Precision("fp8"), compilation=COMPILED)
    assert found == pytest.approx(losses(CPU), abs=0.1)


@gpu
def test_the_host_does_not_wait_in_the_loop() -> None:
    """CUDA itself says where it was waited for: an error, in the steps after the first ones."""
    seen: list[Progress] = []
    made = trainer(torch.device("cuda"), seen, precision=Precision("bf16"), steps=8)
    made.settings = made.settings.model_copy(update={"save_every": 0, "detail_every": 0})

    def drew(step: int, cursor: Any, rows: Any) -> None:
        torch.cuda.set_sync_debug_mode("error" if 3 <= step < 7 else "default")

    made.drew = drew
    try:
        made.run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(seen) == 8


@pytest.mark.parametrize("device", DEVICES)
def test_resumed_it_is_the_run_that_was_not_stopped(device: str, make_run: Callable[..., Run]) -> None:
    there = torch.device(device)
    whole = trainer(there, [], checkpoints=make_run(name="whole").checkpoints)
    whole.run()
    run = make_run(name="cut")
    trainer(there, [], checkpoints=run.checkpoints, steps=5).run()
    second = trainer(there, [], checkpoints=run.checkpoints)
    second.resume()
    second.run()
    for ours, theirs in zip(second.objective.parameters(), whole.objective.parameters(), strict=True):
        assert torch.equal(ours, theirs) if device == "cpu" else torch.allclose(ours, theirs, atol=1e-5)


@gpu
def test_batches_are_where_a_gpu_fetches_them_by_itself() -> None:
    batch = next(Prefetched(mixture("packed"), pin=True))
    assert batch.inputs_BT.is_pinned() and batch.targets_BT.is_pinned()
    assert batch.documents_BT is not None and batch.documents_BT.is_pinned()
    assert torch.equal(batch.to("cuda").inputs_BT.cpu(), batch.inputs_BT)
