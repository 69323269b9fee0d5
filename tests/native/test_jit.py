"""Machine code is kept for the next process, and nothing about the cache is ever an error."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import logging, sys
logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
from tessera.native.memory import address_of
from tessera.tokenizers.compiled.tables import find_token
import numpy as np
bytes_ = np.zeros(32, np.uint8)
header, short, masks = np.zeros(16, np.uint64), np.zeros((16, 4), np.uint64), np.zeros((16, 4), np.uint64)
header[[0, 1, 7]] = address_of(short), 60, address_of(masks)
assert find_token(address_of(header), address_of(bytes_), 3) == 0
print(sum(find_token.stats.cache_hits.values()), sum(find_token.stats.cache_misses.values()))
"""


def start(folder: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "TESSERA_CACHE": str(folder)}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return out.strip(), errors


def test_the_next_process_finds_it_and_the_first_says_so(tmp_path: Path) -> None:
    out, errors = finish(start(tmp_path))
    assert out == "0 1"
    assert "compiling for this machine, once" in errors
    out, errors = finish(start(tmp_path))
    assert (out, errors) == ("1 0", "")


def test_processes_may_start_together(tmp_path: Path) -> None:
    assert {finish(process)[0] for process in [start(tmp_path) for _ in range(3)]} <= {"0 1", "1 0"}
    assert finish(start(tmp_path))[0] == "1 0"


@pytest.mark.parametrize("content", [b"", b"damaged", b"\x80\x04]q\x00."])
def test_a_damaged_cache_is_made_anew(tmp_path: Path, content: bytes) -> None:
    finish(start(tmp_path))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    for path in files:
        path.write_bytes(content)
    finish(start(tmp_path))


def test_a_folder_that_cannot_be_is_no_error(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    _, errors = finish(start(blocked))
    assert "no compiled code is kept" in errors


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_no_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert "no compiled code is kept" in finish(start(tmp_path))[1]
