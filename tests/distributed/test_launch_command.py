"""`tessera train --devices 2` and `torchrun -m tessera train`, from a text to a finished run, and interrupted."""

import json
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.distributed.command import (
    ENDLESS,
    SMALL,
    children,
    ended,
    environment,
    run,
    tessera,
    torchrun,
    wait_for,
    wait_for_step,
    write_text,
)

from tessera import job
from tessera.recipe import load_recipe
from tessera.store.run import Run

WITHIN = 1e-6


def losses(path: Path) -> list[tuple[int, float]]:
    with Run.open(path) as opened:
        return [(step, value) for step, value in opened.metrics("loss")]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, text: Path) -> tuple[Path, Any]:
    """What one process made of the recipe: its run, and its figures."""
    out = tmp_path_factory.mktemp("alone") / "run"
    result = job.train(load_recipe(None, SMALL, sources=[str(text)]), out)
    result.run.close()
    return out, result.summary()


def check_as_alone(path: Path, alone: tuple[Path, Any]) -> None:
    mine, its = losses(path), losses(alone[0])
    assert [step for step, _ in mine] == [step for step, _ in its] == [1, 2, 3, 4, 5, 6]
    assert [loss for _, loss in mine] == pytest.approx([loss for _, loss in its], abs=WITHIN, rel=0)


def test_devices(alone: tuple[Path, Any], text: Path, tmp_path: Path) -> None:
    """One JSON object of the first process, and the same figures as of one."""
    out = tmp_path / "run"
    done = run(tessera("train", text, "--out", out, *SMALL, "--devices", 2, "--json"))
    assert done.returncode == 0, done.stderr
    result, expected = json.loads(done.stdout), alone[1]
    for name in ("validation_loss", "bits_per_byte"):
        assert result[name] == pytest.approx(expected[name], abs=WITHIN, rel=0)
    check_as_alone(out, alone)


def test_torchrun_in_parts(alone: tuple[Path, Any], text: Path, tmp_path: Path) -> None:
    """What is said is said once."""
    out = tmp_path / "run"
    done = run(torchrun("train", text, "--out", out, *SMALL, "train.parallel=fsdp"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 processes share it by fsdp") == 1
    assert done.stdout.count("validation loss") == 1
    check_as_alone(out, alone)
    again = job.resume(out, ["train.steps=7"])  # one process goes on with it
    again.run.close()
    assert (again.outcome, again.step) == ("finished", 7)


def kill_and_stop(command: list[str], out: Path, *, rank: int) -> tuple[int, str, str]:
    """Kill one process, see the run go on, and end all by a signal, which saves; the launcher's code and words."""
    launcher = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
    with ended([launcher]):
        before = wait_for_step(out, [launcher])
        os.kill(children(launcher.pid)[rank], signal.SIGKILL)
        wait_for_step(out, [launcher], above=before + 50)
        launcher.send_signal(signal.SIGTERM)
        said, errors = launcher.communicate(timeout=60)
    assert said.count("resumed at step") == 1, errors
    (step,) = re.findall(r"Interrupted\. Saved at step ([\d,]+)\.", said)
    with Run.open(out) as opened:
        assert opened.checkpoints.read().step == int(step.replace(",", ""))
    return launcher.returncode, said, errors


def test_a_killed_process_is_started_again_and_a_signal_stops_all(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = tessera("train", text, "--out", out, *SMALL, *ENDLESS, "--devices", 2, "--max-restarts", 1)
    code, said, errors = kill_and_stop(command, out, rank=1)
    assert code == 128 + signal.SIGTERM == 143, errors
    assert "process 1 of 2 was ended by SIGKILL" in errors
    assert "start 1 of 1 again" in errors
    assert said.count("Go on with:\n") == 1


@pytest.mark.slow
def test_torchrun_starts_a_killed_process_again(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = ("--out", out, "--or-resume", *SMALL, *ENDLESS)
    kill_and_stop(torchrun("train", text, *settings, max_restarts=1), out, rank=0)


@pytest.mark.slow
def test_a_second_signal_ends_all_at_once(text: Path, tmp_path: Path) -> None:
    """In a step that would take minutes. It has begun, or nearly, when there is a checkpoint to rewind to."""
    out, lasting = tmp_path / "run", ("train.accumulate=20000", "train.eval_every=0", "train.on_nonfinite=rewind")
    command = tessera("train", text, "--out", out, *SMALL, *lasting, "--devices", 2)
    launcher = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
    with ended([launcher]):
        wait_for(lambda opened: opened.checkpoints.steps() or None, out, [launcher])
        launcher.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            launcher.wait(timeout=2.0)
        launcher.send_signal(signal.SIGINT)
        said, errors = launcher.communicate(timeout=30)
    assert launcher.returncode == 130, errors
    assert "Saved at step" not in said
