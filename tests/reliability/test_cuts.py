"""Cut anywhere and go on: the end is the same bit for bit, and each sample was seen exactly once an epoch.

A training of several epochs, with dropout, documents apart and three micro-batches a step, is cut at random places:
asked to stop by a signal in the middle of a micro-batch, or broken off there without a word. Each part has a trainer,
a model and generators of its own, as another process would have. So is one on packed documents, one on a mixture, one
whose batch and context grow and whose weights are averaged, and one with each optimizer.
"""

import math
import random
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tessera.config import Spec, build
from tessera.data.batches import Batch, EpochWindows, Packed, RandomWindows
from tessera.data.mixture import Mixture, Source, source_seed
from tessera.data.shards import Shard
from tessera.model.decoder import Decoder
from tessera.objectives import NextToken
from tessera.optim import OPTIMIZERS, groups
from tessera.optim.schedule import Cosine
from tessera.store.run import Run
from tessera.train.loader import Prefetched
from tessera.train.settings import TrainSettings
from tessera.train.trainer import Trainer

N_VOCAB, END, CONTEXT, BATCH, ACCUMULATE = 17, 0, 8, 3, 3
SHARD, OTHER = (
    Shard(np.random.default_rng(seed).integers(0, N_VOCAB, windows * CONTEXT - 2).astype(np.uint16))
    for seed, windows in ((5, 57), (6, 31))
)
STEPS, INTERVAL = 45, 4
CUTS = 24
BATCHES_AN_EPOCH = 19  # 57 windows: no whole number of steps, so that an epoch ends in the middle of one
EPOCH_ENDS = [-(-epoch * BATCHES_AN_EPOCH // ACCUMULATE) for epoch in (1, 2, 3)]


def epochs(shard: Shard, seed: int, batch_size: int = BATCH) -> EpochWindows:
    return EpochWindows(shard=shard, context=CONTEXT, batch_size=batch_size, seed=seed, separate_at=END)


def mixture() -> Mixture:
    """Of two sources, whose epochs end at different rows."""
    first, second = (epochs(shard, source_seed(2, number), 1) for number, shard in enumerate((SHARD, OTHER)))
    return Mixture(sources=[Source("a", first, weight=0.7), Source("b", second, weight=0.3)], batch_size=BATCH)


GROWING = {
    "batch_ramp": Spec("linear", {"start": 1, "steps": 20}),
    "context_ramp": Spec("doubling", {"start": 2, "steps": 20}),
    "ema": 0.9,
}


def plain() -> EpochWindows:
    return epochs(SHARD, seed=2)


@dataclass(frozen=True)
class Kind:
    """What is trained on, how, and with what."""

    stream: Callable[[], Any] = plain
    settings: Mapping[str, Any] = field(default_factory=dict)
    optimizer: str = "adamw"
    d_ff: int = 32
    bad: tuple[int, ...] = ()
    """The micro-batches, by number since the start, whose loss is NaN: at most one of a step."""

    def drawn(self, step: int) -> int:
        """How many micro-batches were drawn by the end of `step`: those of a bad one are passed over."""
        attempts = step
        for number in self.bad:
            attempts += number // ACCUMULATE < attempts
        return ACCUMULATE * attempts


KINDS = {
    "packed": Kind(partial(Packed, shard=SHARD, context=CONTEXT, batch_size=BATCH, seed=2, separate_at=END)),
    "random": Kind(partial(RandomWindows, shard=SHARD, context=CONTEXT, batch_size=BATCH, seed=2)),
    "mixture": Kind(mixture),
    "growing, with an average": Kind(settings=GROWING),
    "a growing mixture, schedule-free": Kind(
        mixture, {name: GROWING[name] for name in ("batch_ramp", "context_ramp")}, "adamw-schedule-free"
    ),
    "with losses that are no numbers": Kind(settings={"on_nonfinite": "skip"}, bad=(4, 15, 16 + 3, 75, 76 + 2, 130)),
    "adamw-8bit": Kind(optimizer="adamw-8bit", d_ff=512),  # smaller matrices stay in float32
    **{name: Kind(optimizer=name) for name in OPTIMIZERS if name not in ("adamw", "adamw-8bit")},
}
QUICK = (
    "packed",
    "mixture",
    "growing, with an average",
    "a growing mixture, schedule-free",
    "with losses that are no numbers",
    "adamw-8bit",
)


class BrokenOffError(Exception):
    """What a power cut is, as far as a training sees it."""


class Watched(NextToken):
    """Notes the windows that it sees; is disturbed in the given forward pass, and finds no loss in the `bad`."""

    seen: list[bytes]
    bad: tuple[int, ...]
    disturb: Callable[[], None]
    at = -1

    def forward(self, batch: Batch) -> Any:
        number = len(self.seen)
        if number == self.at:
            self.disturb()
        self.seen.append(batch.inputs_BT.numpy().tobytes())
        loss, metrics = super().forward(batch)
        return (loss * math.nan, metrics) if number in self.bad else (loss, metrics)


class Part:
    """One process's share of the training."""

    def __init__(self, run: Run | None, kind: Kind, *, prefetch: bool, seen: list[bytes]) -> None:
        torch.manual_seed(0)
        self.kind = kind
        self.model = Decoder(
            n_vocab=N_VOCAB, context=CONTEXT, d_model=8, n_layers=1, n_heads=2, d_ff=kind.d_ff, dropout=0.2
        )
        stream = kind.stream()
        self.objective = Watched(model=self.model, data=Prefetched(stream) if prefetch else stream)
        self.objective.seen, self.objective.bad = seen, kind.bad
        optimizer = build(OPTIMIZERS, kind.optimizer, params=groups(self.objective, 0.1), lr=0.01)
        settings = {"steps": STEPS, "accumulate": ACCUMULATE, "save_every": INTERVAL, "eval_every": 0, "keep": 2}
        self.trainer = Trainer(
            objective=self.objective,
            optimizer=optimizer,
            schedule=Cosine(warmup=3),
            settings=TrainSettings(**settings | {"batch_size": BATCH} | dict(kind.settings)),
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


@cache
def whole(kind: str) -> tuple[dict[str, Tensor], list[bytes]]:
    """The training that nothing cuts: how it ends, and what it has seen."""
    part = Part(None, KINDS.get(kind, Kind()), prefetch=False, seen=[])
    assert part.trainer.run() == "finished"
    return part.state(), part.objective.seen


def go_on(run: Run, kind: str, seen: list[bytes], *, prefetch: bool, seed: int) -> Part:
    part = Part(run, KINDS.get(kind, Kind()), prefetch=prefetch, seen=seen)
    if run.checkpoints.steps():
        torch.manual_seed(seed)
        assert part.trainer.resume() == []
    del seen[KINDS.get(kind, Kind()).drawn(part.trainer.step) :]  # what was lost is seen again
    return part


def break_off() -> None:
    raise BrokenOffError


def check_cuts(run: Run, kind: str, *, prefetch: bool) -> list[bytes]:
    """Train with all the cuts, and compare the end with that of the whole; gives what was seen."""
    seen: list[bytes] = []
    done = Counter[str]()
    for number, (step, micro_batch, how) in enumerate(places()):
        part = go_on(run, kind, seen, prefetch=prefetch, seed=number)
        part.objective.at = part.kind.drawn(step) - ACCUMULATE + micro_batch
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
    part = go_on(run, kind, seen, prefetch=prefetch, seed=99)
    assert part.trainer.run() == "finished"
    state, (expected, expected_seen) = part.state(), whole(kind)
    assert [name for name, value in expected.items() if not torch.equal(value, state[name])] == []
    assert seen == expected_seen
    return seen


@pytest.mark.parametrize(("store", "prefetch"), [("files", False), ("sqlite", True)])
def test_cut_anywhere_it_ends_bit_for_bit_and_each_sample_is_seen_once_an_epoch(run: Run, prefetch: bool) -> None:
    check_once_an_epoch(check_cuts(run, "plain", prefetch=prefetch))


@pytest.mark.parametrize("store", ["files"])
@pytest.mark.parametrize(
    "kind", [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)
def test_cut_anywhere_it_ends_bit_for_bit_whatever_it_trains(run: Run, kind: str) -> None:
    seen = check_cuts(run, kind, prefetch=True)
    assert len(seen) == KINDS[kind].drawn(STEPS)


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
