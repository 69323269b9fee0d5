"""Cut anywhere and go on: the end is the same bit for bit, and each sample was seen exactly once an epoch.

A training of several epochs, with dropout, documents apart and three micro-batches a step, is cut at random places:
asked to stop by a signal in the middle of a micro-batch, or broken off there without a word. Each part has a trainer,
a model and generators of its own, as another process would have.
"""

import random
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tessera.config import build
from tessera.data.batches import Batch, EpochWindows
from tessera.data.shards import Shard
from tessera.model.decoder import Decoder
from tessera.objectives import NextToken
from tessera.optim import OPTIMIZERS, groups
from tessera.optim.schedule import Cosine
from tessera.store.run import CHECKPOINT_STORES, Run
from tessera.train.loader import Prefetched
from tessera.train.trainer import Trainer, TrainSettings

N_VOCAB, END, CONTEXT, BATCH, ACCUMULATE = 17, 0, 8, 3, 3
SHARD = Shard(np.random.default_rng(5).integers(0, N_VOCAB, 57 * CONTEXT - 2).astype(np.uint16))
STEPS, INTERVAL = 45, 4
CUTS = 24
BATCHES_AN_EPOCH = 19  # 57 windows: no whole number of steps, so that an epoch ends in the middle of one
EPOCH_ENDS = [-(-epoch * BATCHES_AN_EPOCH // ACCUMULATE) for epoch in (1, 2, 3)]


class BrokenOffError(Exception):
    """What a power cut is, as far as a training sees it."""


class Watched(NextToken):
    """Notes the windows that it learns from; is disturbed in the given forward pass."""

    seen: list[bytes]
    disturb: Callable[[], None]
    at = -1

    def forward(self, batch: Batch) -> Any:
        if len(self.seen) == self.at:
            self.disturb()
        self.seen.append(batch.inputs_BT.numpy().tobytes())
        return super().forward(batch)


class Part:
    """One process's share of the training."""

    def __init__(self, run: Run | None, *, prefetch: bool, seen: list[bytes]) -> None:
        torch.manual_seed(0)
        self.model = Decoder(n_vocab=N_VOCAB, context=CONTEXT, d_model=8, n_layers=1, n_heads=2, dropout=0.2)
        windows = EpochWindows(shard=SHARD, context=CONTEXT, batch_size=BATCH, seed=2, separate_at=END)
        self.objective = Watched(model=self.model, data=Prefetched(windows) if prefetch else windows)
        self.objective.seen = seen
        optimizer = build(OPTIMIZERS, "adamw", params=groups(self.objective, 0.1), lr=0.01)
        self.trainer = Trainer(
            objective=self.objective,
            optimizer=optimizer,
            schedule=Cosine(warmup=3),
            settings=TrainSettings(steps=STEPS, accumulate=ACCUMULATE, save_every=INTERVAL, eval_every=0, keep=2),
            checkpoints=run.checkpoints if run else None,
        )

    def state(self) -> dict[str, Tensor]:
        state = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        for number, values in enumerate(self.trainer.optimizer.state.values()):
            state |= {f"{number}/{key}": value.clone() for key, value in values.items() if isinstance(value, Tensor)}
        return state | {"rng": torch.get_rng_state()}


def places() -> list[tuple[int, int, str]]:
    """(step, micro-batch in it, how): CUTS random ones in order, with ends of epochs and the last step among them."""
    rng = random.Random(11)
    chosen = [*EPOCH_ENDS, STEPS]
    chosen += rng.sample([step for step in range(1, STEPS) if step not in chosen], CUTS - len(chosen))
    return [(step, rng.randrange(ACCUMULATE), rng.choice(["asked", "broken off"])) for step in sorted(chosen)]


@pytest.fixture
def run(tmp_path: Path, store: str) -> Iterator[Run]:
    with Run.create(tmp_path / "run", recipe={}, tokenizer_json="{}", vocabulary=[], store=store) as run:
        yield run


@pytest.fixture(scope="module")
def whole() -> Part:
    part = Part(None, prefetch=False, seen=[])
    assert part.trainer.run() == "finished"
    part.expected = part.state()  # type: ignore[attr-defined]  # the generators go on
    return part


def go_on(run: Run, seen: list[bytes], *, prefetch: bool, seed: int) -> Part:
    part = Part(run, prefetch=prefetch, seen=seen)
    if run.checkpoints.steps():
        torch.manual_seed(seed)
        assert part.trainer.resume() == []
    del seen[ACCUMULATE * part.trainer.step :]  # what was lost is seen again
    return part


@pytest.mark.parametrize("prefetch", [False, True], ids=["", "prefetched"])
@pytest.mark.parametrize("store", list(CHECKPOINT_STORES))
def test_cut_anywhere_it_ends_bit_for_bit_and_each_sample_is_seen_once_an_epoch(
    run: Run, whole: Part, prefetch: bool
) -> None:
    seen: list[bytes] = []
    done = Counter[str]()

    def break_off() -> None:
        raise BrokenOffError

    for number, (step, micro_batch, how) in enumerate(places()):
        part = go_on(run, seen, prefetch=prefetch, seed=number)
        part.objective.at = ACCUMULATE * (step - 1) + micro_batch
        part.objective.disturb = break_off if how == "broken off" else lambda: signal.raise_signal(signal.SIGTERM)
        if how == "asked":
            assert part.trainer.run() == ("finished" if step == STEPS else "interrupted")
            assert part.trainer.step == run.checkpoints.steps()[-1] == step  # the step is finished, then it stops
        else:
            before = part.trainer.step
            with pytest.raises(BrokenOffError):
                part.trainer.run()
            assert run.checkpoints.steps()[-1:] == ([newest] if (newest := newest_saved(before, step - 1)) else [])
        done[how] += 1
    assert min(done.values()) >= 6
    part = go_on(run, seen, prefetch=prefetch, seed=99)
    assert part.trainer.run() == "finished"
    state = part.state()
    assert [name for name, value in whole.expected.items() if not torch.equal(value, state[name])] == []  # type: ignore[attr-defined]
    assert seen == whole.objective.seen
    check_once_an_epoch(seen)


def newest_saved(resumed_at: int, made: int) -> int:
    return max(resumed_at, made - made % INTERVAL)


def check_once_an_epoch(seen: list[bytes]) -> None:
    """Against the text itself: the windows of an epoch are those of the text, each once."""
    tokens = SHARD.tokens.astype(np.int64)
    padded = np.append(tokens, [tokens[-1]] * CONTEXT)  # the last window reaches past the end
    windows = Counter(padded[start : start + CONTEXT].tobytes() for start in range(0, len(tokens) - 1, CONTEXT))
    assert len(windows) == 57
    width = 8 * CONTEXT
    rows = [batch[start : start + width] for batch in seen for start in range(0, len(batch), width)]
    for epoch in range(len(rows) // 57):
        assert Counter(rows[57 * epoch : 57 * (epoch + 1)]) == windows
    assert len(rows) // 57 >= 6
