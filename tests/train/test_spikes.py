"""What counts as a spike, against the formula with numpy, and what does not."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.train.spikes import SpikeDetector, robust_z

losses = st.floats(0.01, 20)


@given(losses, st.lists(losses, min_size=2, max_size=70))
def test_the_robust_z_is_that_of_the_formula(value, window):
    middle = np.median(window)
    spread = max(np.median(np.abs(np.array(window) - middle)), 1e-3 * middle)
    assert robust_z(value, window) == pytest.approx(0.6745 * (value - middle) / spread)


def noise(n: int, *, level: float = 3.0, seed: int = 0) -> list[float]:
    return (level + 0.05 * np.random.default_rng(seed).standard_normal(n)).tolist()


def spikes_in(detector: SpikeDetector, values: list[float]) -> list[int]:
    found = []
    for number, value in enumerate(values):
        if detector.measure(value) is not None:
            found.append(number)
        detector.remember(value)
    return found


def test_in_normal_noise_a_z_is_standard_deviations():
    window = noise(10_000)
    assert robust_z(3.0 + 4 * 0.05, window) == pytest.approx(4, abs=0.15)


def test_noise_is_no_spike_and_neither_is_a_fall():
    falling = [10 * 0.98**step + one for step, one in enumerate(noise(2000, level=2.5))]
    assert spikes_in(SpikeDetector(), falling) == []
    assert spikes_in(SpikeDetector(), [*noise(100), 0.5]) == []


def test_a_jump_is_one_spike_however_long_it_stays_up():
    values = [*noise(100), 3.3, *noise(50), 5.0, 6.0, 5.5, *noise(50), 4.0, *noise(10)]
    assert spikes_in(SpikeDetector(threshold=8.0), values) == [151, 204]
    assert spikes_in(SpikeDetector(threshold=4.0), values) == [100, 151, 204]


def test_a_level_that_stays_up_is_the_new_normal():
    values = [*noise(100), *noise(100, level=4.0), *noise(20), 4.0]
    assert spikes_in(SpikeDetector(), values) == [100]


def test_before_half_a_window_is_there_it_says_nothing():
    assert spikes_in(SpikeDetector(window=64), [*noise(31), 50.0]) == []
    assert spikes_in(SpikeDetector(window=64), [*noise(32), 50.0]) == [32]


def test_losses_that_are_all_but_the_same_are_not_noise():
    assert spikes_in(SpikeDetector(), [3.0] * 50 + [3.001]) == []
    assert spikes_in(SpikeDetector(), [3.0] * 50 + [3.2]) == [50]


@given(st.integers(0, 150))
def test_one_that_is_restored_answers_as_the_one_that_went_on(cut):
    values = [*noise(80), 5.0, 5.1, *noise(40), 5.0, *noise(30)]
    whole = SpikeDetector()
    expected = spikes_in(whole, values)
    first, second = SpikeDetector(), SpikeDetector()
    found = spikes_in(first, values[:cut])
    second.restore(json.loads(json.dumps(first.state())))
    assert found + [cut + number for number in spikes_in(second, values[cut:])] == expected
    assert second.state() == whole.state()
