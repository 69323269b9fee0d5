"""The average of weights against torch.optim.swa_utils and a sum by hand; in the model and out again."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tessera.errors import InputError, SettingError
from tessera.optim.ema import WeightAverage, decay_at


def moved(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for param in model.parameters():
            param.add_(torch.randn(param.shape, generator=generator))


def test_equals_torch_without_warm_up() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    average = WeightAverage(model, decay=0.9, warmup=0)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    theirs.update_parameters(model)  # the first one is a copy there
    for step in range(30):
        moved(model, step)
        average.update()
        theirs.update_parameters(model)
    with average.in_use():
        for param, expected in zip(model.parameters(), theirs.module.parameters(), strict=True):
            assert torch.allclose(param, expected, atol=1e-6)


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=30), st.floats(0, 0.999), st.integers(0, 50))
@settings(max_examples=50, deadline=None)
def test_is_the_weighted_sum_of_all_weights(values, decay, warmup) -> None:
    model = nn.Linear(1, 1, bias=False).double()
    average = WeightAverage(model, decay=decay, warmup=warmup)
    seen = [model.weight.item(), *values]
    for value in values:
        nn.init.constant_(model.weight, value)
        average.update()
    decays = [min(decay, (1 + t) / (warmup + t)) for t in range(1, len(seen))]
    weights = [1.0] + [1.0 - d for d in decays]
    for i, d in enumerate(decays):  # what comes later takes from all before
        weights[: i + 1] = [weight * d for weight in weights[: i + 1]]
    average.swap_in()
    assert model.weight.item() == pytest.approx(sum(w * v for w, v in zip(weights, seen, strict=True)), abs=1e-9)
    assert sum(weights) == pytest.approx(1.0)


def test_the_warm_up_by_hand() -> None:
    assert [decay_at(t, decay=0.9, warmup=10) for t in (1, 2, 90, 1000)] == pytest.approx([2 / 11, 3 / 12, 0.9, 0.9])
    assert decay_at(80, decay=0.9, warmup=10) == pytest.approx(0.9)
    assert decay_at(79, decay=0.9, warmup=10) < 0.9
    assert decay_at(1, decay=0.9, warmup=0) == 0.9


def test_swapping_is_exact_and_takes_no_memory() -> None:
    model = nn.Linear(5, 5)
    average = WeightAverage(model, decay=0.5)
    moved(model, 0)
    average.update()
    trained = copy.deepcopy(model.state_dict())
    places = {value.data_ptr() for value in average.state_dict()["weights"].values()}
    with average.in_use():
        assert not torch.equal(model.weight, trained["weight"])
        assert torch.equal(average.state_dict()["weights"]["weight"], trained["weight"])
        with pytest.raises(InputError, match="swap_out"):
            average.update()
    assert all(torch.equal(value, trained[name]) for name, value in model.state_dict().items())
    assert {value.data_ptr() for value in average.state_dict()["weights"].values()} == places


@pytest.mark.parametrize("swapped", [False, True])
def test_a_saved_average_goes_on_bit_for_bit(swapped: bool) -> None:
    model = nn.Linear(4, 4)
    average = WeightAverage(model, decay=0.9)
    for step in range(5):
        moved(model, step)
        average.update()
    if swapped:
        average.swap_in()
    state, weights = copy.deepcopy(average.state_dict()), copy.deepcopy(model.state_dict())
    other_model = nn.Linear(4, 4)
    other = WeightAverage(other_model, decay=0.9)
    other_model.load_state_dict(weights)
    other.load_state_dict(state)
    assert other.swapped == swapped
    for one, its in ((model, average), (other_model, other)):
        its.swap_out()
        moved(one, 9)
        its.update()
        its.swap_in()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in other_model.state_dict().items())


def test_frozen_weights_and_buffers_are_left_alone() -> None:
    model = nn.BatchNorm1d(3)
    model.bias.requires_grad_(False)
    average = WeightAverage(model, decay=0.9)
    assert set(average.state_dict()["weights"]) == {"weight"}


def test_mistakes_are_named() -> None:
    with pytest.raises(SettingError, match="decay"):
        WeightAverage(nn.Linear(1, 1), decay=1.0)
    with pytest.raises(SettingError, match="warmup"):
        WeightAverage(nn.Linear(1, 1), warmup=-1)
    with pytest.raises(SettingError, match=r"weight = 'torch\.bfloat16'"):
        WeightAverage(nn.Linear(1, 1).bfloat16())
    with pytest.raises(InputError, match="another model: 'bias'"):
        WeightAverage(nn.Linear(2, 2, bias=False)).load_state_dict(WeightAverage(nn.Linear(2, 2)).state_dict())
    with pytest.raises(InputError, match="another model: 'weight'"):
        WeightAverage(nn.Linear(2, 2)).load_state_dict(WeightAverage(nn.Linear(3, 2)).state_dict())
