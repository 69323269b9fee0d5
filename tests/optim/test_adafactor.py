"""Adafactor against torch.optim's and transformers', where their rules are the paper's, and by hand."""

import pytest
import torch
from transformers.optimization import Adafactor as TransformersAdafactor

from tessera.errors import SettingError
from tessera.optim.adafactor import Adafactor, adafactor_step

SHAPES = [(7, 5), (5,), (3, 2, 4), (1,)]


def start() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64)) for shape in SHAPES]


def largest_difference(ours, theirs, steps: int = 60) -> float:
    """After steps on the same gradients, some of them sudden."""
    largest = 0.0
    for step in range(steps):
        for optimizer in (ours, theirs):
            generator = torch.Generator().manual_seed(step)
            for param in optimizer.param_groups[0]["params"]:
                noise = torch.randn(param.shape, generator=generator, dtype=torch.float64)
                param.grad = (param.detach() + noise) * (20.0 if step % 7 == 6 else 0.5)
            optimizer.step()
        pairs = zip(ours.param_groups[0]["params"], theirs.param_groups[0]["params"], strict=True)
        largest = max(largest, *((a - b).abs().max().item() for a, b in pairs))
    return largest


@pytest.mark.parametrize("clip", [1.0, 2.0])
@pytest.mark.parametrize("lr", [0.01, 0.5])
def test_relative_equals_torch(lr: float, clip: float) -> None:
    """Theirs bounds the squares from below where the paper adds to them: with a small bound there is no difference."""
    ours = Adafactor(start(), lr=lr, rate="relative", clip=clip, weight_decay=0.1)
    theirs = torch.optim.Adafactor(start(), lr=lr, eps=(1e-15, 1e-3), d=clip, weight_decay=0.1)
    assert largest_difference(ours, theirs) <= 1e-10


@pytest.mark.parametrize(
    ("rate", "given"),
    [
        ("fixed", {"lr": 0.02, "scale_parameter": False, "relative_step": False, "weight_decay": 0.1}),
        ("fixed", {"lr": 0.02, "scale_parameter": False, "relative_step": False, "beta1": 0.9}),
        ("scaled", {"lr": 0.02, "scale_parameter": True, "relative_step": False}),
        ("relative", {"lr": None, "scale_parameter": True, "relative_step": True}),
        ("relative", {"lr": None, "scale_parameter": True, "relative_step": True, "clip_threshold": 0.3, "beta1": 0.5}),
    ],
)
def test_equals_transformers(rate, given) -> None:
    ours = Adafactor(
        start(),
        lr=given["lr"] or 0.01,
        rate=rate,
        clip=given.get("clip_threshold", 1.0),
        momentum=given.get("beta1", 0.0),
        weight_decay=given.get("weight_decay", 0.0),
    )
    assert largest_difference(ours, TransformersAdafactor(start(), **given)) <= 1e-10
    assert largest_difference(ours, TransformersAdafactor(start(), **given), steps=1) > 1e-3, "the test can fail"


def test_a_first_step_by_hand() -> None:
    """g = [[1, 2], [2, 4]] has squares that are a product of rows and columns, so u is all ones; clipped to 1/2."""
    w = torch.zeros(2, 2, dtype=torch.float64)
    state = {"row": torch.zeros(2, dtype=torch.float64), "column": torch.zeros(2, dtype=torch.float64)}
    g = torch.tensor([[1.0, 2.0], [2.0, 4.0]], dtype=torch.float64)
    adafactor_step(w, g, state, step=1, lr=0.1, clip=0.5)
    assert torch.allclose(w, torch.full_like(w, -0.05))
    assert state["row"].tolist() == [2.5, 10.0]
    assert state["column"].tolist() == [2.5, 10.0]


def test_it_keeps_rows_and_columns_only() -> None:
    params = [torch.nn.Parameter(torch.ones(30, 40)), torch.nn.Parameter(torch.ones(3, 5, 7))]
    optimizer = Adafactor(params, lr=0.1)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert {name: value.shape for name, value in optimizer.state[params[1]].items() if value.ndim} == {
        "row": (3, 5),
        "column": (3, 7),
    }
    assert optimizer.memory() == 4 * (30 + 40 + 1 + 3 * 5 + 3 * 7 + 1)


@pytest.mark.parametrize(
    ("wrong", "path"),
    [
        ({"rate": "slow"}, "rate"),
        ({"clip": 0.0}, "clip"),
        ({"momentum": 1.0}, "momentum"),
        ({"eps": (1e-30,)}, "eps"),
        ({"eps": (0.0, 1e-3)}, r"eps\[0\]"),
    ],
)
def test_wrong_settings_are_named(wrong, path) -> None:
    with pytest.raises(SettingError, match=f"^{path} = "):
        Adafactor(start(), lr=0.1, **wrong)
