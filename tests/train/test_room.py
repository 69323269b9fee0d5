"""What surely does not fit is refused, what may not is said with what would help; the limits are real."""

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tessera.errors import InputError, StorageError
from tessera.train import room
from tessera.train.room import check_disk, check_memory, check_shards, free_disk, memory_of

CPU = torch.device("cpu")


@pytest.fixture
def ten_gigabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "memory_of", lambda device: (10 * 10**9, 16 * 10**9))


def said(**changes: Any) -> list[str]:
    needs = {"fixed": 2 * 10**9, "certain": 10**9, "per_row": 10**9, "batch_size": 8, "accumulate": 3}
    return check_memory(CPU, **(needs | changes))


@pytest.mark.usefixtures("ten_gigabytes")
def test_what_fits_is_passed_over_in_silence() -> None:
    assert said() == []


@pytest.mark.usefixtures("ten_gigabytes")
def test_what_may_not_fit_is_said_with_the_same_batch_in_smaller_parts() -> None:
    (line,) = said(per_row=2 * 10**9)
    assert "needs about 18.0 GB, cpu has 10.0 GB free" in line
    assert line.endswith("train.batch_size=4 train.accumulate=6")
    (line,) = said(batch_size=9)  # nine rows do not halve
    assert "batch_size" not in line
    (line,) = said(fixed=12 * 10**9)  # no batch would fit
    assert "batch_size" not in line


@pytest.mark.usefixtures("ten_gigabytes")
def test_only_what_is_more_than_all_of_the_memory_is_refused() -> None:
    assert said(fixed=15 * 10**9, certain=15 * 10**9)
    with pytest.raises(InputError, match=r"the model does not fit: .* need 17.0 GB, cpu has 16.0 GB in all"):
        said(certain=17 * 10**9)


def test_memory_is_what_the_system_says() -> None:
    found = memory_of(CPU)
    assert found is not None
    free, total = found
    assert 0 < free <= total
    assert total <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") + swap()


def swap() -> int:
    (line,) = [line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("SwapTotal")]
    return 1024 * int(line.split()[1])


def test_a_limit_of_the_process_counts() -> None:
    program = "import torch; from tessera.train.room import memory_of; print(*memory_of(torch.device('cpu')))"
    limit = 8 << 30
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    free, total = map(int, done.stdout.split())
    assert free < total <= limit


def test_a_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit, used = tmp_path / "memory.max", tmp_path / "memory.current"
    monkeypatch.setattr(room, "CGROUPS", ((limit, used), (tmp_path / "none", tmp_path / "none")))
    limit.write_text("1000000\n")
    used.write_text("400000\n")
    assert memory_of(CPU) == (600_000, 1_000_000)
    limit.write_text("max\n")
    assert memory_of(CPU) == room._machine()


def test_the_disk_is_that_on_which_the_run_would_be(tmp_path: Path) -> None:
    assert free_disk(tmp_path / "not" / "there" / "yet") == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.05)


def test_a_disk_that_may_become_full_is_said_and_one_without_room_for_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "free_disk", lambda path: 10**9)
    assert check_disk(tmp_path, one=4 * 10**8, certain=2 * 10**8, more=6 * 10**8) == []
    (line,) = check_disk(tmp_path, one=4 * 10**8, certain=2 * 10**8, more=7 * 10**8)
    assert "need up to 1.1 GB, 1.0 GB are free" in line
    assert check_shards(tmp_path, n_bytes=4 * 10**8, n_held_out=10**8) == []
    (line,) = check_shards(tmp_path, n_bytes=5 * 10**8, n_held_out=10**8)
    assert "shards need up to 1.1 GB, 1.0 GB are free" in line
    with pytest.raises(StorageError, match=r"the held-out text needs 1.2 GB"):
        check_shards(tmp_path, n_bytes=5 * 10**8, n_held_out=12 * 10**8)
    with pytest.raises(StorageError, match=r"needs 1.1 GB or more, 1.0 GB are free: make room first"):
        check_disk(tmp_path, one=3 * 10**9, certain=11 * 10**8, more=0)
