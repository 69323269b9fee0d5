"""A step that does not fit into memory is made in parts: really refused memory, really the same total batch.

This file is also a program: a training whose address space is limited so that its first steps are refused.
"""

import json
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from tessera.config import build
from tessera.data.batches import IGNORE, Batch, RandomWindows
from tessera.data.shards import Shard
from tessera.errors import InputError, SettingError
from tessera.model.decoder import Decoder
from tessera.objectives import NextToken
from tessera.optim import OPTIMIZERS, groups
from tessera.store.run import Run
from tessera.train.memory import MemoryFit, cut, is_out_of_memory
from tessera.train.settings import TrainSettings
from tessera.train.trainer import Trainer

ROWS, CONTEXT, N_VOCAB = 64, 256, 300


def batch_of(rows: int, targets: Sequence[int] = ()) -> Batch:
    tokens_BS = torch.arange(rows * 5).reshape(rows, 5)
    targets_BT = tokens_BS[:, 1:].clone()
    for row, count in enumerate(targets):
        targets_BT[row, count:] = IGNORE
    return Batch(tokens_BS[:, :-1], targets_BT, torch.zeros(rows, 4, dtype=torch.int64))


@pytest.mark.parametrize(("rows", "parts", "sizes"), [(6, 2, [3, 3]), (7, 4, [2, 2, 1, 2]), (3, 4, [1, 1, 1])])
def test_a_batch_is_cut_into_its_rows(rows: int, parts: int, sizes: list[int]) -> None:
    whole = batch_of(rows)
    pieces = cut(whole, parts)
    assert sorted(len(piece.inputs_BT) for piece in pieces) == sorted(sizes)
    for name in ("inputs_BT", "targets_BT", "documents_BT"):
        assert torch.equal(torch.cat([getattr(piece, name) for piece in pieces]), getattr(whole, name))


def test_a_part_in_which_nothing_is_learned_is_left_out() -> None:
    pieces = cut(batch_of(4, targets=[0, 0, 3, 0]), 4)
    assert [piece.n_targets for piece in pieces] == [3]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_a_refusal_of_memory_looks_like(error: BaseException, expected: bool) -> None:
    assert is_out_of_memory(error) == expected


def refusing(limit: int, drawn: list[float]) -> Callable[[list[Batch]], list[int]]:
    """Work that more than `limit` rows at a time are too much for, but only after it has drawn a random number."""

    def work(batches: list[Batch]) -> list[int]:
        drawn.append(torch.rand(()).item())
        if any(len(batch.inputs_BT) > limit for batch in batches):
            raise MemoryError
        return [len(batch.inputs_BT) for batch in batches]

    return work


def test_it_halves_until_it_fits_and_stays_there() -> None:
    said: list[str] = []
    drawn: list[float] = []
    undone: list[None] = []
    fit = MemoryFit(say=said.append)
    batches = [batch_of(8), batch_of(8)]
    assert fit.run(batches, refusing(2, drawn), lambda: undone.append(None)) == [2] * 8
    assert fit.parts == 4
    assert len(said) == len(undone) == 2
    assert "parts of 2" in said[-1]
    assert drawn[0] == drawn[1] == drawn[2]  # each attempt begins with the same generators
    assert fit.run(batches, refusing(2, drawn), lambda: undone.append(None)) == [2] * 8
    assert len(said) == 2


def test_a_row_that_does_not_fit_is_a_clear_error() -> None:
    with pytest.raises(SettingError, match=r"train\.batch_size = 2: expected a smaller model or a shorter"):
        MemoryFit().run([batch_of(2)], refusing(0, []), lambda: None)


def test_another_error_is_not_swallowed() -> None:
    def work(batches: list[Batch]) -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        MemoryFit().run([batch_of(2)], work, lambda: None)


def made(*, d_model: int = 64, n_layers: int = 4, optimizer: str = "sgd") -> Trainer:
    torch.manual_seed(0)
    shard = Shard(np.random.default_rng(0).integers(0, N_VOCAB, 5000).astype(np.uint16))
    model = Decoder(n_vocab=N_VOCAB, context=CONTEXT, d_model=d_model, n_layers=n_layers, n_heads=2)
    data = RandomWindows(shard=shard, context=CONTEXT, batch_size=ROWS, seed=1)
    objective = NextToken(model=model, data=data)
    return Trainer(
        objective=objective,
        optimizer=build(OPTIMIZERS, optimizer, params=groups(objective, 0.0), lr=0.1),
        schedule=lambda step, steps: 1.0,
        settings=TrainSettings(steps=3, eval_every=0),
    )


