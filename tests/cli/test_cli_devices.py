"""`tessera train --devices N`: what is refused before a process is started."""

from pathlib import Path

import pytest
from tests.cli.conftest import Tessera
from tests.small import SMALL


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--devices", "2", "train.device=cuda"], "--devices = 2: expected at most the 0 GPUs"),
        (["--devices", "2", "train.device=mps"], "train.device = 'mps': expected cpu or cuda with several processes"),
        (["--max-restarts", "2"], "--max-restarts = 2: expected --devices"),
    ],
)
def test_what_cannot_be_started(
    arguments: list[str], said: str, text: Path, tmp_path: Path, tessera: Tessera, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    done = tessera("train", text, "--out", tmp_path / "run", *SMALL, *arguments)
    assert done.code == 2
    assert said in done.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("n", ["0", "-1", "two"])
def test_a_number_of_devices_that_is_none(n: str, text: Path, tessera: Tessera) -> None:
    done = tessera("train", text, "--devices", n)
    assert done.code == 2
    assert "--devices" in done.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--devices", "2"], "--devices = 2: expected nothing with torchrun"),
        (["--max-restarts", "1"], "--max-restarts = 1: expected torchrun's own option"),
    ],
)
def test_torchrun_says_itself_how_many(
    arguments: list[str], said: str, text: Path, tessera: Tessera, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = tessera("train", text, *arguments)
    assert done.code == 2
    assert said in done.err


def test_a_process_that_does_not_know_its_place(text: Path, tessera: Tessera, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = tessera("train", text, *SMALL)
    assert done.code == 2
    assert "RANK is not set: use torchrun" in done.err


def test_or_resume_begins_a_run_and_goes_on_with_it(text: Path, tmp_path: Path, tessera: Tessera) -> None:
    command = ("train", text, "--out", tmp_path / "run", *SMALL, "--or-resume")
    begun = tessera(*command, "train.max_minutes=1e-9")
    assert begun.code == 0, begun.err
    assert "The time was up at step 1 of 6" in begun.out
    again = tessera("train", text, "--out", tmp_path / "run", *SMALL)
    assert again.code == 2
    assert "exists: choose another --out" in again.err
    goes_on = tessera(*command)
    assert goes_on.code == 0, goes_on.err
    assert "resumed at step 1 of 6" in goes_on.out


def test_or_resume_needs_a_place(text: Path, tessera: Tessera) -> None:
    done = tessera("train", text, "--or-resume")
    assert done.code == 2
    assert "--or-resume = True: expected --out" in done.err
