"""Positions: how a model knows the order of the tokens.

`Position` has three hooks, one for each place where order can enter: the embeddings, the queries and keys, the
attention scores. The base changes nothing (no positions: a causal mask alone lets a model find some order, Haviv et al.
2022); each kind overrides one hook.
"""

import torch
from torch import Tensor, nn

from tessera.errors import SettingError
from tessera.ops.rotate import rotate_halves


class Position(nn.Module):
    """No positions: three identities. `start` is the position of the first token (a cache holds those before)."""

    def embed(self, x_BTD: Tensor, start: int) -> Tensor:
        """The embedded tokens, with their positions."""
        return x_BTD

    def rotate(self, x_BTHK: Tensor, start: int) -> Tensor:
        """Queries or keys, with their positions."""
        return x_BTHK

    def bias(self, n_queries: int, n_keys: int) -> Tensor | None:
        """What is added to the attention scores, (H, T, S), the queries being the last; None for nothing."""
        return None


class LearnedPosition(Position):
    """x + table[position], the table learned (Gehring et al. 2017; GPT-2)."""

    def __init__(self, *, context: int, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(context, d_model))

    def embed(self, x_BTD: Tensor, start: int) -> Tensor:
        return x_BTD + self.weight[start : start + x_BTD.shape[1]]


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
        angles_SC = _angles(context, d_model, base)
        table_SD = torch.stack((angles_SC.sin(), angles_SC.cos()), dim=-1).flatten(1)
        self.scale = d_model**0.5
        self.register_buffer("table", table_SD, persistent=False)

    def embed(self, x_BTD: Tensor, start: int) -> Tensor:
        return torch.add(self.table[start : start + x_BTD.shape[1]], x_BTD, alpha=self.scale)


class RotaryPosition(Position):
    """Turn each pair of a query or key by an angle proportional to its position (Su et al. 2021, RoFormer).

    (a, b) -> (a cos - b sin, a sin + b cos), the angle of pair i at position t being t / base^(2i / K); a product of a
    query and a key then depends on their distance only. Pair i is (x_i, x_{i + K/2}), as transformers lays Llama out.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, *, context: int, d_head: int, base: float = 10_000.0) -> None:
        super().__init__()
        if d_head % 2:
            raise SettingError("d_model / n_heads", d_head, "an even number: rotary positions turn pairs")
        angles_SC = _angles(context, d_head, base)
        self.register_buffer("cos", angles_SC.cos(), persistent=False)
        self.register_buffer("sin", angles_SC.sin(), persistent=False)

    def rotate(self, x_BTHK: Tensor, start: int) -> Tensor:
        span = slice(start, start + x_BTHK.shape[1])
        return rotate_halves(x_BTHK, self.cos[span], self.sin[span])


def _angles(context: int, width: int, base: float) -> Tensor:
    """t / base^(2i / width) for each position t and pair i."""
    if base <= 0:
        raise SettingError("base", base, "a positive number")
    return torch.outer(torch.arange(context).float(), base ** -(torch.arange(0, width, 2).float() / width))


POSITIONS = {"learned": LearnedPosition, "sinusoidal": SinusoidalPosition, "rope": RotaryPosition, "none": Position}
