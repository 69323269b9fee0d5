"""A run that is killed, and killed again, ends bit for bit as the one that was left alone.

This file is also a program, the conductor: one process that has torch loaded forks a child for each attempt, so that
an attempt costs no start. It kills each child at a random moment with SIGKILL, or lets it kill itself in the middle of
a save, until the run is finished; the test then compares what is on the disk with the run that nobody touched.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tessera import job
from tessera.errors import DamagedError, InputError
from tessera.recipe import Recipe, load_recipe
from tessera.store import file_checkpoints, files, sqlite, sqlite_checkpoints
from tessera.store.run import Run

KILLS, KILLS_IN_A_SAVE, MOST_TRIALS = 20, 6, 60
STEPS = 30
TEXT = "".join(f"{i}: the quick brown fox jumps over {i * i % 97} lazy dogs\n" for i in range(60))


def recipe_of(folder: Path, store: str) -> Recipe:
    content = {
        "store": store,
        "data": {"source": [str(folder / "text.txt")], "batches": "epoch"},
        "tokenizer": "char",
        "model": {"d_model": 16, "n_layers": 1, "n_heads": 2, "d_ff": 32, "context": 16, "dropout": 0.1},
        "schedule": {"name": "cosine", "warmup": 3},
        "train": {"steps": STEPS, "batch_size": 4, "accumulate": 2, "keep": 2, "threads": 1, "device": "cpu"}
        | {"save_every": 2, "eval_every": 4, "eval_tokens": 64, "sample_every": 10},
        "sample": {"prompts": ["the "], "sampling": {"max_tokens": 4}},
    }
    return load_recipe(base=content)


class Disk:
    """Counts what a save does to the disk, and can end the process before the n-th thing that the k-th save does."""

    def __init__(self) -> None:
        self.saves = self.events = self.most = 0
        self.saving = False
        self.kill_at: tuple[int, int] | None = None
        for name in ("_open", "_write", "_fsync", "_rename", "_mkdir"):
            setattr(files, name, self._watched(getattr(files, name)))
        for store in (file_checkpoints.FileCheckpoints, sqlite_checkpoints.SqliteCheckpoints):
            store.write = self._save(store.write)  # type: ignore[method-assign]
        connect = sqlite._connect

        def connect_watched(uri: str) -> Any:
            connection = connect(uri)
            connection.set_trace_callback(lambda statement: self._event())
            return connection

        sqlite._connect = connect_watched

    def _event(self) -> None:
        if self.saving:
            if self.kill_at == (self.saves, self.events):
                os.kill(os.getpid(), signal.SIGKILL)
            self.events += 1

    def _watched(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any) -> Any:
            self._event()
            return real(*arguments)

        return watched

    def _save(self, real: Callable[..., None]) -> Callable[..., None]:
        def save(*arguments: Any, **settings: Any) -> None:
            self.saving, self.events = True, 0
            real(*arguments, **settings)
            self.most = max(self.most, self.events)
            self.saving, self.saves = False, self.saves + 1

        return save


def go_on(folder: Path, recipe: Recipe) -> None:
    """What a person does after a crash: resume; or delete and start again, where Tessera says that it never began."""
    try:
        Run.open(folder).close()
    except (InputError, DamagedError) as error:
        assert any(why in str(error) for why in ("no such run", "is not a run", "not completely created")), error
        shutil.rmtree(folder, ignore_errors=True)
        job.train(recipe, folder).run.close()
    else:
        job.resume(folder).run.close()


def start(work: Callable[[], None]) -> int:
    """`work` in a forked child; its id."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    return pid


def was_killed(pid: int) -> bool:
    """Wait for a child: whether SIGKILL ended it; an error in it is an error here."""
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return True
    assert os.WEXITSTATUS(status) == 0, f"child {pid} failed"
    return False


def conduct(folder: Path, store: str) -> dict[str, Any]:
    """The untouched run, then killed runs until there were enough kills; what was done."""
    recipe, rng, disk = recipe_of(folder, store), random.Random(store), Disk()
    go_on(folder / "untouched", recipe)
    disk.saves = 0
    began = time.perf_counter()
    assert not was_killed(start(lambda: go_on(folder / "forked", recipe)))
    duration = time.perf_counter() - began
    in_save: list[tuple[int, int]] = []
    moments: list[float] = []
    trials: list[str] = ["forked"]
    while len(moments) < KILLS or len(in_save) < KILLS_IN_A_SAVE:
        assert len(trials) < MOST_TRIALS, f"only {len(moments)} + {len(in_save)} kills"
        trials.append(f"trial-{len(trials)}")
        path = folder / trials[-1]
        reach = duration * rng.choice([0.2, 0.4, 1.0])  # short: many kills of one run; long: any moment of it
        finished = False
        while not finished:
            disk.kill_at = (rng.randrange(4), rng.randrange(disk.most)) if rng.random() < 0.25 else None
            pid = start(lambda path=path: go_on(path, recipe))
            if disk.kill_at is None:
                moments.append(rng.uniform(0.0, reach))
                time.sleep(moments[-1])
                os.kill(pid, signal.SIGKILL)  # a child that ended is still there to be waited for
            finished = not was_killed(pid)
            if disk.kill_at is not None and not finished:
                in_save.append(disk.kill_at)
            if disk.kill_at is None and finished:
                moments.pop()
    return {"duration": duration, "moments": moments, "in_save": in_save, "events": disk.most, "trials": trials}


def end_of(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """All that decides or shows how a run ended: (tensors of its newest checkpoint, the rest)."""
    with Run.open(path) as run:
        loaded = run.checkpoints.read()
        meta = loaded.meta
        del meta["progress"]["seconds"]
        kept = {name: run.metrics(name) for name in ("loss", "lr", "grad_norm", "validation_loss")}
        written = {"samples": run.samples(), "evaluations": run.evaluations(), "best": run.checkpoints.best()}
        return loaded.tensors, {"step": loaded.step, "skipped": loaded.skipped, "meta": meta, **kept, **written}


@pytest.mark.parametrize("store", ["files", "sqlite"])
def test_a_run_killed_many_times_ends_bit_for_bit_as_if_it_had_not_been(tmp_path: Path, store: str) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    alone = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}  # a process with other threads must not be forked
    done = subprocess.run(
        [sys.executable, __file__, tmp_path, store], env=os.environ | alone, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert len(report["moments"]) >= KILLS
    assert len(report["in_save"]) >= KILLS_IN_A_SAVE
    tensors, rest = end_of(tmp_path / "untouched")
    assert rest["step"] == STEPS
    assert [step for step, _ in rest["loss"]] == list(range(1, STEPS + 1))
    for group in ("model.", "optimizer.", "rng."):
        assert any(name.startswith(group) for name in tensors)
    for trial in report["trials"]:
        resumed_tensors, resumed_rest = end_of(tmp_path / trial)
        assert resumed_rest == rest, trial
        assert resumed_tensors.keys() == tensors.keys()
        different = [name for name in tensors if not torch.equal(tensors[name], resumed_tensors[name])]
        assert different == [], trial


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(conduct(Path(sys.argv[1]), sys.argv[2])))
