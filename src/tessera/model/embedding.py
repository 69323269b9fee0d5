"""Embeddings: how a token becomes the vector that the first block reads.

The plain one is a row of a table for each token. `NgramEmbedding` adds rows for the last two, three, ... tokens, so
that what follows from a short run of tokens need not be learned by attention: it costs memory and next to no time.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tessera.errors import SettingError
from tessera.model.flow import Flow
from tessera.model.linear import Embedding
from tessera.ops.dropout import dropout as dropped

_MIX = (0x9E3779B97F4A7C15 - 2**64, 0xBF58476D1CE4E5B9 - 2**64)
"""Odd multipliers of the SplitMix64 generator, as signed numbers: products modulo 2^64 spread each bit over the upper
ones."""


class TableEmbedding(Embedding):
    """Row `id` of a learned table. Base of the others, which add to it."""

    n_before = 0
    """How many tokens before a token its vector is made of as well."""

    def forward(self, ids_BT: Tensor, flow: Flow | None = None, before_BN: Tensor | None = None) -> Tensor:
        """The vectors (B, T, d_model). `before_BN`: the tokens that a cache holds before these, the newest last."""
        return super().forward(ids_BT)

    def scores(self, h_BTD: Tensor) -> Tensor:
        """The product of hidden states and each row, (B, T, rows): what a head says whose table this is."""
        return h_BTD @ self.weight.T


def ngram_keys(ids_BT: Tensor, base: int, orders: Sequence[int], flow: Flow | None, before_BN: Tensor | None) -> Tensor:
    """A number for the last n tokens at each place, (len(orders), B, T): their ids + 1 as digits to the base, modulo
    2^64.

    The digit 0 stands where there is no token: before the row's or the document's begin.
    """
    T, n_before = ids_BT.shape[1], max(orders) - 1
    digits_BS = ids_BT + 1 if before_BN is None else torch.cat((before_BN[:, -n_before:], ids_BT), dim=1) + 1
    digits_BS = nn.functional.pad(digits_BS, (n_before + T - digits_BS.shape[1], 0))
    documents_BT = None if flow is None else flow.documents_BT
    if documents_BT is not None:
        documents_BS = nn.functional.pad(documents_BT, (n_before, 0))
    key_BT, keys = ids_BT + 1, []
    for lag in range(1, n_before + 1):
        place = slice(n_before - lag, n_before - lag + T)
        digit_BT = digits_BS[:, place]
        if documents_BT is not None:
            digit_BT = torch.where(documents_BS[:, place] == documents_BT, digit_BT, 0)
        key_BT = key_BT + digit_BT * _signed(base**lag)
        if lag + 1 in orders:
            keys.append(key_BT)
    return torch.stack(keys)


def hashed_rows(key_BT: Tensor, n_rows: int) -> Tensor:
    """A row for each key, the same on every machine."""
    for multiplier in _MIX:
        key_BT = (key_BT ^ (key_BT >> 31)) * multiplier
    return (key_BT ^ (key_BT >> 29)).remainder(n_rows)


class NgramEmbedding(TableEmbedding):
    """The token's row, and one for the last n tokens for each n in `orders`: x = E[id] + the sum of all E_n[row_n].

    Each table has `rows` rows, or as many as there are n-grams if these are fewer. Of more n-grams than rows several
    share one, by a hash: what is frequent learns most, and the layers above tell the others apart by the token's own
    row (Roy et al. 2022, "N-Grammer"; Pagnoni et al. 2024, "Byte Latent Transformer", section 3.2.1). Before the first
    token of a row or document stands a token that is none.

    `dropout` leaves whole rows out in training, each by itself: n-grams that have been seen there are missing in other
    texts, which the layers above are to bear.
    """

    def __init__(
        self,
        *,
        n_vocab: int,
        d_model: int,
        orders: Sequence[int] = (2, 3, 4),
        rows: int = 32768,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(n_vocab=n_vocab, d_model=d_model)
        orders = tuple(orders)
        if not orders or list(orders) != sorted(set(orders)) or orders[0] < 2:
            raise SettingError("orders", list(orders), "lengths from 2, each once, the shortest first")
        if rows < 1:
            raise SettingError("rows", rows, "at least 1")
        if not 0.0 <= dropout < 1.0:
            raise SettingError("dropout", dropout, "a share from 0 to less than 1")
        self.orders, self.base, self.dropout = orders, n_vocab + 1, dropout
        self.n_before = max(orders) - 1
        sizes = [min(rows, self.base**n) for n in orders]
        self.tables = nn.ModuleList(Embedding(n_vocab=size, d_model=d_model) for size in sizes)

    def forward(self, ids_BT: Tensor, flow: Flow | None = None, before_BN: Tensor | None = None) -> Tensor:
        x_BTD = super().forward(ids_BT)
        keys_NBT = ngram_keys(ids_BT, self.base, self.orders, flow, before_BN)
        for n, key_BT, table in zip(self.orders, keys_NBT, self.tables, strict=True):
            n_rows = len(table.weight)  # type: ignore[arg-type]
            row_BTD = table(key_BT if n_rows == self.base**n else hashed_rows(key_BT, n_rows))
            if self.training and self.dropout:
                row_BTD = row_BTD * dropped(row_BTD.new_ones(*ids_BT.shape, 1), self.dropout)
            x_BTD = x_BTD + row_BTD
        return x_BTD


def _signed(number: int) -> int:
    """`number` modulo 2^64 as an int64, which is how products of tensors go round."""
    return (number + 2**63) % 2**64 - 2**63


EMBEDDINGS: dict[str, type[TableEmbedding]] = {"table": TableEmbedding, "ngram": NgramEmbedding}
