"""A training that is killed, and killed again, ends bit for bit as the one that was left alone.

This file is also a program, the conductor: one process that has torch loaded forks a child for each attempt, so that
an attempt costs no start; the child is `tessera train`, the command itself. The conductor ends each with SIGKILL, at a
random moment or at a random one of the places where the disk is changed (`tessera.store.failpoints`), until the run is
finished; some it asks to end, by SIGTERM at a random moment. What a child is sure of, a checkpoint that was
acknowledged and a step that was made, it appends to a file. After each end the conductor looks: is each checkpoint
readable, is the newest acknowledged one there, how many steps are lost? At last the test compares what is on the disk
with the run that nobody touched.
"""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from tessera import job
from tessera.cli import main
from tessera.errors import DamagedError, InputError
from tessera.recipe import load_recipe
from tessera.store import failpoints, file_checkpoints, sqlite_checkpoints
from tessera.store.run import Run

STEPS, INTERVAL = 12, 3
AT_PLACES = 0.3  # of the kills are at a place where the disk is changed
ASKED = 6  # of so many ends, one is by SIGTERM
STORES = ("files", "sqlite")
TEXT = "".join(f"{i}: the quick brown fox jumps over {i * i % 97} lazy dogs\n" for i in range(60))
SETTINGS = [
    "tokenizer=char", "model.d_model=16", "model.n_layers=1", "model.n_heads=2", "model.context=16",
    "model.dropout=0.1", "data.batches=epoch", "schedule.warmup=3", "train.batch_size=4", "train.accumulate=2",
    "train.keep=2", "train.threads=1", "train.device=cpu", f"train.steps={STEPS}", f"train.save_every={INTERVAL}",
    "train.precision=fp32", "train.eval_every=6", "train.eval_tokens=64", "train.sample_every=8",
    "sample.sampling.max_tokens=4",
]  # fmt: skip


class Diary:
    """What a child is sure of, a line each; the file is written by whoever is forked from here."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        for store in (file_checkpoints.FileCheckpoints, sqlite_checkpoints.SqliteCheckpoints):
            store.write = self._noting(store.write)  # type: ignore[method-assign]
        log = Run.log_metrics

        def log_metrics(run: Run, step: int, values: Any) -> None:
            log(run, step, values)
            self._note("made", step)

        Run.log_metrics = log_metrics  # type: ignore[method-assign]

    def _noting(self, write: Callable[..., None]) -> Callable[..., None]:
        def noted(store: Any, step: int, *arguments: Any, **settings: Any) -> None:
            write(store, step, *arguments, **settings)
            self._note("acknowledged", step)

        return noted

    def _note(self, what: str, step: int) -> None:
        os.write(self._descriptor, f"{what} {step}\n".encode())

    def newest(self, what: str) -> int | None:
        """Of the lines since the diary was last cleared."""
        lines = [line.split() for line in self.path.read_text().splitlines()]
        return max((int(step) for name, step in lines if name == what), default=None)

    def clear(self) -> None:
        os.ftruncate(self._descriptor, 0)


@dataclass
class Figures:
    """What came of the kills."""

    kills: int = 0
    at_places: int = 0
    while_training: int = 0
    """Kills after the first step."""
    unreadable: int = 0
    lost: int = 0
    """Acknowledged checkpoints that were not there."""
    steps_lost: int = 0
    """The most steps that a kill has undone."""
    asked: int = 0
    """Ends by SIGTERM, beside the kills."""
    lost_though_asked: int = 0
    """The most steps that one of those has undone."""
    runs: list[str] = field(default_factory=list)
    seconds: float = 0.0


def command(path: Path, store: str) -> list[str]:
    """What a person types after a crash: resume; or delete and start again, where the run never began."""
    try:
        Run.open(path).close()
    except (InputError, DamagedError) as error:
        assert any(why in str(error) for why in ("no such run", "is not a run", "not completely created")), error
        shutil.rmtree(path, ignore_errors=True)
        source = str(path.with_name("text.txt"))
        return ["tessera", "train", source, "--out", str(path), f"store={store}", *SETTINGS, "--json"]
    return ["tessera", "train", "--resume", str(path), "--json"]


def start(arguments: list[str], order: str | None) -> int:
    """`arguments` as a command in a forked child; its id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        sys.argv = arguments
        os.environ.pop(failpoints.VARIABLE, None)
        if order is not None:
            os.environ[failpoints.VARIABLE] = order
        failpoints.plan.cache_clear()
        main.main()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0
    finally:
        sys.stderr.flush()
        os._exit(status)


def ended_by(pid: int) -> int:
    """Wait for a child: the signal that ended it, or 0 if it was done; any other end is an error here."""
    _, status = os.waitpid(pid, 0)
    code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)
    assert code in (0, 128 + signal.SIGKILL, 128 + signal.SIGTERM), f"child {pid} ended with {code}"
    return max(0, code - 128)


def let_work(pid: int, seconds: float) -> None:
    """Wait until a child has used so much time of a processor, whatever else the machine does, or is done."""
    clock = ~pid << 3 | 2  # Linux's number for the processor time of a process
    while time.clock_gettime(clock) < seconds:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        time.sleep(0.001)


