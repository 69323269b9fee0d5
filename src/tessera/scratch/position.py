"""Positions: how a model knows the order of the tokens.

`Position` has three hooks, one for each place where order can enter, and changes nothing; each kind overrides one, with
its gradient beside it. Tables that are not learned are made from the settings, in 32 bits as the torch engine makes
them, so that a checkpoint means the same in both.
"""

import math
from typing import Any

import numpy as np

from tessera.errors import SettingError
from tessera.scratch.flow import Flow
from tessera.scratch.ops.embedding import embedding_backward, embedding_forward
from tessera.scratch.ops.rotate import Angles, Layout, rotate_backward, rotate_forward
from tessera.scratch.parameter import Parameter


class Position:
    """No positions: three identities. The `Flow` says where the tokens stand."""

    @property
    def parameters(self) -> dict[str, Parameter]:
        return {}

    def embed(self, x_BTD: np.ndarray, flow: Flow) -> np.ndarray:
        """The embedded tokens, with their positions."""
        return x_BTD

    def embed_backward(self, dy_BTD: np.ndarray, flow: Flow) -> np.ndarray:
        """dx_BTD of `embed`."""
        return dy_BTD

    def rotate(self, x_BTHK: np.ndarray, flow: Flow) -> np.ndarray:
        """Queries or keys, with their positions."""
        return x_BTHK

    def rotate_backward(self, dy_BTHK: np.ndarray, flow: Flow) -> np.ndarray:
        """dx_BTHK of `rotate`."""
        return dy_BTHK

    def bias(self, flow: Flow, n_keys: int) -> np.ndarray | None:
        """What is added to the attention scores, (H, T, S), the queries being the last; None for nothing."""
        return None

    def bias_backward(self, dscores_BHTS: np.ndarray) -> None:
        """Take the gradient of `bias`, where it is learned, from that of the scores that it was added to."""


class LearnedPosition(Position):
    """x + table[position], the table learned (Gehring et al. 2017; GPT-2)."""

    def __init__(self, *, context: int, d_model: int, dtype: Any = np.float32) -> None:
        self.weight = Parameter(np.zeros((context, d_model), dtype))

    @property
    def parameters(self) -> dict[str, Parameter]:
        return {"weight": self.weight}

    def embed(self, x_BTD: np.ndarray, flow: Flow) -> np.ndarray:
        return x_BTD + flow.take(self.weight.data)

    def embed_backward(self, dy_BTD: np.ndarray, flow: Flow) -> np.ndarray:
        """The table is an embedding of the positions; where all rows have the same ones, its sum is over the batch."""
        if flow.places is None:
            self.weight.grad[: flow.length] += dy_BTD.sum(axis=0)
        else:
            _, saved = embedding_forward(flow.places, self.weight.data)
            self.weight.add_grad(embedding_backward(dy_BTD, saved))
        return dy_BTD


class SinusoidalPosition(Position):
    """sqrt(D) x + table[position], the table fixed (Vaswani et al. 2017, sections 3.4 and 3.5).

    table[t, 2i] = sin(t / base^(2i / D)), table[t, 2i + 1] = cos(the same).
    """

    def __init__(self, *, context: int, d_model: int, base: float = 10_000.0, dtype: Any = np.float32) -> None:
        if d_model % 2:
            raise SettingError("d_model", d_model, "an even number: sinusoidal positions come in pairs")
        self.scale = d_model**0.5
        angles_SC = _angles(context, d_model, base)
        waves = _rounded(np.stack((np.sin(angles_SC), np.cos(angles_SC)), axis=-1), dtype)
        self.table_SD = waves.reshape(context, d_model)

    def embed(self, x_BTD: np.ndarray, flow: Flow) -> np.ndarray:
        y_BTD = x_BTD * self.scale
        y_BTD += flow.take(self.table_SD)
        return y_BTD

    def embed_backward(self, dy_BTD: np.ndarray, flow: Flow) -> np.ndarray:
        return dy_BTD * self.scale


class RotaryPosition(Position):
    """Turn each pair of a query or key by an angle proportional to its position (Su et al. 2021, RoFormer).

    The angle of pair i at position t is t / base^(2i / K), and a product of a query and a key then depends on their
    distance only. `layout` says which two numbers are a pair (`ops/rotate.py`); `share` of each head is turned, from
    its start.
    """

    def __init__(
        self,
        *,
        context: int,
        d_head: int,
        base: float = 10_000.0,
        layout: Layout = "halves",
        share: float = 1.0,
        dtype: Any = np.float32,
    ) -> None:
        angles_SC = _angles(context, _turned_width(d_head, share), base)
        self.cos_SC, self.sin_SC = _rounded(np.cos(angles_SC), dtype), _rounded(np.sin(angles_SC), dtype)
        self.layout: Layout = layout

    def _at(self, flow: Flow) -> Angles:
        return flow.once(self, lambda: Angles(flow.take(self.cos_SC), flow.take(self.sin_SC), self.layout))

    def rotate(self, x_BTHK: np.ndarray, flow: Flow) -> np.ndarray:
        return rotate_forward(x_BTHK, self._at(flow))[0]

    def rotate_backward(self, dy_BTHK: np.ndarray, flow: Flow) -> np.ndarray:
        return rotate_backward(dy_BTHK, self._at(flow))


