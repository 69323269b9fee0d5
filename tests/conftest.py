"""What all tests share: where the real data is, a small disk, and few threads, so that tests may run side by side."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real texts and vocabularies: TESSERA_DATA, or shared/data beside the checkout."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("TESSERA_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"the real texts are not here: set TESSERA_DATA to their folder ({folder} does not exist)")
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own with 2 MiB on it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount, unmount = shutil.which("mount"), shutil.which("umount")
    if os.geteuid() != 0 or mount is None or unmount is None:
        pytest.skip("only root can mount a small disk")
    options = [mount, "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if subprocess.run(options, capture_output=True, check=False).returncode != 0:
        pytest.skip("this machine lets nobody mount a disk")
    yield folder
    # Lazily, as shards may still be mapped into memory: the disk goes when the last of them does.
    subprocess.run([unmount, "--lazy", str(folder)], capture_output=True, check=True)
