"""A cache in blocks: the keys and values of many sequences in one memory, and steps of rows of any of them.

Memory is taken once, as positions that belong to nobody; a sequence has a table of blocks of them (Kwon et al. 2023,
"Efficient Memory Management for Large Language Model Serving with PagedAttention"). In a step the rows of all sequences
stand side by side as one row of a batch. Whatever looks at a token alone (norms, maps, feed-forward) does them all at
once; attention is done for each group of sequences that fit together, on their positions gathered from the memory:

    prompts     the same number of new tokens after the same number of old ones
    answers     one new token each, after any number of old ones: the shorter are filled up in front,

so that keys keep their distance to the query and every kind of bias and window holds; what fills up is another
document, which no token sees. No number depends on what else is in the memory.

N rows, P positions of the memory, S positions of a sequence.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tessera.model.cache import Attend, Cache, LayerCache
from tessera.model.flow import Flow

SPREAD = 1.5
"""Answers are done together as long as the longest is at most so many times as long as the shortest,"""
SHORT = 64
"""or not longer than this."""


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


class PagedLayer(LayerCache):
    """The memory of one layer, (P + 1, heads, width): a row of zeros is last, which fills up."""

    def __init__(self, like: LayerCache, n_positions: int) -> None:
        self.keys_PGK, self.values_PGV = (
            torch.empty(n_positions + 1, x.shape[1], x.shape[3], dtype=x.dtype, device=x.device) for x in like.memory
        )
        self.keys_PGK[-1], self.values_PGV[-1] = 0, 0
        self.length = 0

    @property
    def capacity(self) -> int:
        return len(self.keys_PGK) - 1

    @property
    def n_bytes(self) -> int:
        return sum(rows.numel() * rows.element_size() for rows in (self.keys_PGK, self.values_PGV))

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
        return self._moved(layer.keys_PGK, k_BGTK), self._moved(layer.values_PGV, v_BGTK)

    def _moved(self, memory_PGK: Tensor, new_BGTK: Tensor) -> Tensor:
        group = self._group
        memory_PGK[group.writes] = new_BGTK.transpose(1, 2).flatten(0, 1).to(memory_PGK.dtype)
        return memory_PGK[group.reads].unflatten(0, (group.size, -1)).transpose(1, 2)


class PagedCache(Cache):
    """The memory of a decoder, made like the layers of an ordinary cache of it.

    It has room for the tokens themselves where that has, for an embedding that looks at those before.
    """

    def __init__(self, like: Cache, *, n_blocks: int, block_size: int) -> None:
        n_positions = n_blocks * block_size
        super().__init__([PagedLayer(layer, n_positions) for layer in like.layers])
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
