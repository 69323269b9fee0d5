"""Ramps of the batch and of the window: by hand, and what holds for all of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.config import build
from tessera.errors import SettingError
from tessera.optim.schedule import RAMPS


def test_the_line_by_hand() -> None:
    ramp = build(RAMPS, {"name": "linear", "start": 8, "steps": 4})
    assert [ramp(step, 16) for step in range(6)] == [8, 10, 12, 14, 16, 16]
    rounded = build(RAMPS, {"name": "linear", "start": 8, "steps": 4, "multiple": 4})
    assert [rounded(step, 16) for step in range(6)] == [8, 8, 12, 12, 16, 16]


def test_the_doubling_by_hand() -> None:
    ramp = build(RAMPS, {"name": "doubling", "start": 32, "steps": 6})
    assert [ramp(step, 256) for step in range(8)] == [32, 32, 64, 64, 128, 128, 256, 256]
    assert [ramp(step, 100) for step in range(8)] == [32, 32, 32, 64, 64, 64, 100, 100]


@given(
    name=st.sampled_from(sorted(RAMPS)),
    start=st.integers(1, 300),
    steps=st.integers(1, 300),
    multiple=st.integers(1, 40),
    full=st.integers(1, 1000),
    step=st.integers(0, 400),
)
def test_it_rises_to_the_full_size_and_stays_in_bounds(name, start, steps, multiple, full, step) -> None:
    ramp = RAMPS[name](start=start, steps=steps, multiple=multiple)
    size = ramp(step, full)
    assert min(start, full) <= size <= full
    assert ramp(step + 1, full) >= size
    assert size % multiple == 0 or size in (start, full)
    assert ramp(0, full) in (min(start, full), start // multiple * multiple)
    assert ramp(steps, full) == full


@pytest.mark.parametrize("name", RAMPS)
@pytest.mark.parametrize("wrong", ["start", "steps", "multiple"])
def test_wrong_settings_are_named(name: str, wrong: str) -> None:
    with pytest.raises(SettingError, match=f"^{wrong} = 0"):
        RAMPS[name](**{"start": 1, "steps": 1, wrong: 0})