def _angles(context: int, width: int, base: float) -> np.ndarray:
    """The angle of each pair at each position, (S, C): t / base^(2i / width), rounded to 32 bits."""
    if base <= 0:
        raise SettingError("base", base, "a positive number")
    exponents_C = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    powers_C = (base ** exponents_C.astype(np.float64)).astype(np.float32)
    return np.outer(np.arange(context, dtype=np.float32), 1 / powers_C).astype(np.float64)


def _rounded(table: np.ndarray, dtype: Any) -> np.ndarray:
    return table.astype(np.float32).astype(dtype)


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


class LinearBiasPosition(Position):
    """ALiBi: a score loses slope_h times the distance (Press et al. 2022, "Train Short, Test Long").

    The slopes of n = 2^m heads are 2^(-8/n), 2^(-16/n), ... 2^-8; of another number of heads, those of the next smaller
    power of two and then every second one of the double of it, as the authors' code has it.
    """

    def __init__(self, *, n_heads: int, dtype: Any = np.float32) -> None:
        self.slopes_H = np.exp2(-alibi_exponents(n_heads)).astype(dtype)

    def bias(self, flow: Flow, n_keys: int) -> np.ndarray:
        # The slope is constant: `bias_backward` stays that of the base.
        distances_TS = np.maximum(_distances(flow.length, n_keys), 0).astype(self.slopes_H.dtype)
        return -self.slopes_H[:, None, None] * distances_TS


def alibi_exponents(n_heads: int) -> np.ndarray:
    """e of each head, its slope being 2^-e.

    >>> alibi_exponents(6)
    array([2., 4., 6., 8., 1., 3.])
    """
    power = 2 ** math.ceil(math.log2(n_heads))
    exponents = np.arange(1, power + 1) * (8 / power)
    return exponents if power == n_heads else np.concatenate((exponents[1::2], exponents[::2]))[:n_heads]


class RelativeBiasPosition(Position):
    """T5: a learned number for each head and each bucket of distances (Raffel et al. 2020, section 2.1).

    Half of the buckets hold one distance each, the others ever more of them, up to `max_distance`; the last has all
    beyond. The layers that have this position share its table, (n_buckets, n_heads).
    """

    def __init__(self, *, n_heads: int, n_buckets: int = 32, max_distance: int = 128, dtype: Any = np.float32) -> None:
        if n_buckets < 2:
            raise SettingError("n_buckets", n_buckets, "at least 2")
        if max_distance <= n_buckets // 2:
            expected = f"more than n_buckets / 2 = {n_buckets // 2}, the distances that have a bucket of their own"
            raise SettingError("max_distance", max_distance, expected)
        self.weight = Parameter(np.zeros((n_buckets, n_heads), dtype))
        self.max_distance = max_distance

    @property
    def parameters(self) -> dict[str, Parameter]:
        return {"weight": self.weight}

    def _buckets(self, n_queries: int, n_keys: int) -> np.ndarray:
        distances_TS = np.maximum(_distances(n_queries, n_keys), 0)
        return relative_buckets(distances_TS, len(self.weight.data), self.max_distance)

    def bias(self, flow: Flow, n_keys: int) -> np.ndarray:
        return self.weight.data[self._buckets(flow.length, n_keys)].transpose(2, 0, 1)

    def bias_backward(self, dscores_BHTS: np.ndarray) -> None:
        """The rows of the batch share the bias, so their gradients add, and the bias is an embedding of the buckets.

        A key that comes after its query has bucket 0, but the mask leaves it no gradient.
        """
        dbias_HTS = dscores_BHTS.sum(axis=0)
        _, saved = embedding_forward(self._buckets(*dbias_HTS.shape[1:]), self.weight.data)
        self.weight.add_grad(embedding_backward(dbias_HTS.transpose(1, 2, 0), saved))


def _distances(n_queries: int, n_keys: int) -> np.ndarray:
    """How far each key is before each query, (T, S), the queries being the last; negative where it is after."""
    return np.arange(n_keys - n_queries, n_keys)[:, None] - np.arange(n_keys)


def relative_buckets(distances: np.ndarray, n_buckets: int, max_distance: int) -> np.ndarray:
    """The bucket of each distance, none of them negative; the logarithm is that of 32 bits, as in the torch engine.

    >>> relative_buckets(np.array([0, 1, 2, 3, 4, 5, 6, 8, 12, 90]), 8, 16)
    array([0, 1, 2, 3, 4, 4, 5, 6, 7, 7])
    """
    n_exact = n_buckets // 2
    ratios = np.maximum(distances, 1).astype(np.float32) / np.float32(n_exact)
    doublings = np.log(ratios) / np.float32(math.log(max_distance / n_exact))
    wide = n_exact + (doublings * np.float32(n_buckets - n_exact)).astype(distances.dtype)
    return np.where(distances < n_exact, distances, np.minimum(wide, n_buckets - 1))


POSITIONS = {
    "none": Position,
    "learned": LearnedPosition,
    "sinusoidal": SinusoidalPosition,
    "rope": RotaryPosition,
    "alibi": LinearBiasPosition,
    "t5": RelativeBiasPosition,
}
