"""Positions as a bias on the attention scores: the further a key is from its query, the other its bias.

A bias depends on the distance alone, so a row of one number a distance says all of it; `spread` lays the row out for
each query. That is made once a pass and shared by the layers. A document within a row needs nothing more: distances in
it are those in the row.
"""

import math

import torch
from torch import Tensor, nn

from tessera.errors import SettingError
from tessera.model.fixed import fixed_table
from tessera.model.flow import Flow
from tessera.model.position_hooks import Position


def spread(row_HS: Tensor, n_queries: int) -> Tensor:
    """row[h, distance] -> (H, T, S): for each of the last T of S positions, what belongs to its distance to each.

    A key that comes after its query gets 0; the causal mask hides it.

    >>> spread(torch.tensor([[0, 1, 2]]), 2)
    tensor([[[1, 0, 0],
             [2, 1, 0]]])
    """
    # Backwards, distances run on from left to right as the keys do: each query's row is a window of that line.
    line = torch.cat((row_HS.flip(1), row_HS.new_zeros(len(row_HS), n_queries - 1)), dim=1)
    return line.unfold(1, row_HS.shape[1], 1).flip(1)


class LinearBiasPosition(Position):
    """ALiBi: a score loses slope_h times the distance (Press et al. 2022, "Train Short, Test Long").

    The slopes of n = 2^m heads are 2^(-8/n), 2^(-16/n), ... 2^-8; of another number of heads, those of the next smaller
    power of two and then every second one of the double of it, as the authors' code has it.
    """

    exponents: Tensor

    def __init__(self, *, n_heads: int) -> None:
        super().__init__()
        # The exponents and not the slopes: few bits hold them exactly, so a model cast to bfloat16 keeps its slopes.
        exponents_H = fixed_table((n_heads,), lambda: alibi_exponents(n_heads))
        self.register_buffer("exponents", exponents_H, persistent=False)

    def bias(self, flow: Flow, n_keys: int) -> Tensor:
        return flow.once((self, n_keys), lambda: self._made(flow.length, n_keys))

    def _made(self, n_queries: int, n_keys: int) -> Tensor:
        slopes_H = torch.exp2(-self.exponents.float())
        distances_S = torch.arange(n_keys, device=slopes_H.device)
        return spread(-slopes_H[:, None] * distances_S, n_queries)


def alibi_exponents(n_heads: int) -> Tensor:
    """e of each head, its slope being 2^-e.

    >>> alibi_exponents(6)
    tensor([2., 4., 6., 8., 1., 3.])
    """
    if n_heads < 1:
        raise SettingError("n_heads", n_heads, "at least 1")
    power = 2 ** math.ceil(math.log2(n_heads))
    exponents = torch.arange(1, power + 1) * (8 / power)
    return exponents if power == n_heads else torch.cat((exponents[1::2], exponents[::2]))[:n_heads]


class RelativeBiasPosition(Position):
    """T5: a learned number for each head and each bucket of distances (Raffel et al. 2020, section 2.1).

    Half of the buckets hold one distance each, the others ever more of them, up to `max_distance`; the last has all
    beyond. The layers that have this position share its table, (n_buckets, n_heads).
    """

    def __init__(self, *, n_heads: int, n_buckets: int = 32, max_distance: int = 128) -> None:
        super().__init__()
        if n_buckets < 2:
            raise SettingError("n_buckets", n_buckets, "at least 2")
        if max_distance <= n_buckets // 2:
            expected = f"more than n_buckets / 2 = {n_buckets // 2}, the distances that have a bucket of their own"
            raise SettingError("max_distance", max_distance, expected)
        self.weight = nn.Parameter(torch.empty(n_buckets, n_heads))
        self.max_distance = max_distance

    def bias(self, flow: Flow, n_keys: int) -> Tensor:
        return flow.once((self, n_keys), lambda: self._made(flow.length, n_keys))

    def _made(self, n_queries: int, n_keys: int) -> Tensor:
        distances_S = torch.arange(n_keys, device=self.weight.device)
        buckets_S = relative_buckets(distances_S, len(self.weight), self.max_distance)
        return spread(self.weight.index_select(0, buckets_S).T, n_queries)


def relative_buckets(distances_S: Tensor, n_buckets: int, max_distance: int) -> Tensor:
    """The bucket of each distance, none of them negative.

    >>> relative_buckets(torch.tensor([0, 1, 2, 3, 4, 5, 6, 8, 12, 90]), 8, 16)
    tensor([0, 1, 2, 3, 4, 4, 5, 6, 7, 7])
    """
    n_exact = n_buckets // 2
    doublings_S = torch.log(distances_S.clamp(min=1).float() / n_exact) / math.log(max_distance / n_exact)
    wide_S = n_exact + (doublings_S * (n_buckets - n_exact)).to(distances_S.dtype)
    return torch.where(distances_S < n_exact, distances_S, wide_S.clamp(max=n_buckets - 1))