def used_by_children() -> float:
    """The processor time of those that have been waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def look(path: Path, diary: Diary, before: int, figures: Figures, *, asked: bool) -> int:
    """See what an end left: into the figures. Gives the step from which the run goes on (0: from its start)."""
    acknowledged, made = diary.newest("acknowledged"), diary.newest("made")
    try:
        run = Run.open(path)
    except (InputError, DamagedError):
        figures.lost += acknowledged is not None or before > 0
        return 0
    with run:
        readable = []
        for step in run.checkpoints.steps():
            try:
                run.checkpoints.read(step)
                readable.append(step)
            except DamagedError:
                figures.unreadable += 1
    newest = max(readable, default=0)
    figures.lost += newest < max(before, acknowledged or 0)
    if made is not None and asked:
        figures.lost_though_asked = max(figures.lost_though_asked, made - newest)
    elif made is not None:
        figures.while_training += 1
        figures.steps_lost = max(figures.steps_lost, made - newest)
    return newest


def conduct(folder: Path, store: str, kills: int) -> Figures:
    """The untouched run, then killed runs until there were enough kills."""
    rng, diary, figures = random.Random(store), Diary(folder / "diary"), Figures()
    places = train_untouched(folder, store)
    began, used_before = time.perf_counter(), used_by_children()
    assert ended_by(start(command(folder / "forked", store), None)) == 0
    duration = used_by_children() - used_before
    figures.runs.append("forked")
    while figures.kills < kills:
        path = folder / f"run-{len(figures.runs)}"
        figures.runs.append(path.name)
        reach = duration * rng.choice([0.5, 0.8, 1.1])  # short: many kills of one run; long: any moment of it
        ended, newest = -1, 0
        while ended:
            diary.clear()
            enough, asked = figures.kills >= kills, (figures.kills + figures.asked) % ASKED == ASKED - 1
            at_place = not (enough or asked) and rng.random() < AT_PLACES
            place = f"*@{rng.randrange(places // 2)}=kill" if at_place else None
            pid = start(command(path, store), place)
            if not enough and place is None:
                let_work(pid, rng.uniform(0.0, reach))
                os.kill(pid, signal.SIGTERM if asked else signal.SIGKILL)  # one that is done waits for us
            ended = ended_by(pid)
            figures.kills += ended == signal.SIGKILL
            figures.at_places += ended == signal.SIGKILL and place is not None
            figures.asked += ended == signal.SIGTERM
            if ended:
                newest = look(path, diary, newest, figures, asked=ended == signal.SIGTERM)
    figures.seconds = time.perf_counter() - began
    return figures


def train_untouched(folder: Path, store: str) -> int:
    """The run that nobody ends, in this process, so that its children need to load nothing; its number of places."""
    os.environ[failpoints.VARIABLE] = "-@0=none"
    failpoints.plan.cache_clear()
    sources = ["data.source=" + json.dumps([str(folder / "text.txt")])]
    job.train(load_recipe(None, [*sources, f"store={store}", *SETTINGS]), folder / "untouched").run.close()
    plan = failpoints.plan()
    assert plan is not None
    return len(plan.passed)


def end_of(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """All that decides or shows how a run ended: (tensors of its newest checkpoint, the rest)."""
    with Run.open(path) as run:
        loaded = run.checkpoints.read()
        meta = loaded.meta
        del meta["progress"]["seconds"]
        kept = {name: run.metrics(name) for name in ("loss", "lr", "grad_norm", "validation_loss")}
        written = {"samples": run.samples(), "evaluations": run.evaluations(), "best": run.checkpoints.best()}
        return loaded.tensors, {"step": loaded.step, "skipped": loaded.skipped, "meta": meta, **kept, **written}


@pytest.mark.parametrize("kills", [pytest.param(50, id="50"), pytest.param(500, id="500", marks=pytest.mark.slow)])
def test_a_run_killed_many_times_ends_bit_for_bit_as_if_it_had_not_been(tmp_path: Path, kills: int) -> None:
    """Half of the kills for each store; one conductor for both, as it takes seconds to load."""
    for store in STORES:
        (tmp_path / store).mkdir()
        (tmp_path / store / "text.txt").write_text(TEXT)
    alone = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}  # a process with other threads must not be forked
    done = subprocess.run(
        [sys.executable, __file__, tmp_path, str(kills // len(STORES))],
        env=os.environ | alone,
        capture_output=True,
        text=True,
        timeout=30 * kills,
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    for store, figures in json.loads(done.stdout).items():
        check_figures(figures, kills // len(STORES))
        tensors, rest = end_of(tmp_path / store / "untouched")
        assert rest["step"] == STEPS
        assert [step for step, _ in rest["loss"]] == list(range(1, STEPS + 1))
        for group in ("model.", "optimizer.", "rng."):
            assert any(name.startswith(group) for name in tensors)
        for name in figures["runs"]:
            resumed_tensors, resumed_rest = end_of(tmp_path / store / name)
            assert resumed_rest == rest, (store, name)
            assert resumed_tensors.keys() == tensors.keys()
            different = [name for name in tensors if not torch.equal(tensors[name], resumed_tensors[name])]
            assert different == [], (store, name)


def check_figures(figures: dict[str, Any], kills: int) -> None:
    assert figures["kills"] >= kills
    assert figures["at_places"] >= kills // 20
    assert figures["while_training"] >= kills // 8
    assert figures["asked"] >= 1
    assert figures["unreadable"] == figures["lost"] == figures["lost_though_asked"] == 0
    assert 0 < figures["steps_lost"] <= INTERVAL


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, kills = Path(sys.argv[1]), int(sys.argv[2])
    print(json.dumps({store: asdict(conduct(folder / store, store, kills)) for store in STORES}))
