"""The benchmark for a GPU, as far as it goes without one: a tiny shape on the CPU, beside a model of nanoGPT's form."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.nanogpt_form import make_nanogpt

ROOT = Path(__file__).parents[2]


def figures(*arguments: str) -> dict:
    command = [sys.executable, "-m", "benchmarks.train_gpu", "--quick", "--json", "--device", "cpu", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_all_figures_are_there(tmp_path: Path) -> None:
    found = figures("--no-checks", "--nanogpt", str(make_nanogpt(tmp_path)))
    assert found["device"] == "cpu" and found["tokens_per_second_quick"] > 0
    assert 0 < found["mfu_quick"] < 2 and found["vs_nanogpt_quick"] > 0
    assert found["loss_apart_quick"] < 1


def test_without_a_gpu_the_real_shapes_are_refused() -> None:
    command = [sys.executable, "-m", "benchmarks.train_gpu", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=100)
    assert done.returncode == 1 and "--quick" in done.stderr


@pytest.mark.slow
def test_compiled_with_the_checks() -> None:
    found = figures("--compile", "--checks")
    assert found["checks_passed"] and found["vs_nanogpt_quick"] is None
