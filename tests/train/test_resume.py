"""A training that stops and goes on: from whatever step, the end is the same bit for bit as if it had never stopped."""

import math
import signal
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tessera.config import build
from tessera.data.batches import BATCHES, validation_batches
from tessera.data.shards import Shard
from tessera.errors import InputError
from tessera.evaluate.loss import held_out_loss
from tessera.model.decoder import Decoder
from tessera.objectives import NextToken
from tessera.optim import OPTIMIZERS, groups
from tessera.optim.schedule import Cosine
from tessera.store.run import Run
from tessera.train.progress import Progress
from tessera.train.settings import TrainSettings
from tessera.train.trainer import Trainer

N_VOCAB = 13
SHARD = Shard(np.random.default_rng(0).integers(0, N_VOCAB, 230).astype(np.uint16))

STEPS = 9
OPTIMIZER_SPECS: dict[str, dict[str, Any]] = {
    "adamw": {"name": "adamw", "lr": 0.02},
    "sgd": {"name": "sgd", "lr": 0.02, "momentum": 0.9},
}


class Resumable:
    """A training of nine steps with everything that could be lost: dropout, optimizer state, a schedule, a cursor."""

    def __init__(self, optimizer: str, batches: str, run: Run | None, *, d_model: int = 8, **settings: Any) -> None:
        torch.manual_seed(0)
        shape = {"context": 8, "d_model": d_model, "n_layers": 1, "n_heads": 2, "dropout": 0.2}
        self.model = Decoder(n_vocab=N_VOCAB, **shape)
        data = build(BATCHES, batches, shard=SHARD, context=8, batch_size=6, seed=2, separate_at=0)
        objective = NextToken(model=self.model, data=data)
        settings = {"accumulate": 2, "save_every": 1, "keep": STEPS, "eval_every": 2} | settings
        self.seen: list[Progress] = []
        self.trainer = Trainer(
            objective=objective,
            optimizer=build(OPTIMIZERS, OPTIMIZER_SPECS[optimizer], params=groups(objective, 0.1)),
            schedule=Cosine(warmup=2),
            settings=TrainSettings(**({"steps": STEPS} | settings)),
            validate=lambda: held_out_loss(self.model, validation_batches(SHARD, 8, 16)).mean,
            checkpoints=run.checkpoints if run else None,
            watch=self.seen.append,
        )

    @property
    def weights(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    def curve(self) -> list[tuple[int, float, float, float, float | None]]:
        return [(p.step, p.loss, p.lr, p.grad_norm, p.validation) for p in self.seen]

    def state(self) -> dict[str, Tensor]:
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        state = self.weights
        for parameter, values in self.trainer.optimizer.state.items():
            state |= {f"{names[id(parameter)]}/{key}": value.clone() for key, value in values.items()}
        return state | {"rng": torch.get_rng_state()}


def different(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """The names of what is not equal bit for bit."""
    assert state.keys() == expected.keys()
    return [name for name in expected if not torch.equal(state[name], expected[name])]


@pytest.mark.parametrize("store", ["files", "sqlite"])
@pytest.mark.parametrize("batches", sorted(BATCHES))
@pytest.mark.parametrize("optimizer", sorted(OPTIMIZER_SPECS))
def test_resumed_at_any_step_it_ends_bit_for_bit_as_uninterrupted(
    make_run: Callable[..., Run], optimizer: str, batches: str, store: str
) -> None:
    whole = Resumable(optimizer, batches, None)
    whole.trainer.run()
    expected = whole.state()
    assert len(expected) > len(whole.weights) + 1  # the optimizer has a state to lose

    run = make_run(store)
    saving = Resumable(optimizer, batches, run)
    saving.trainer.run()
    for cut in (1, 4, 5, STEPS - 1, STEPS):
        resumed = Resumable(optimizer, batches, make_run(store, f"resumed-{cut}"))
        torch.manual_seed(99)  # another process stands anywhere
        resumed.trainer.checkpoints, own = run.checkpoints, resumed.trainer.checkpoints
        assert resumed.trainer.resume(cut) == []
        resumed.trainer.checkpoints = own
        assert resumed.trainer.step == resumed.trainer.resumed_from == cut
        assert resumed.trainer.run() == "finished"
        assert resumed.curve() == whole.curve()[cut:]
        assert different(resumed.state(), expected) == []
        assert resumed.trainer.tokens == whole.trainer.tokens
        assert resumed.trainer.best == saving.trainer.best < math.inf


@pytest.mark.parametrize("store", ["files", "sqlite"])
def test_interrupted_again_and_again_it_ends_bit_for_bit_as_uninterrupted(
    make_run: Callable[..., Run], store: str
) -> None:
    whole = Resumable("adamw", "epoch", None)
    whole.trainer.run()
    expected, run = whole.state(), make_run(store)
    curve: list[Any] = []
    outcome, attempts = "", 0
    while outcome != "finished":
        part = Resumable("adamw", "epoch", run, save_every=0, max_minutes=1e-9, keep=1)
        if attempts:
            torch.manual_seed(attempts)
            part.trainer.resume()
        outcome, attempts = part.trainer.run(), attempts + 1
        curve += part.curve()
    assert attempts == STEPS
    assert curve == whole.curve()
    assert different(part.state(), expected) == []


def damage(run: Run, step: int) -> str:
    """Flip one bit of the weights of a step; what the message must name."""
    if run.store == "files":
        path = run.path / "checkpoints" / f"step-{step:06d}" / "model.safetensors"
        content = bytearray(path.read_bytes())
        content[-3] ^= 1
        path.write_bytes(content)
        return str(path)
    with run._database.transaction() as connection:
        where = "step = ? AND name LIKE 'model.%' LIMIT 1"
        rowid, data = connection.execute(f"SELECT rowid, data FROM tensor_parts WHERE {where}", (step,)).fetchone()
        flipped = bytes([data[0] ^ 1]) + data[1:]
        connection.execute("UPDATE tensor_parts SET data = ? WHERE rowid = ?", (flipped, rowid))
    return "run.db is damaged: step 6, tensor 'model."


@pytest.mark.parametrize("store", ["files", "sqlite"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_leads_to_the_same_end(
    make_run: Callable[..., Run], store: str
) -> None:
    whole = Resumable("adamw", "random", None)
    whole.trainer.run()
    expected, run = whole.state(), make_run(store)
    first = Resumable("adamw", "random", run, save_every=2)
    first.trainer.watch = lambda progress: signal.raise_signal(signal.SIGINT) if progress.step == 5 else None
    assert first.trainer.run() == "interrupted"
    assert run.checkpoints.steps() == [2, 4, 6]
    named = damage(run, 6)

    resumed = Resumable("adamw", "random", run, save_every=2)
    (skipped,) = resumed.trainer.resume()
    assert skipped.startswith("step 6: ")
    assert named in skipped
    assert resumed.trainer.step == 4
    run.truncate_after(4)
    resumed.trainer.run()
    assert resumed.curve() == whole.curve()[4:]
    assert different(resumed.state(), expected) == []
    assert run.checkpoints.read().step == STEPS


def test_resuming_keeps_the_checkpoint_it_came_from(make_run: Callable[..., Run]) -> None:
    run = make_run()
    Resumable("sgd", "epoch", run, steps=3).trainer.run()
    resumed = Resumable("sgd", "epoch", run, keep=1, eval_every=0)
    resumed.trainer.validate = None
    resumed.trainer.resume(2)
    run.truncate_after(2)
    resumed.trainer.run()
    assert 2 in run.checkpoints.steps()
    assert run.checkpoints.steps()[-1] == STEPS


def test_another_model_is_refused(make_run: Callable[..., Run]) -> None:
    run = make_run()
    Resumable("sgd", "epoch", run, steps=1).trainer.run()
    other = Resumable("sgd", "epoch", run, d_model=16)
    with pytest.raises(InputError, match="another model"):
        other.trainer.resume()
    assert other.trainer.step == 0
