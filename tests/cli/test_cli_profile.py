"""`tessera train --profile` as a process of its own: what PyTorch's profiler leaves open is seen when that ends."""

import subprocess
import sys
from pathlib import Path

import pytest
from tests.small import SMALL


@pytest.mark.parametrize(("steps", "said"), [(6, "no profile: it needs 7 steps"), (8, "MFU ")])
def test_it_ends_well_wherever_the_training_ends(steps: int, said: str, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ["train", str(text), "--out", str(out), "--profile", *SMALL, f"train.steps={steps}"]
    done = subprocess.run([sys.executable, "-m", "tessera", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
    assert (out / "profile" / "trace.json").exists() == (steps == 8)
