"""The stopwatch adds up real seconds by name, whatever happens inside."""

import time

import pytest

from tessera.train.stopwatch import Stopwatch


def test_adds_up_seconds_under_each_name_in_the_order_of_their_first_use() -> None:
    clock = Stopwatch()
    for name, seconds in [("data", 0.02), ("step", 0.01), ("data", 0.02)]:
        with clock(name):
            time.sleep(seconds)
    assert list(clock.seconds) == ["data", "step"]
    assert 0.04 <= clock.seconds["data"] < 1.0
    assert 0.01 <= clock.seconds["step"] < 1.0


def test_counts_the_time_of_a_block_that_fails() -> None:
    clock = Stopwatch()
    with pytest.raises(KeyError), clock("data"):
        time.sleep(0.01)
        raise KeyError
    assert clock.seconds["data"] >= 0.01
