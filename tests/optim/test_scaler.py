"""The loss scaler against torch.amp.GradScaler's rule, and in a step of fp16."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.errors import SettingError
from tessera.optim.scaler import LossScaler


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 5), st.sampled_from([2.0, 4.0]))
@settings(max_examples=60, deadline=None)
def test_the_rule_is_that_of_torch(finite: list[bool], interval: int, growth: float) -> None:
    ours = LossScaler(scale=2.0**10, growth=growth, backoff=0.5, interval=interval, floor=2.0**-100)
    theirs = torch.amp.GradScaler(
        "cpu", init_scale=2.0**10, growth_factor=growth, backoff_factor=0.5, growth_interval=interval
    )
    param = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([param], lr=0.0)
    for good in finite:
        theirs.scale((param * (1.0 if good else float("inf"))).sum()).backward()
        theirs.step(optimizer)
        theirs.update()
        optimizer.zero_grad()
        ours.update(good)
        assert ours.scale == theirs.get_scale()


def test_the_rule_by_hand() -> None:
    scaler = LossScaler(scale=8.0, interval=2, floor=2.0)
    scales = []
    for finite in (True, True, True, False, True, True, False, False, False, False):
        scaler.update(finite)
        scales.append(scaler.scale)
    assert scales == [8, 16, 16, 8, 8, 16, 8, 4, 2, 2]
    assert scaler.at_floor


def test_it_never_grows_to_infinity() -> None:
    scaler = LossScaler(scale=2.0**127, interval=1)
    scaler.update(True)
    assert scaler.scale == 2.0**127


def test_gradients_that_fp16_loses_are_kept() -> None:
    def gradient(scaler: LossScaler) -> float:
        x = torch.tensor([1e-4], dtype=torch.float16)
        weight = torch.nn.Parameter(torch.ones(1))
        scaler.scaled((weight.half() * x).float().mean() * 1e-4).backward()
        scaler.unscale_([weight, torch.nn.Parameter(torch.ones(1))])
        return weight.grad.item()

    assert gradient(LossScaler(scale=1.0)) == 0.0
    assert gradient(LossScaler(scale=2.0**16)) == pytest.approx(1e-8, rel=1e-2)


def test_scaling_by_a_power_of_two_rounds_nothing() -> None:
    weight, same = (torch.nn.Parameter(torch.linspace(-1, 1, 9)) for _ in range(2))
    scaler = LossScaler()
    scaler.scaled((weight**3).sum()).backward()
    scaler.unscale_([weight])
    (same**3).sum().backward()
    assert torch.equal(weight.grad, same.grad)


def test_a_saved_scaler_goes_on_where_it_was() -> None:
    scaler = LossScaler(interval=3)
    for finite in (False, True, True):
        scaler.update(finite)
    other = LossScaler(interval=3)
    other.load_state_dict(json.loads(json.dumps(scaler.state_dict())))
    for finite in (True, False):
        scaler.update(finite)
        other.update(finite)
        assert (scaler.scale, scaler.streak) == (other.scale, other.streak)


@pytest.mark.parametrize(
    ("wrong", "path"),
    [
        ({"scale": 0.5}, "scale"),
        ({"scale": float("inf")}, "scale"),
        ({"growth": 1.0}, "growth"),
        ({"backoff": 1.0}, "backoff"),
        ({"interval": 0}, "interval"),
    ],
)
def test_wrong_settings_are_named(wrong, path) -> None:
    with pytest.raises(SettingError, match=f"^{path} = "):
        LossScaler(**wrong)
