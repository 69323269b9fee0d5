"""docs/optimizers.md names every optimizer, setting, schedule and ramp; its recipes are right, its memory is real."""

import inspect
import re
import tomllib
from pathlib import Path

import pytest
import torch

from tessera.config import check
from tessera.optim import OPTIMIZERS
from tessera.optim.schedule import RAMPS, SCHEDULES
from tessera.recipe import Recipe

PAGE = (Path(__file__).parents[2] / "docs/optimizers.md").read_text(encoding="utf-8")
COMMON = {"params", "lr", "betas", "eps", "weight_decay"}


@pytest.mark.parametrize("name", [*OPTIMIZERS, *SCHEDULES, *RAMPS])
def test_every_piece_is_named(name: str) -> None:
    assert f"`{name}`" in PAGE or f'"{name}"' in PAGE


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_setting_is_named(name: str) -> None:
    for setting in set(inspect.signature(OPTIMIZERS[name]).parameters) - COMMON:
        assert re.search(rf"\b{setting}\b", PAGE), setting


@pytest.mark.parametrize("block", re.findall(r"^```toml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
def test_the_recipes_are_right(block: str) -> None:
    check(Recipe, tomllib.loads(block) | {"data": {"source": ["my.txt"]}})


@pytest.mark.parametrize(
    ("name", "kind", "bytes_a_weight"),
    [
        ("adamw", "matrix", 8.0),
        ("adam", "matrix", 8.0),
        ("muon", "matrix", 4.0),
        ("muon", "table", 8.0),
        ("adamw-schedule-free", "matrix", 8.0),
        ("lion", "matrix", 4.0),
        ("adamw-8bit", "matrix", 2.03),
        ("adamw-8bit", "table", 8.0),
        ("adafactor", "matrix", 4 * (512 + 1024) / (512 * 1024)),
        ("sgd", "matrix", 0.0),
    ],
)
def test_the_memory_of_the_table_is_real(name: str, kind: str, bytes_a_weight: float) -> None:
    with torch.device("meta"):
        weight = torch.nn.Parameter(torch.empty(512, 1024))
    optimizer = OPTIMIZERS[name]([{"params": [weight], "kind": kind}], lr=0.1)
    assert optimizer.memory() / weight.numel() == pytest.approx(bytes_a_weight, abs=0.002)
