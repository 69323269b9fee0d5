import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from tessera.errors import SettingError
from tessera.model.position import LearnedPosition, Position, RotaryPosition, SinusoidalPosition


def test_none_changes_nothing() -> None:
    x = torch.randn(1, 2, 3, 4)
    assert Position().embed(x, 5) is x
    assert Position().rotate(x, 5) is x
    assert Position().bias(2, 3) is None


def test_learned_adds_its_rows_from_the_start() -> None:
    position = LearnedPosition(context=6, d_model=2)
    nn.init.normal_(position.weight)
    x = torch.randn(3, 2, 2)
    torch.testing.assert_close(position.embed(x, 4), x + position.weight[4:6])


def test_sinusoidal_is_the_formula_of_the_paper() -> None:
    position = SinusoidalPosition(context=9, d_model=4)
    row = position.embed(torch.zeros(1, 3, 4), 5)[0, 2]
    expected = [math.sin(7), math.cos(7), math.sin(7 / 100), math.cos(7 / 100)]
    torch.testing.assert_close(row, torch.tensor(expected))
    torch.testing.assert_close(position.embed(torch.ones(1, 1, 4), 7)[0, 0], row + 2.0)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 20), st.integers(1, 10), st.sampled_from([100.0, 10_000.0, 500_000.0]))
def test_rope_equals_transformers(start: int, n_tokens: int, base: float) -> None:
    q = torch.randn(2, n_tokens, 3, 8)
    config = LlamaConfig(
        hidden_size=24, num_attention_heads=3, rope_parameters={"rope_type": "default", "rope_theta": base}
    )
    cos, sin = LlamaRotaryEmbedding(config)(q, torch.arange(start, start + n_tokens)[None])
    theirs, _ = apply_rotary_pos_emb(q.transpose(1, 2), q.transpose(1, 2), cos, sin)
    ours = RotaryPosition(context=32, d_head=8, base=base).rotate(q, start)
    torch.testing.assert_close(ours, theirs.transpose(1, 2), rtol=1e-5, atol=1e-5)


@settings(deadline=None)
@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 20))
def test_rope_scores_depend_on_the_distance_only(first: int, second: int, shift: int) -> None:
    position = RotaryPosition(context=64, d_head=8)
    q, k = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(0))
    here = (position.rotate(q, first) * position.rotate(k, second)).sum()
    there = (position.rotate(q, first + shift) * position.rotate(k, second + shift)).sum()
    torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-4)


def test_tables_are_not_in_checkpoints() -> None:
    assert not RotaryPosition(context=8, d_head=4).state_dict()
    assert not SinusoidalPosition(context=8, d_model=4).state_dict()


def test_odd_widths_and_bad_bases_are_errors() -> None:
    with pytest.raises(SettingError, match="an even number"):
        RotaryPosition(context=8, d_head=3)
    with pytest.raises(SettingError, match="an even number"):
        SinusoidalPosition(context=8, d_model=3)
    with pytest.raises(SettingError, match="base = 0"):
        RotaryPosition(context=8, d_head=4, base=0.0)
