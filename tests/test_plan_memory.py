"""The memory that a plan promises beside what a real training has taken at its worst moment.

This file is also a program: it trains one model after another, and asks the system for the peak of each. Large pieces
of memory go back at once when they are freed (MALLOC_MMAP_THRESHOLD_), so that a peak is not that of the one before.
"""

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tessera.building import build_model, build_optimizer
from tessera.config import build
from tessera.data.batches import RandomWindows
from tessera.data.shards import Shard
from tessera.objectives import NextToken
from tessera.optim.schedule import SCHEDULES
from tessera.plan import make_plan
from tessera.recipe import load_recipe
from tessera.train.compile import choose_compilation, lay_out
from tessera.train.trainer import Trainer

N_VOCAB = 512
DEEP = ["model.n_layers=6", "model.d_model=192", "model.n_heads=6", "model.context=256", "train.batch_size=4"]
WIDE = ["model.n_layers=2", "model.d_model=640", "model.n_heads=10", "model.context=64", "train.batch_size=2"]
CASES = {
    "deep": DEEP,
    "deep, a block at a time": [*DEEP, "train.checkpointing=1"],
    "deep, two blocks at a time": [*DEEP, "train.checkpointing=2"],
    "deep, the dear kept": [*DEEP, "train.checkpointing=selective"],
    "wide": WIDE,
    "wide, with an average": [*WIDE, "train.ema=0.9"],
    "wide, schedule-free": [*WIDE, 'optimizer={name = "adamw-schedule-free", lr = 0.001}'],
    "wide, eight bits": [*WIDE, 'optimizer={name = "adamw-8bit", lr = 0.001}'],
    "wide, adafactor": [*WIDE, 'optimizer={name = "adafactor", lr = 0.001}'],
    "wide, muon": [*WIDE, 'optimizer={name = "muon", lr = 0.001}'],
    "wide, lion, with an average": [*WIDE, 'optimizer={name = "lion", lr = 0.001}', "train.ema=0.9"],
    "deep, in three parts": [*DEEP, "train.accumulate=3"],
    "experts": [*DEEP, "model.n_layers=3", 'model.feed_forward={name = "moe", n_experts = 8, n_active = 2}'],
    "deep, bf16": [*DEEP, "train.precision=bf16"],
}
TOLERANCE = 0.25


def train(overrides: list[str]) -> int:
    """Two steps; the bytes that the plan promises."""
    settings = ["train.steps=2", "train.eval_every=0", "train.precision=fp32", "train.device=cpu"]
    recipe = load_recipe(None, [*settings, *overrides], sources=["x"])
    shard = Shard(np.random.default_rng(0).integers(0, N_VOCAB, 10_000).astype(np.uint16))
    model = build_model(recipe, N_VOCAB)
    windows = RandomWindows(shard=shard, context=model.context, batch_size=recipe.train.batch_size, seed=0)
    compilation = choose_compilation(False, torch.device("cpu"))
    lay_out(model, compilation=compilation, checkpointing=recipe.train.checkpointing)
    objective = NextToken(model=model, data=windows)
    trainer = Trainer(
        objective=objective,
        optimizer=build_optimizer(recipe, objective),
        schedule=build(SCHEDULES, recipe.schedule, path="schedule"),
        settings=recipe.train,
    )
    assert trainer.run() == "finished"
    return make_plan(recipe, n_vocab=N_VOCAB, speed=lambda device: 1.0).memory


def resident(name: str) -> int:
    """VmRSS, the bytes in memory now, or VmHWM, the most since it was last forgotten."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


def measure() -> dict[str, tuple[int, int]]:
    """Case -> (promised, taken)."""
    torch.set_num_threads(1)
    for case in ("deep, a block at a time", "deep, the dear kept", "wide, schedule-free"):
        train([*CASES[case], "model.d_model=60", "model.n_layers=1"])  # what is loaded at a first use
    found = {}
    for case, overrides in CASES.items():
        gc.collect()
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        found[case] = train(overrides), resident("VmHWM") - before
    return found


def test_the_plans_memory_is_near_to_what_a_training_takes() -> None:
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("this system does not tell the most memory that a process has had")
    alone = {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, __file__], env=os.environ | alone, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print({case: round(promised / taken, 2) for case, (promised, taken) in found.items()})
    for case, (promised, taken) in found.items():
        assert promised == pytest.approx(taken, rel=TOLERANCE), case
    peaks = [found[case][1] for case in ("deep, a block at a time", "deep, the dear kept", "deep")]
    assert peaks == sorted(peaks)


if __name__ == "__main__":
    print(json.dumps(measure()))
