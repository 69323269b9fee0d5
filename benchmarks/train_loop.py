"""What a run costs beside its forward and backward passes: the loop itself, its start, and Muon.

The loop and the start are those of `tessera train` on a small text by characters: S with the settings as shipped, and
recipes/shakespeare-char.toml for the start, timed from outside until the first step is in the run's database.
"""

import contextlib
import json
import resource
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.train_ours import tessera
from benchmarks.train_precision import chosen
from benchmarks.train_shapes import Shape
from tessera import job
from tessera.recipe import load_recipe
from tessera.watcher import Watcher

RECIPE = Path(__file__).parents[1] / "recipes" / "shakespeare-char.toml"
NOT_THE_LOOP = ("validation", "samples", "checkpoints")
STEP = ("forward and backward", "optimizer")
MUON_TOKENS = 8192
PATIENCE = 300.0


class _Times(Watcher):
    """When the training began, and when each step had been looked at."""

    def __init__(self) -> None:
        self.at: list[float] = []

    @contextmanager
    def steps(self) -> Iterator[Any]:
        self.at.append(time.perf_counter())
        yield lambda progress: self.at.append(time.perf_counter())


def small_text(folder: Path) -> Path:
    """Enough for some batches: a module of the standard library, over and over."""
    text = Path(json.__file__).read_text(encoding="utf-8")
    (path := folder / "text.txt").write_text(text * (1 + 400_000 // len(text)), encoding="utf-8")
    return path


def loop_overhead(shape: Shape, *, steps: int) -> float:
    """The share of a run's steps that is not forward, backward or optimizer: data, log, watcher, signals."""
    with tempfile.TemporaryDirectory() as folder:
        sizes = {"d_model": shape.d_model, "n_layers": shape.n_layers, "n_heads": shape.n_heads}
        recipe = load_recipe(
            RECIPE,
            [
                f"data.source=[{json.dumps(str(small_text(Path(folder))))}]",
                *(f"model.{name}={value}" for name, value in sizes.items()),
                f"model.context={shape.context}",
                f"train.batch_size={shape.batch_size}",
                f"train.steps={steps}",
                "train.eval_every=0",
                "train.save_every=0",
                "sample.sampling.max_tokens=1",
            ],
        )
        watcher = _Times()
        result = job.train(recipe, Path(folder) / "run", watcher=watcher)
        result.run.close()
    total = watcher.at[-1] - watcher.at[0] - sum(result.seconds.get(name, 0.0) for name in NOT_THE_LOOP)
    return round(1 - sum(result.seconds[name] for name in STEP) / total, 4)


def startup() -> dict[str, float]:
    """Seconds from the start of the command to the end of the first step, once: the text's shards are made on the way.

    Beside them those of the processor, which say more on a machine that has other work.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "tessera", "train", "-c", str(RECIPE), str(small_text(Path(folder)))]
        command += ["--out", str(out), "train.steps=1000000"]
        said = Path(folder) / "said.txt"
        before = _seconds_of_children()
        with said.open("w") as stream:
            start = time.perf_counter()
            running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stream)
            try:
                while not _has_a_step(out):
                    if running.poll() is not None or time.perf_counter() - start > PATIENCE:
                        raise RuntimeError(f"{' '.join(command)} made no step:\n{said.read_text()}")
                    time.sleep(0.01)
                seconds = time.perf_counter() - start
            finally:
                running.kill()
                running.wait()
    processor = _seconds_of_children() - before
    return {"startup_seconds": round(seconds, 2), "startup_processor_seconds": round(processor, 2)}


def _seconds_of_children() -> float:
    """Of the processor, in all processes that were started here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _has_a_step(run: Path) -> bool:
    path = run / "run.db"
    if not path.exists():
        return False
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        try:
            return bool(database.execute("SELECT 1 FROM metrics LIMIT 1").fetchall())
        except sqlite3.OperationalError:  # it is just being made
            return False


def muon_cost(shape: Shape, *, rounds: int) -> float:
    """The share of tokens a second that Muon costs beside AdamW at 8,192 tokens a step, in turns."""
    shape = replace(shape, batch_size=MUON_TOKENS // shape.context)
    steps = {name: tessera(shape, chosen(shape), optimizer=name) for name in ("adamw", "muon")}
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        rows = shape.batch(number)
        for name, step in steps.items():
            start = time.process_time()
            step(rows)
            taken[name].append(time.process_time() - start)
    pairs = list(zip(taken["adamw"], taken["muon"], strict=True))[1:]
    return round(1 - statistics.median(adamw / muon for adamw, muon in pairs), 4)
