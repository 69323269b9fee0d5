"""What the whole chain must reach on real text; minutes long, so only `make test-all` runs it."""

from pathlib import Path

import pytest
from benchmarks.shakespeare_char import measure


@pytest.mark.slow
def test_characters_of_shakespeare_are_learned_as_well_as_nanogpt_does(shared_data: Path) -> None:
    assert measure()["validation_loss"] <= 1.92
