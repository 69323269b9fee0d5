"""One of two processes is killed at a random moment: the other one ends and says why, and the run goes on."""

import json
import random
import signal
import time
from pathlib import Path

import pytest
from tests.distributed.command import ENDLESS, SMALL, ended, processes, run, tessera, wait_for_step, write_text

from tessera.store.run import Run

FIRST, ALL = 2, 10


def kill_one(number: int, folder: Path) -> None:
    """Each step is saved, so that many of the moments are in the middle of a save."""
    draw = random.Random(number)
    way, out = ("ddp", "fsdp")[number // 2 % 2], folder / "run"
    settings = (*SMALL, *ENDLESS, "train.save_every=1", f"train.parallel={way}")
    started = processes("train", write_text(folder), "--out", out, *settings)
    victim = started[number % 2]
    survivor = started[1 - number % 2]
    with ended(started):
        wait_for_step(out, started, above=1)  # the first one is saved
        time.sleep(draw.uniform(0.0, 1.0))
        victim.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        _, said = survivor.communicate(timeout=60)
        assert time.monotonic() - killed < 60
        assert survivor.returncode == 4, said
        assert "lost touch with another" in said and "--resume" in said
    with Run.open(out) as opened:
        saved = opened.checkpoints.read().step
    assert saved >= 1
    goes_on = run(tessera("train", "--resume", out, f"train.steps={saved + 2}", "--devices", 2, "--json"))
    assert goes_on.returncode == 0, goes_on.stderr
    assert json.loads(goes_on.stdout)["step"] == saved + 2


@pytest.mark.parametrize("number", range(FIRST))
def test_the_other_one_ends_and_the_run_goes_on(number: int, tmp_path: Path) -> None:
    kill_one(number, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(FIRST, ALL))
def test_it_does_so_each_time(number: int, tmp_path: Path) -> None:
    kill_one(number, tmp_path)