def train_limited(room: int, path: str) -> None:
    """Three steps with `room` bytes of address space more than a step of one row has needed, noted in a run."""
    torch.set_num_threads(1)
    trainer, said, losses = made(), [], []
    run = Run.create(path, recipe={}, tokenizer_json="{}", vocabulary=[])
    _warm_up(trainer)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + room, resource.RLIM_INFINITY))
    trainer.log, trainer.say = run, said.append
    trainer.watch = lambda progress: losses.append(progress.loss)
    trainer.run()
    run.close()
    weights = [parameter.double().sum().item() for parameter in trainer.objective.parameters()]
    print(json.dumps({"losses": losses, "said": said, "weights": weights, "parts": parts_of(trainer)}))


def _warm_up(trainer: Trainer) -> None:
    """Load what a first step loads, and leave everything as it was."""
    batch = Batch(torch.zeros(1, CONTEXT, dtype=torch.int64), torch.zeros(1, CONTEXT, dtype=torch.int64))
    trainer.objective.train()
    trainer.objective(batch)[0].backward()
    trainer.optimizer.zero_grad(set_to_none=True)


def parts_of(trainer: Trainer) -> int:
    return trainer._step.memory.parts


def test_memory_that_is_really_refused_halves_the_micro_batch_and_keeps_the_total(tmp_path: Path) -> None:
    arguments = [sys.executable, __file__, str(tmp_path / "run")]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["parts"] in (2, 4, 8, 16)
    with Run.open(tmp_path / "run") as run:
        events = run.events()
    parts = [2**number for number in range(1, report["parts"].bit_length())]
    assert [event.kind for event in events] == ["out of memory"] * len(parts)
    assert [event.step for event in events] == sorted(event.step for event in events)
    assert [event.action for event in events] == [f"micro-batches in {number} parts" for number in parts]
    assert [event.detail for event in events] == report["said"]
    assert "out of memory (" in report["said"][0]
    assert "parts of 32" in report["said"][0]

    losses: list[float] = []
    free = made()
    free.watch = lambda progress: losses.append(progress.loss)
    free.run()
    assert report["losses"] == pytest.approx(losses, abs=1e-5)  # the same samples, added up in another order
    weights = [parameter.double().sum().item() for parameter in free.objective.parameters()]
    assert report["weights"] == pytest.approx(weights, abs=1e-3)


def test_the_parts_are_a_part_of_the_state(make_run: Callable[..., Run]) -> None:
    run = make_run()
    ends = []
    for cut_at in (None, 2):
        trainer = made()
        trainer.settings = trainer.settings.model_copy(update={"steps": 3, "batch_size": 4})
        trainer.objective.data.batch_size = 4  # type: ignore[attr-defined]
        trainer._step.memory.parts = 2
        if cut_at is not None:
            trainer.checkpoints = run.checkpoints
            trainer.settings = trainer.settings.model_copy(update={"steps": cut_at})
            trainer.run()
            trainer = made()
            trainer.checkpoints = run.checkpoints
            trainer.objective.data.batch_size = 4  # type: ignore[attr-defined]
            trainer.resume()
        assert parts_of(trainer) == 2
        trainer.run()
        ends.append({name: value.clone() for name, value in trainer.objective.model.state_dict().items()})
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def train_without_room_for_the_state(room: int) -> None:
    """What is said, and how many steps were made, with `room` bytes of address space and an optimizer of 170 MB."""
    torch.set_num_threads(1)
    trainer, made_steps = made(d_model=768, n_layers=3, optimizer="adamw"), []
    _warm_up(trainer)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + room, resource.RLIM_INFINITY))
    trainer.watch = lambda progress: made_steps.append(progress.step)
    try:
        trainer.run()
    except InputError as error:
        print(json.dumps({"error": str(error), "steps": made_steps, "drawn": trainer.objective.get_extra_state()}))


def test_an_optimizer_whose_state_does_not_fit_is_refused_before_the_first_step() -> None:
    arguments = [sys.executable, __file__, "state"]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert re.match(
        r"the state of AdamW does not fit into memory: it needs 0\.17 GB beside the weights", report["error"]
    )
    assert report["steps"] == []
    assert report["drawn"] == made().objective.get_extra_state()  # nothing was begun


if __name__ == "__main__":
    if sys.argv[1:] == ["state"]:
        train_without_room_for_the_state(100 << 20)
    else:
        train_limited(150 << 20, sys.argv[1])
