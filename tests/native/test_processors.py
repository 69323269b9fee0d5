"""As many threads as PyTorch would take, and what changes that."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tessera.native import processors
from tessera.native.processors import n_processors


def test_as_pytorch_takes() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    code = "import torch; from tessera.native.processors import *; print(torch.get_num_threads(), n_processors())"
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    theirs, ours = said.stdout.split()
    assert theirs == ours


def test_threads_of_a_core_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(processors, "SIBLINGS", str(tmp_path / "{number}"))
    assert n_processors() == 4
    for number, siblings in enumerate(("0,2", "1,3", "0,2", "1,3")):
        (tmp_path / str(number)).write_text(siblings)
    assert n_processors() == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert n_processors() == 7
