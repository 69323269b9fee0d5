"""Schedules against the formulas of torch.optim.lr_scheduler and transformers."""

import math
import subprocess
import sys

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from tessera.errors import SettingError
from tessera.optim.schedule import SCHEDULES

STEPS, WARMUP = 200, 20


def theirs(make) -> list[float]:
    """The factors of a scheduler of PyTorch's kind."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = make(optimizer)
    factors = []
    for _ in range(STEPS):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return factors


REFERENCES = {
    "constant": ({}, transformers.get_constant_schedule_with_warmup, {}),
    "linear": ({}, transformers.get_linear_schedule_with_warmup, {"num_training_steps": STEPS}),
    "cosine": ({}, transformers.get_cosine_schedule_with_warmup, {"num_training_steps": STEPS}),
    "cosine-floor": (
        {"floor": 0.1},
        transformers.get_cosine_with_min_lr_schedule_with_warmup,
        {"num_training_steps": STEPS, "min_lr_rate": 0.1},
    ),
    "wsd-linear": (
        {"floor": 0.05, "cooldown": 0.25, "curve": "linear"},
        transformers.get_wsd_schedule,
        {"num_decay_steps": 50, "num_training_steps": STEPS, "min_lr_ratio": 0.05, "decay_type": "linear"},
    ),
    "wsd-sqrt": (
        {"cooldown": 0.25},
        transformers.get_wsd_schedule,
        {"num_decay_steps": 50, "num_training_steps": STEPS, "decay_type": "1-sqrt"},
    ),
    "wsd-cosine": (
        {"cooldown": 0.25, "curve": "cosine"},
        transformers.get_wsd_schedule,
        {"num_decay_steps": 50, "num_training_steps": STEPS, "decay_type": "cosine"},
    ),
}


@pytest.mark.parametrize("case", REFERENCES)
def test_equals_transformers_after_the_warm_up(case):
    """Before it theirs is step / warmup, which wastes the first step on a rate of 0; ours is checked below."""
    settings, reference, arguments = REFERENCES[case]
    name = next(name for name in SCHEDULES if case.startswith(name))
    schedule = SCHEDULES[name](warmup=WARMUP, **settings)
    expected = theirs(lambda optimizer: reference(optimizer, num_warmup_steps=WARMUP, **arguments))
    for step in range(WARMUP, STEPS):
        assert schedule(step, STEPS) == pytest.approx(expected[step], abs=1e-12), step


def test_inverse_sqrt_is_the_formula_of_transformers_one_step_on():
    schedule = SCHEDULES["inverse-sqrt"](warmup=WARMUP)
    expected = theirs(lambda optimizer: transformers.get_inverse_sqrt_schedule(optimizer, WARMUP + 1))
    for step in range(STEPS - 1):
        assert schedule(step, STEPS) == pytest.approx(expected[step + 1], abs=1e-12), step
    assert SCHEDULES["inverse-sqrt"]()(15, STEPS) == 1 / math.sqrt(16)


def test_cosine_equals_torch():
    expected = theirs(lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS, eta_min=0.3))
    assert [SCHEDULES["cosine"](floor=0.3)(step, STEPS) for step in range(STEPS)] == pytest.approx(expected, abs=1e-12)


def test_linear_equals_torch():
    def make(optimizer):
        return torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1.0, end_factor=0.2, total_iters=STEPS)

    assert [SCHEDULES["linear"](floor=0.2)(step, STEPS) for step in range(STEPS)] == pytest.approx(theirs(make))


@pytest.mark.parametrize("name", SCHEDULES)
def test_warms_up_from_above_zero_to_the_peak(name):
    schedule = SCHEDULES[name](warmup=4)
    assert [schedule(step, 100) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


@given(
    name=st.sampled_from(sorted(SCHEDULES)),
    warmup=st.integers(0, 50),
    floor=st.floats(0.0, 1.0),
    steps=st.integers(1, 60),
    step=st.integers(0, 120),
)
def test_never_leaves_its_bounds_and_never_rises_again(name, warmup, floor, steps, step):
    """Also where the run is shorter than the warm-up, or is asked for a step past its end."""
    settings = {} if name == "constant" else {"floor": floor}
    schedule = SCHEDULES[name](warmup=warmup, **settings)
    factor = schedule(step, steps)
    assert 0.0 <= factor <= 1.0
    if step >= warmup:
        assert factor >= (1.0 if name == "constant" else floor) - 1e-12
        assert schedule(step + 1, steps) <= factor + 1e-12


@pytest.mark.parametrize("name", ["linear", "cosine", "wsd"])
def test_reaches_the_floor_when_the_run_is_over(name):
    assert SCHEDULES[name](warmup=5, floor=0.1)(100, 100) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("name", "settings", "path"),
    [
        *((name, {"warmup": -1}, "warmup") for name in SCHEDULES),
        ("cosine", {"floor": 1.5}, "floor"),
        ("linear", {"floor": -0.5}, "floor"),
        ("wsd", {"cooldown": 2.0}, "cooldown"),
        ("wsd", {"curve": "circle"}, "curve"),
    ],
)
def test_wrong_settings_are_named(name, settings, path):
    with pytest.raises(SettingError, match=f"^{path} = "):
        SCHEDULES[name](**settings)


def test_a_schedule_loads_no_torch() -> None:
    code = "import sys, tessera.optim.schedule; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
