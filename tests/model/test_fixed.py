"""A model without numbers is as it would be with them, and costs no compiler."""

import subprocess
import sys

import pytest
import torch

from tessera.config import check
from tessera.errors import SettingError
from tessera.model.decoder import Decoder
from tessera.model.settings import DecoderSettings

CODE = """
import sys
import torch
from tessera.plan import make_plan
from tessera.recipe import load_recipe

for position in ("rope", "alibi", "sinusoidal", "t5"):
    make_plan(load_recipe(None, ["data.source=x.txt", f"model.position={position}"]), speed=lambda device: 1.0)
print("torch._dynamo" in sys.modules, "sympy" in sys.modules)
"""


def test_a_plan_does_without_the_compiler() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False"], done.stderr


@pytest.mark.parametrize("position", ["rope", "alibi", "sinusoidal"])
def test_tables_have_their_shapes_where_there_are_no_numbers(position: str) -> None:
    settings = check(DecoderSettings, {"position": position})
    made = Decoder.from_settings(settings, n_vocab=5)
    with torch.device("meta"):
        meant = Decoder.from_settings(settings, n_vocab=5)
    found = {name: (buffer.shape, buffer.dtype) for name, buffer in made.named_buffers()}
    assert found
    assert found == {name: (buffer.shape, buffer.dtype) for name, buffer in meant.named_buffers()}


@pytest.mark.parametrize("position", ["rope", "sinusoidal"])
def test_wrong_settings_are_found_where_there_are_no_numbers(position: str) -> None:
    with torch.device("meta"), pytest.raises(SettingError, match="base"):
        settings = check(DecoderSettings, {"position": {"name": position, "base": -1.0}})
        Decoder.from_settings(settings, n_vocab=5)
