"""What all tests share: where the real data is, and few threads, so that tests may run side by side."""

import os
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
