"""A cache in blocks: the keys and values of many sequences in one memory, and steps of rows of any of them.

Memory is taken once, as positions that belong to nobody; a sequence has a table of blocks of them (Kwon et al. 2023,
"Efficient Memory Management for Large Language Model Serving with PagedAttention"). In a step the rows of all sequences
stand side by side as one row of a batch. Whatever looks at a token alone (norms, maps, feed-forward) does them all at
once; attention is done for each group of sequences that fit together, on their positions gathered from the memory:

    prompts     the same number of new tokens after the same number of old ones
    answers     one new token each, after any number of old ones: the shorter are filled up in front,

so that keys keep their distance to the query and every kind of bias and window holds; what fills up is another
document, which no token sees. No number depends on what else is in the memory.

The memory holds numbers as they are, or in 8 bits (`CodedRows`). A token is then seen in 8 bits by all tokens, itself
and those of its own step included: how a text was cut into steps changes nothing.

N rows, P positions of the memory, S positions of a sequence.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tessera.errors import SettingError
from tessera.model.cache import Attend, Cache, LayerCache
from tessera.model.flow import Flow

SPREAD = 1.5
"""Answers are done together as long as the longest is at most so many times as long as the shortest,"""
SHORT = 64
"""or not longer than this."""
SCALED = 32
"""Numbers of a row in 8 bits that share a scale."""


@dataclass(frozen=True)
class Run:
    """New tokens of one sequence: rows `first` to `first` + `n_new` of the step, after `n_old` tokens of its own."""

    first: int
    n_new: int
    n_old: int
    blocks: Sequence[int]

    @property
    def length(self) -> int:
        return self.n_old + self.n_new


@dataclass
class Group:
    """Sequences that are attended to in one call. Indices are of rows of the step, or of positions of the memory."""

    size: int
    rows: slice | Tensor
    writes: Tensor
    reads: slice | Tensor
    flow: Flow

    def of(self, part_1N: Tensor) -> Tensor:
        """(1, N, ...) -> (B, T, ...)."""
        return part_1N[0, self.rows].unflatten(0, (self.size, self.flow.length))


@dataclass
class PagedFlow(Flow):
    """The flow of a step: each row stands where it stands in its own sequence."""

    given_1N: Tensor | None = None
    groups: list[Group] = field(default_factory=list)
    most: int = 0
    """The position after the last one of the longest sequence."""

    @cached_property
    def places(self) -> Tensor | None:
        return self.given_1N

    @property
    def end(self) -> int:
        return self.most


class Rows:
    """Numbers as they are, (P + 1, heads, width): a row of zeros is last, which fills up."""

    def __init__(self, like_BGSK: Tensor, n_positions: int) -> None:
        _, G, _, K = like_BGSK.shape
        self.numbers_PGK = torch.empty(n_positions + 1, G, K, dtype=like_BGSK.dtype, device=like_BGSK.device)
        self.numbers_PGK[-1] = 0

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """What it holds in memory."""
        return (self.numbers_PGK,)

    def write(self, places: Tensor, new_NGK: Tensor) -> None:
        self.numbers_PGK[places] = new_NGK.to(self.numbers_PGK.dtype)

    def read(self, places: slice | Tensor) -> Tensor:
        return self.numbers_PGK[places]


class CodedRows(Rows):
    """Whole numbers from -127 to 127 and, for each `SCALED` neighbours of a token's head, a scale in half precision:

        x = scale * q,      scale = max |x| / 127.

    A channel that is large in all tokens, as keys have them, costs precision among its neighbours only. Heads whose
    width is no multiple of `SCALED` have one scale.
    """

    def __init__(self, like_BGSK: Tensor, n_positions: int) -> None:
        _, G, _, K = like_BGSK.shape
        self.dtype = like_BGSK.dtype
        n_scales = 1 if K % SCALED else K // SCALED
        at = like_BGSK.device
        self.codes_PGKB = torch.empty(n_positions + 1, G, n_scales, K // n_scales, dtype=torch.int8, device=at)
        self.scales_PGK = torch.empty(n_positions + 1, G, n_scales, dtype=torch.float16, device=at)
        self.codes_PGKB[-1], self.scales_PGK[-1] = 0, 0

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return self.codes_PGKB, self.scales_PGK

    def write(self, places: Tensor, new_NGK: Tensor) -> None:
        new_NGKB = new_NGK.float().unflatten(2, self.codes_PGKB.shape[2:])
        scales_NGK = (new_NGKB.abs().amax(dim=3) / 127).half()
        inverse_NGK = torch.where(scales_NGK == 0, 0.0, 1.0 / scales_NGK.float())
        codes_NGKB = (new_NGKB * inverse_NGK.unsqueeze(3)).round_().clamp_(-127, 127)
        self.codes_PGKB[places], self.scales_PGK[places] = codes_NGKB.to(torch.int8), scales_NGK

    def read(self, places: slice | Tensor) -> Tensor:
        scales_NGK1 = self.scales_PGK[places].to(self.dtype).unsqueeze(3)
        return (self.codes_PGKB[places] * scales_NGK1).flatten(2)


ROWS: dict[str, type[Rows]] = {"float": Rows, "int8": CodedRows}
"""What the keys and values of a cache can be kept as."""


class PagedLayer(LayerCache):
    """The memory of one layer: keys and values, either of which may have no width."""

    def __init__(self, like: LayerCache, n_positions: int, kept: type[Rows] = Rows) -> None:
        self.keys, self.values = ((kept if x.shape[3] else Rows)(x, n_positions) for x in like.memory)
        self._n_positions, self.length = n_positions, 0

    @property
    def capacity(self) -> int:
        return self._n_positions

    @property
    def n_bytes(self) -> int:
        return sum(part.numel() * part.element_size() for part in (*self.keys.parts, *self.values.parts))

    def through(self, attend: Attend, flow: Flow, *parts_BT: Tensor) -> Tensor:
        """One call for each group; the rows come back in their order, (1, N, width)."""
        assert isinstance(flow, PagedFlow)
        gathered = [
            attend(group.flow, _PartOfLayer(self, group), *map(group.of, parts_BT)).flatten(0, 1)
            for group in flow.groups
        ]
        if len(gathered) == 1 and isinstance(flow.groups[0].rows, slice):
            return gathered[0][None]
        y_NE = gathered[0].new_empty(flow.length, gathered[0].shape[1])
        for group, part_NE in zip(flow.groups, gathered, strict=True):
            y_NE[group.rows] = part_NE
        return y_NE[None]


class _PartOfLayer(LayerCache):
    """What a layer's memory has of one group."""

    def __init__(self, layer: PagedLayer, group: Group) -> None:
        self._layer, self._group = layer, group

    def append(self, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        """Put the new tokens in their places; returns all keys and values of each sequence, (B, heads, S, width)."""
        layer = self._layer
        return self._moved(layer.keys, k_BGTK), self._moved(layer.values, v_BGTK)

    def _moved(self, memory: Rows, new_BGTK: Tensor) -> Tensor:
        group = self._group
        memory.write(group.writes, new_BGTK.transpose(1, 2).flatten(0, 1))
        return memory.read(group.reads).unflatten(0, (group.size, -1)).transpose(1, 2)


class PagedCache(Cache):
    """The memory of a decoder, made like the layers of an ordinary cache of it.

    It has room for the tokens themselves where that has, for an embedding that looks at those before. `kept`: "float",
    numbers as that has them, or "int8".
    """

    def __init__(self, like: Cache, *, n_blocks: int, block_size: int, kept: str = "float") -> None:
        if kept not in ROWS:
            raise SettingError.unknown("cache", kept, ROWS)
        n_positions = n_blocks * block_size
        super().__init__([PagedLayer(layer, n_positions, ROWS[kept]) for layer in like.layers])
        self.block_size = block_size
        self._device = like.layers[0].memory[0].device
        self._ids_P = torch.zeros(n_positions + 1, dtype=torch.long, device=self._device) if like.looks_back else None

    def flow(self, runs: Sequence[Run]) -> PagedFlow:
        """The flow of a step of these runs, which come in the order of their rows."""
        places_N = np.concatenate([np.arange(run.n_old, run.length) for run in runs])
        return PagedFlow(
            start=0,
            length=len(places_N),
            given_1N=self._on_device(places_N)[None],
            groups=[self._group(alike) for alike in _alike(runs)],
            most=max(run.length for run in runs),
        )

    def embedded(self, embedding: Any, ids_BT: Tensor, flow: Flow) -> Tensor:
        if self._ids_P is None:
            return embedding(ids_BT, flow)
        assert isinstance(flow, PagedFlow)
        x_ND: Tensor | None = None
        for group in flow.groups:
            self._ids_P[group.writes] = ids_BT[0, group.rows]
            ids_BS = self._ids_P[group.reads].unflatten(0, (group.size, -1))
            n_old = ids_BS.shape[1] - group.flow.length
            before_BN = ids_BS[:, max(0, n_old - embedding.n_before) : n_old]
            documents_BS = group.flow.documents_BT
            if documents_BS is not None:  # -1 is no token: what an embedding makes of the begin of a text
                documents_BN = documents_BS[:, max(0, n_old - embedding.n_before) : n_old]
                before_BN = before_BN.masked_fill(documents_BN == 0, -1)
            part_ND = embedding(group.of(ids_BT), None, before_BN).flatten(0, 1)
            x_ND = part_ND.new_empty(flow.length, part_ND.shape[1]) if x_ND is None else x_ND
            x_ND[group.rows] = part_ND
        assert x_ND is not None
        return x_ND[None]

    def _group(self, runs: Sequence[Run]) -> Group:
        n_new, most = runs[0].n_new, max(run.length for run in runs)
        rows = np.concatenate([np.arange(run.first, run.first + n_new) for run in runs])
        reads_BS = np.full((len(runs), most), self.layers[0].capacity)
        for reads_S, run in zip(reads_BS, runs, strict=True):
            reads_S[most - run.length :] = self._positions(run)
        documents_BS = None
        if any(run.length < most for run in runs):
            documents_BS = self._on_device((reads_BS < self.layers[0].capacity).astype(np.int64))
        flow = Flow(start=most - n_new, length=n_new, documents_BT=documents_BS)
        writes = self._on_device(reads_BS[:, most - n_new :].reshape(-1))
        return Group(len(runs), self._index(rows), writes, self._index(reads_BS.reshape(-1)), flow)

    def _positions(self, run: Run) -> np.ndarray:
        """Where in the memory the tokens of a sequence are."""
        n = -(-run.length // self.block_size)
        starts = np.asarray(run.blocks[:n], dtype=np.int64)[:, None] * self.block_size
        return (starts + np.arange(self.block_size)).reshape(-1)[: run.length]

    def _index(self, numbers: np.ndarray) -> slice | Tensor:
        """A slice where they go on one by one: nothing is copied then."""
        if (np.diff(numbers) == 1).all():
            return slice(int(numbers[0]), int(numbers[-1]) + 1)
        return self._on_device(numbers)

    def _on_device(self, numbers: np.ndarray) -> Tensor:
        return torch.from_numpy(numbers).to(self._device)


def _alike(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs that one call can do: as long, or one token each and of about the same length."""
    groups: dict[tuple[int, int], list[Run]] = {}
    for run in runs:
        if run.n_new > 1:
            groups.setdefault((run.n_new, run.n_old), []).append(run)
    found = list(groups.values())
    shortest = 0
    for run in sorted((run for run in runs if run.n_new == 1), key=lambda run: (run.length, run.first)):
        if not shortest or run.length > max(SHORT, SPREAD * shortest):
            shortest = run.length
            found.append([])
        found[-1].append(run)
    return [sorted(group, key=lambda run: run.first) for group in found]
