"""Machine code is kept for the next process, and nothing about the cache is ever an error."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tessera.native import jit

PROGRAM = """
import logging, sys
logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
from tessera.native.memory import address_of
from tessera.tokenizers.compiled.tables import find_token, split_tokens
import numpy as np
bytes_ = np.zeros(32, np.uint8)
header, short, masks = np.zeros(16, np.uint64), np.zeros((16, 4), np.uint64), np.zeros((16, 4), np.uint64)
header[[0, 1, 7]] = address_of(short), 60, address_of(masks)
assert find_token(address_of(header), address_of(bytes_), 3) == 0
if "more" in sys.argv:
    assert split_tokens(address_of(header), address_of(bytes_), address_of(bytes_), 0, 0) == 0
print(sum(find_token.stats.cache_hits.values()), sum(find_token.stats.cache_misses.values()))
"""


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "TESSERA_CACHE": str(folder)}
    command = [sys.executable, "-c", PROGRAM, *arguments]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return out.strip(), errors


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process leaves."""
    folder = tmp_path_factory.mktemp("filled")
    out, errors = finish(start(folder))
    assert out == "0 1"
    assert errors.count("compiling for this machine") == 1
    assert "cannot keep" not in errors
    return folder


def test_the_next_process_finds_it(filled: Path) -> None:
    assert finish(start(filled)) == ("1 0", "")


def test_processes_may_start_together(tmp_path: Path) -> None:
    assert {finish(process)[0] for process in [start(tmp_path) for _ in range(3)]} <= {"0 1", "1 0"}
    assert finish(start(tmp_path))[0] == "1 0"


@pytest.mark.parametrize(
    ("files", "content"), [("*.nb?", b""), ("*.nbi", b"damaged"), ("*.nbc", b"damaged"), ("*.nb?", b"\x80\x04]q\x00.")]
)
def test_a_damaged_cache_is_made_anew(filled: Path, tmp_path: Path, files: str, content: bytes) -> None:
    cache = shutil.copytree(filled, tmp_path / "cache")
    damaged = list(cache.rglob(files))
    assert damaged
    for path in damaged:
        path.write_bytes(content)
    assert finish(start(cache))[0] == "0 1"
    assert finish(start(cache)) == ("1 0", "")


def says_what_to_do(errors: str) -> bool:
    """Once, however much was compiled."""
    return errors.count("cannot keep what is compiled") == errors.count("set TESSERA_CACHE to a folder") == 1


def test_a_folder_that_cannot_be_is_no_error(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    out, errors = finish(start(blocked, "more"))
    assert out == "0 1"
    assert says_what_to_do(errors)
    assert "cannot be read" not in errors


def test_no_home_is_no_error() -> None:
    out, errors = finish(start(Path("~nobody-has-this-name")))
    assert out == "0 1"
    assert says_what_to_do(errors)
    assert "nobody-has-this-name" in errors


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, as what root may not write is a disk that is read-only."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount, unmount = shutil.which("mount"), shutil.which("umount")
    if os.geteuid() != 0 or mount is None or unmount is None:
        pytest.skip("only root can mount a disk")
    options = [mount, "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    if subprocess.run(options, capture_output=True, check=False).returncode != 0:
        pytest.skip("this machine lets nobody mount a disk")
    yield folder
    subprocess.run([unmount, "--lazy", str(folder)], capture_output=True, check=True)


def make_read_only(disk: Path) -> None:
    options = ["mount", "-o", "remount,ro", str(disk)]
    if subprocess.run(options, capture_output=True, check=False).returncode != 0:
        pytest.skip("this machine lets nobody mount a disk anew")


def test_a_full_cache_on_a_read_only_disk_is_used(filled: Path, disk: Path) -> None:
    shutil.copytree(filled, disk, dirs_exist_ok=True)
    make_read_only(disk)
    with pytest.raises(OSError, match="Read-only"):
        (disk / "file").touch()
    assert finish(start(disk)) == ("1 0", "")


def test_what_a_read_only_disk_lacks_is_compiled_and_what_to_do_is_said(filled: Path, disk: Path) -> None:
    shutil.copytree(filled, disk, dirs_exist_ok=True)
    make_read_only(disk)
    out, errors = finish(start(disk, "more"))
    assert out == "1 0"
    assert errors.count("compiling for this machine") == 1
    assert says_what_to_do(errors)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_no_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert says_what_to_do(finish(start(tmp_path))[1])


def test_code_is_stamped_with_what_its_module_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At first and at second hand, in every way to write it, and with nothing else."""
    package = tmp_path / "tessera"
    files = {
        "kernels.py": "import numpy\nfrom tessera.parts import (\n    add,\n    sub,\n)\n",
        "parts.py": "import tessera.deep.first\nfrom tessera.deep import second\nfrom tessera.kernels import x\n",
        "deep/__init__.py": "",
        "deep/first.py": "",
        "deep/second.py": "",
        "unrelated.py": "",
    }
    (package / "deep").mkdir(parents=True)
    for name, content in files.items():
        (package / name).write_text(content)
    monkeypatch.setattr(jit, "ROOT", tmp_path)

    def stamp() -> str:
        jit.source_stamp.cache_clear()
        jit._imported.cache_clear()
        return jit.source_stamp(package / "kernels.py")

    before = stamp()
    for name, content in files.items():
        (package / name).write_text(content + "# another line\n")
        assert (stamp() == before) == (name == "unrelated.py")
        (package / name).write_text(content)
    assert stamp() == before


def test_no_two_processes_name_their_functions_alike() -> None:
    """Else the code of one, loaded from the cache, is taken for that of the other."""
    program = "import tessera.native.jit as jit; print(next(jit.FunctionIdentity._unique_ids))"
    command = [sys.executable, "-c", program]
    first, second = (int(subprocess.run(command, capture_output=True, check=True).stdout) for _ in range(2))
    assert abs(first - second) > 100_000
