"""Positions: how a model knows the order of the tokens.

`Position` (in `position_hooks.py`) has three hooks, one for each place where order can enter, and changes nothing; each
kind overrides one. Here are those that add to the embeddings and the one that turns queries and keys; those that add to
the scores are in `position_bias.py`. All tables are made from the settings and stay out of checkpoints.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from tessera.config import Spec, build, check_spec
from tessera.errors import SettingError
from tessera.model.fixed import fixed_table, small_sums
from tessera.model.flow import Flow
from tessera.model.position_bias import LinearBiasPosition, RelativeBiasPosition
from tessera.model.position_hooks import Position
from tessera.model.rope_scaling import GIVEN, ROPE_SCALINGS, rope_speeds
from tessera.ops.rotate import rotate_halves, rotate_pairs

__all__ = ["POSITIONS", "LearnedPosition", "Position", "RotaryPosition", "SinusoidalPosition"]


class LearnedPosition(Position):
    """x + table[position], the table learned (Gehring et al. 2017; GPT-2)."""

    def __init__(self, *, context: int, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(context, d_model))

    def embed(self, x_BTD: Tensor, flow: Flow) -> Tensor:
        return x_BTD + flow.take(self.weight)


class SinusoidalPosition(Position):
    """sqrt(D) x + table[position], the table fixed (Vaswani et al. 2017, sections 3.4 and 3.5).

    table[t, 2i] = sin(t / base^(2i / D)), table[t, 2i + 1] = cos(the same). The embedding is scaled up because the
    table's entries are of size 1 and would drown it.
    """

    table: Tensor

    def __init__(self, *, context: int, d_model: int, base: float = 10_000.0) -> None:
        super().__init__()
        if d_model % 2:
            raise SettingError("d_model", d_model, "an even number: sinusoidal positions come in pairs")
        self.scale = d_model**0.5
        with small_sums():
            speeds_C = rope_speeds(d_model, base)
        table_SD = fixed_table((context, d_model), lambda: _waves(context, speeds_C))
        self.register_buffer("table", table_SD, persistent=False)

    def embed(self, x_BTD: Tensor, flow: Flow) -> Tensor:
        # The table stays in 32 bits beside weights in fewer, and so does the sum until it is rounded once.
        return torch.add(flow.take(self.table), x_BTD, alpha=self.scale).to(x_BTD.dtype)


class RotaryPosition(Position):
    """Turn each pair of a query or key by an angle proportional to its position (Su et al. 2021, RoFormer).

    (a, b) -> (a cos - b sin, a sin + b cos), the angle of pair i at position t being t / base^(2i / K); a product of a
    query and a key then depends on their distance only.

    `layout` says which two numbers are a pair: "halves" is (x_i, x_{i + K/2}), as transformers lays Llama out;
    "interleaved" is (x_2i, x_{2i + 1}), as the paper, GPT-J and DeepSeek do. `share` of each head is turned, from its
    start, the rest is as without positions (GPT-NeoX, Phi). `scaling` stretches the angles to a longer context than the
    model was trained at: a piece of `ROPE_SCALINGS`.
    """

    cos: Tensor
    sin: Tensor

    def __init__(
        self,
        *,
        context: int,
        d_head: int,
        base: float = 10_000.0,
        layout: Literal["halves", "interleaved"] = "halves",
        share: float = 1.0,
        scaling: Spec | None = None,
    ) -> None:
        super().__init__()
        if layout not in _TURNS:
            raise SettingError("layout", layout, f"one of {', '.join(_TURNS)}")
        width = _turned_width(d_head, share)
        with small_sums():
            speeds_C, gain = rope_speeds(width, base), 1.0
            if scaling is not None:
                spec = check_spec(ROPE_SCALINGS, scaling, "scaling", GIVEN)
                scale = build(ROPE_SCALINGS, spec, path="scaling", context=context, width=width, base=base)
                speeds_C, gain = scale(speeds_C)
        self._turn = _TURNS[layout]
        for name, of in (("cos", torch.cos), ("sin", torch.sin)):
            table_SC = fixed_table((context, width // 2), lambda of=of: of(_angles(context, speeds_C)) * gain)  # type: ignore[misc]
            self.register_buffer(name, table_SC, persistent=False)

    def rotate(self, x_BTHK: Tensor, flow: Flow) -> Tensor:
        cos, sin = flow.once(self, lambda: (flow.take(self.cos), flow.take(self.sin)))
        return self._turn(x_BTHK, cos, sin)


def _angles(context: int, speeds_C: Tensor) -> Tensor:
    """By how much each pair is turned at each position."""
    return torch.outer(torch.arange(context).float(), speeds_C)


def _waves(context: int, speeds_C: Tensor) -> Tensor:
    """Sine and cosine of the angles, side by side."""
    angles_SC = _angles(context, speeds_C)
    return torch.stack((angles_SC.sin(), angles_SC.cos()), dim=-1).flatten(1)


def _turned_width(d_head: int, share: float) -> int:
    """How many numbers of a head are turned."""
    if not 0 < share <= 1:
        raise SettingError("share", share, "a share above 0 and up to 1 of each head")
    width = int(d_head * share)
    if d_head % 2 and share == 1:
        raise SettingError("d_head", d_head, "an even number: rotary positions turn pairs")
    if width % 2 or width == 0:
        raise SettingError("share", share, f"a share that makes an even number of the {d_head} of a head, not {width}")
    return width


_TURNS = {"halves": rotate_halves, "interleaved": rotate_pairs}

POSITIONS = {
    "none": Position,
    "learned": LearnedPosition,
    "sinusoidal": SinusoidalPosition,
    "rope": RotaryPosition,
    "alibi": LinearBiasPosition,
    "t5": RelativeBiasPosition,
}
