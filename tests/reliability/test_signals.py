"""SIGINT and SIGTERM, sent to the real command: saved at the end of the step, the right exit code, how to go on."""

import json
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from tessera.errors import TesseraError
from tessera.store.run import Run

ENDLESS = ("train.steps=1000000", "train.save_every=0", "train.eval_every=0")
BY_HAND = ["engine=numpy", "train.threads=0", "train.workers=2"]
LONG_STEP = ("train.accumulate=20000", "train.steps=5", "train.eval_every=0")


def started(arguments: list[str], *, until: str) -> subprocess.Popen[str]:
    """The command, when it has said something that matches `until`."""
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if re.match(until, line.strip()):
            return process
    raise AssertionError(process.communicate()[1])


@pytest.mark.parametrize("engine", [[], BY_HAND], ids=["torch", "numpy"])
def test_the_first_signal_saves_and_says_how_to_go_on(
    command: Callable[..., list[str]], text_file: Path, tmp_path: Path, small: Sequence[str], engine: list[str]
) -> None:
    """With --json, where the way to go on is on standard error; without, see the tests of the command."""
    out = tmp_path / "run"
    arguments = command("train", text_file, "--out", out, *small, *ENDLESS, *engine, "--json")
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_for_steps(out)
        process.send_signal(signal.SIGTERM)
        said, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM == 143
    result = json.loads(said)
    assert result["outcome"] == "interrupted"
    found = re.fullmatch(r"Interrupted\. Saved at step ([\d,]+)\. Go on with:\n  tessera (.*)\n", errors)
    assert found is not None, errors
    step = int(found[1].replace(",", ""))
    assert step == result["step"]
    with Run.open(out) as run:
        assert run.checkpoints.steps() == [step]
    done = subprocess.run(command(*shlex.split(found[2]), f"train.steps={step + 1}", "--json"), capture_output=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["step"] == step + 1


def wait_for_steps(path: Path) -> None:
    """Until the run has noted a step."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with suppress(TesseraError), Run.open(path) as run:  # it may not be there yet
            if run.metrics("loss"):
                return
        time.sleep(0.05)
    raise AssertionError("no step was made")


@pytest.mark.parametrize(
    ("second", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_second_signal_ends_it_at_once(
    command: Callable[..., list[str]], text_file: Path, tmp_path: Path, small: Sequence[str], second: int, code: int
) -> None:
    """In a step that would take minutes, of which nothing is saved."""
    out = tmp_path / "run"
    arguments = command("train", text_file, "--out", out, *small, *LONG_STEP)
    with started(arguments, until=r"[\d,]+ parameters") as process:
        time.sleep(1.5)  # it is in the step by now
        process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=1.0)  # it waits for the end of the step
        process.send_signal(second)
        process.communicate(timeout=20)
    assert process.returncode == code
    with Run.open(out, train=True) as run:  # nobody holds it any more
        assert run.checkpoints.steps() == []


def test_a_signal_before_the_training_leaves_nothing_behind(
    command: Callable[..., list[str]], tmp_path: Path, small: Sequence[str]
) -> None:
    large, rng = tmp_path / "large.txt", random.Random(0)
    large.write_text(" ".join(f"{rng.getrandbits(64):x}" for _ in range(300_000)))  # seconds for the tokenizer
    out = tmp_path / "run"
    arguments = command("train", large, "--out", out, "tokenizer.name=bpe", "tokenizer.vocab_size=4000", *small[1:])
    with started(arguments, until=r".*bytes of text; held out") as process:  # the tokenizer is trained next
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 143
    assert not out.exists()


IMPORTS = """
import sys, time
from tessera.cli.main import _termination_unwinds
sys.path.insert(0, sys.argv[1])
with _termination_unwinds():
    print("importing", flush=True)
    import large
    time.sleep(60)
"""


def test_a_signal_while_a_module_is_being_compiled_is_not_lost(tmp_path: Path) -> None:
    """Python's compiler swallows what a signal's handler raises while it computes a constant."""
    (tmp_path / "large.py").write_text("".join(f"A{number} = 3**99 * 5**{number % 97}\n" for number in range(20_000)))
    with started([sys.executable, "-c", IMPORTS, str(tmp_path)], until="importing") as process:
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=40)
    assert process.returncode == 143
