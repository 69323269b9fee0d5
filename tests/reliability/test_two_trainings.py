"""Two trainings of one folder: the second is refused, told who the first is, and changes nothing of it."""

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from tessera import job
from tessera.errors import InputError, TesseraError
from tessera.recipe import Recipe, load_recipe
from tessera.store.run import Run
from tessera.train import room

ENDLESS = ("train.steps=1000000", "train.save_every=2", "train.eval_every=0")


class Meddling(job.Watcher):
    """Does something else when it is first told something."""

    def __init__(self, act: Callable[[], None]) -> None:
        self._acts = [act]

    def say(self, line: str) -> None:
        if self._acts:
            self._acts.pop()()


@pytest.fixture
def recipe(text_file: Path, small: Sequence[str]) -> Recipe:
    return load_recipe(None, [*small], sources=[str(text_file)])


@pytest.fixture
def talkative(monkeypatch: pytest.MonkeyPatch) -> None:
    """So little room that it is said, after a new run's folder was found free and before anything is in it."""
    monkeypatch.setattr(room, "free_disk", lambda path: 100_000)


@pytest.mark.usefixtures("talkative")
@pytest.mark.parametrize("is_open", [False, True], ids=["finished", "still open"])
def test_of_two_that_find_a_folder_free_the_later_one_leaves_the_other_alone(
    recipe: Recipe, tmp_path: Path, is_open: bool
) -> None:
    out, firsts = tmp_path / "run", []

    def be_first() -> None:
        firsts.append(job.train(recipe, out).run)
        if not is_open:
            firsts[0].close()

    said = "is open for training in this process already" if is_open else "exists: choose another --out"
    with pytest.raises(InputError, match=said):
        job.train(recipe, out, watcher=Meddling(be_first))
    firsts[0].close()
    with Run.open(out, train=True) as run:
        assert run.checkpoints.read().step == recipe.train.steps
    job.resume(out, [f"train.steps={recipe.train.steps + 1}"]).run.close()  # its text is there as well


@pytest.mark.usefixtures("talkative")
@pytest.mark.parametrize("existed", [False, True])
def test_one_that_fails_while_it_prepares_leaves_the_folder_as_it_was(
    small: Sequence[str], tmp_path: Path, text_file: Path, existed: bool
) -> None:
    out = tmp_path / "run"
    if existed:
        out.mkdir()
    source = tmp_path / "text.txt"
    source.write_bytes(text_file.read_bytes())
    recipe = load_recipe(None, [*small], sources=[str(source)])
    with pytest.raises(InputError, match=re.escape(str(source))):
        job.train(recipe, out, watcher=Meddling(source.unlink))
    assert out.exists() == existed
    assert not existed or list(out.iterdir()) == []


def test_a_run_that_another_process_trains(
    command: Callable[..., list[str]], text_file: Path, tmp_path: Path, small: Sequence[str], recipe: Recipe
) -> None:
    """Refused with owner and host; free at once when the owner was killed."""
    out = tmp_path / "run"
    arguments = command("train", text_file, "--out", out, *small, *ENDLESS)
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as first:
        try:
            wait_for_a_checkpoint(out)
            with pytest.raises(InputError) as caught:
                job.resume(out)
            assert f"being trained by process {first.pid} on {socket.gethostname()}" in str(caught.value)
            with pytest.raises(InputError, match="exists: choose another --out"):
                job.train(recipe, out)
            with Run.open(out) as run:  # reading is always possible
                step = run.checkpoints.read().step
            wait_for_a_checkpoint(out, after=step)  # it goes on
        finally:
            os.kill(first.pid, signal.SIGKILL)
    assert (out / "run.lock").exists()  # left behind
    with Run.open(out, train=True) as run:
        assert run.checkpoints.read().skipped == []


def wait_for_a_checkpoint(path: Path, after: int = 0) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with suppress(TesseraError), Run.open(path) as run:  # it may not be there yet
            if max(run.checkpoints.steps(), default=0) > after:
                return
        time.sleep(0.05)
    raise AssertionError("nothing was saved")
