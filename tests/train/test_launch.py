"""The processes of a training on one machine: started with their places, ended together, started again."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tessera.errors import SettingError
from tessera.train import launch
from tessera.train.launch import Launch, check_devices


def program(source: str) -> list[str]:
    return [
        sys.executable,
        "-c",
        "import json, os, pathlib, signal, sys, time\nrank = int(os.environ['RANK'])\n" + source,
    ]


def never() -> Sequence[str]:
    raise AssertionError("it was to be started once")


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def launched(said: list[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    monkeypatch.setattr(launch, "GRACE", 0.3)
    monkeypatch.setattr(launch, "PAUSE", 0.01)

    def run(source: str, *, again: Callable[[], Sequence[str]] = never, max_restarts: int = 0) -> int:
        return Launch(2, say=said.append).run(program(source), again=again, max_restarts=max_restarts)

    return run


def test_each_process_is_told_its_place(launched: Callable[..., int], tmp_path: Path) -> None:
    write = f"pathlib.Path({str(tmp_path)!r}, str(rank)).write_text(json.dumps(dict(os.environ)))"
    assert launched(write) == 0
    found = [json.loads((tmp_path / str(rank)).read_text()) for rank in range(2)]
    assert [one["LOCAL_RANK"] for one in found] == ["0", "1"]
    for name, value in (("WORLD_SIZE", "2"), ("LOCAL_WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1")):
        assert [one[name] for one in found] == [value] * 2
    assert found[0]["MASTER_PORT"] == found[1]["MASTER_PORT"]


@pytest.mark.parametrize(
    ("fails", "code", "tells"),
    [
        ("sys.exit(3)", 3, []),
        ("sys.exit(4)", 4, ["process 1 of 2 ended with exit code 4"]),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, ["process 1 of 2 was ended by SIGKILL"]),
    ],
)
def test_where_one_fails_the_others_are_ended(
    fails: str, code: int, tells: list[str], launched: Callable[..., int], said: list[str]
) -> None:
    """By SIGTERM, and where that is not heard by SIGKILL."""
    start = time.monotonic()
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" if code == 137 else ""
    assert launched(f"{deaf}{fails} if rank == 1 else time.sleep(60)") == code
    assert time.monotonic() - start < 30
    assert said == tells


def test_lost_ones_are_started_again_by_another_command(launched: Callable[..., int], said: list[str]) -> None:
    starts = []

    def again() -> list[str]:
        starts.append(1)
        return program("sys.exit(4 * rank)" if len(starts) < 2 else "")

    assert launched("os.kill(os.getpid(), signal.SIGKILL)", again=again, max_restarts=3) == 0
    assert len(starts) == 2
    assert [line for line in said if line.startswith("start")] == ["start 1 of 3 again", "start 2 of 3 again"]


def test_so_often_and_no_more(launched: Callable[..., int]) -> None:
    assert launched("sys.exit(1)", again=lambda: program("sys.exit(1)"), max_restarts=2) == 1


@pytest.mark.parametrize("code", launch.FINAL)
def test_what_another_start_would_not_change_is_not_tried_again(code: int, launched: Callable[..., int]) -> None:
    assert launched(f"sys.exit({code})", max_restarts=3) == code


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_goes_to_all_and_ends_it(number: int, launched: Callable[..., int], tmp_path: Path) -> None:
    source = f"""
def stop(number, frame):
    pathlib.Path({str(tmp_path)!r}, f"stopped {{rank}}").touch()
    sys.exit(128 + number)
signal.signal({int(number)}, stop)
pathlib.Path({str(tmp_path)!r}, f"ready {{rank}}").touch()
time.sleep(60)
"""

    def send() -> None:
        while not all((tmp_path / f"ready {rank}").exists() for rank in range(2)):
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    assert launched(source, max_restarts=3) == 128 + number
    sender.join()
    assert all((tmp_path / f"stopped {rank}").exists() for rank in range(2))


@pytest.mark.parametrize(
    ("device", "n", "there"), [("cuda", 2, 1), ("auto", 9, 8), ("cuda:0", 1, 0), ("mps", 2, 0), ("cuda", 1, 0)]
)
def test_more_devices_than_there_are(device: str, n: int, there: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: there)
    monkeypatch.setattr("torch.cuda.is_available", lambda: there > 0)
    with pytest.raises(SettingError):
        check_devices(device, n)


@pytest.mark.parametrize(("device", "there"), [("cpu", 0), ("auto", 0), ("cuda", 8), ("auto", 8)])
def test_as_many_as_there_are(device: str, there: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: there)
    monkeypatch.setattr("torch.cuda.is_available", lambda: there > 0)
    check_devices(device, 8)


def test_a_process_whose_launcher_is_gone_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[Any] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: got.append(number))
    ours, theirs = os.pipe()
    try:
        monkeypatch.setenv(launch.LAUNCHER, str(ours))
        launch.end_with_launcher()
        assert launch.LAUNCHER not in os.environ
        assert got == []
        os.close(theirs)
        deadline = time.monotonic() + 10
        while not got and time.monotonic() < deadline:
            time.sleep(0.01)
        assert got == [signal.SIGTERM]
    finally:
        os.close(ours)
        signal.signal(signal.SIGTERM, before)
