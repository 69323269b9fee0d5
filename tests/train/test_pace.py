"""How far a training is on, and its rate there: by steps, or by the clock where that is ahead."""

import math

import pytest

from tessera.train.pace import Pace, every
from tessera.train.settings import TrainSettings


def pace_of(**settings: float) -> Pace:
    return Pace(TrainSettings(**({"steps": 100} | settings)), lambda step, steps: 1 - step / steps)  # type: ignore[arg-type]


def test_a_run_that_must_finish_follows_the_clock_where_it_is_ahead() -> None:
    pace = pace_of(finish_minutes=1.0)
    assert pace.factor(10, 6.0) == pytest.approx(0.9)  # a tenth of both
    assert pace.factor(10, 30.0) == pytest.approx(0.5)  # half of the time
    assert pace.factor(70, 30.0) == pytest.approx(0.3)  # the steps are ahead
    assert pace.factor(10, 100.0) == pytest.approx(0.01)  # it is late: the last step's rate


def test_without_a_time_to_finish_in_the_clock_does_not_count() -> None:
    pace = pace_of()
    assert pace.factor(10, 1e9) == 0.9
    assert not pace.is_done(99, 1e9)
    assert pace.is_done(100, 0.0)


def test_it_is_done_when_the_time_is_up() -> None:
    pace = pace_of(finish_minutes=2.0)
    assert not pace.is_done(3, 119.9)
    assert pace.is_done(3, 120.0)


def test_the_seconds_of_this_start() -> None:
    assert pace_of().seconds_left() == math.inf
    assert pace_of(max_minutes=1.5).seconds_left() == 90.0


@pytest.mark.parametrize(("interval", "step", "due"), [(3, 6, True), (3, 7, False), (1, 1, True), (0, 5, False)])
def test_every_so_many_steps(interval: int, step: int, due: bool) -> None:
    assert every(interval, step) is due
