"""The CPU engine: the weights of a decoder packed, a pool of blocks for keys and values, and steps of any rows.

    model = CpuModel.from_source(open_model("model.gguf"), n_blocks=512)
    logits = model.step(StepRows(ids, sequences, positions, wanted), tables)

It is a `Backend` of the scheduler. What a step computes for a row does not depend on the other rows, on how a prompt is
cut into chunks, on the number of threads, or on which blocks its sequence has: the same bits each time.
"""

import threading
import weakref
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tessera.config import build
from tessera.errors import InputError, SettingError
from tessera.generate.cpu.attend import MOST
from tessera.generate.cpu.check import check_kernels
from tessera.generate.cpu.helpers import Control, Helpers
from tessera.generate.cpu.kernels import GROUP
from tessera.generate.cpu.plan import Row, Word
from tessera.generate.cpu.pool import CACHES, POSITIONS
from tessera.generate.cpu.step import step, stream
from tessera.generate.cpu.support import why_not_model
from tessera.generate.cpu.table import ROWS, Table
from tessera.generate.cpu.weights import Source, Weights, check_storage, of_decoder, of_source
from tessera.generate.requests import StepRows
from tessera.model.decoder import Decoder
from tessera.model.position import POSITIONS as KINDS_OF_POSITION
from tessera.model.position import RotaryPosition


class _Run(NamedTuple):
    """Rows of one sequence at positions one after the other, and its blocks up to the last of them."""

    first: int
    end: int
    blocks: Sequence[int]


class CpuModel:
    """A decoder as packed weights, with a cache of `n_blocks` blocks; made by `from_source`."""

    block_size = POSITIONS

    def __init__(
        self,
        *,
        model: Decoder,
        position: RotaryPosition,
        weights: Weights,
        n_vocab: int,
        n_blocks: int,
        context: int,
        cache: str,
        n_threads: int,
    ) -> None:
        self.n_vocab, self.context, self.n_blocks = n_vocab, context, n_blocks
        self.cache, self.n_threads = cache, n_threads
        self.storages = sorted({each.storage.name for each in weights.matrices.values()})
        self._n_tokens = model.n_vocab
        self._weights, self._lock = weights, threading.Lock()
        control = Control(n_threads)
        self._table = table = Table(
            model, weights, position, n_blocks=n_blocks, context=context, cache=cache, n_threads=n_threads
        )
        table.set(CONTROL=control.address)
        self._plan = table.address
        self._width = int(table.words[Word.S_LOGITS]) // 4
        self._helpers = Helpers(n_threads - 1, self._plan, control, held=table)
        self._finalizer = weakref.finalize(self, self._helpers.end)

    @classmethod
    def from_source(
        cls,
        source: Source | Decoder,
        storage: str | None = None,
        *,
        n_blocks: int | None = None,
        context: int | None = None,
        cache: str | None = None,
        n_vocab: int | None = None,
        n_threads: int | None = None,
        say: Callable[[str], None] = lambda line: None,
        check: bool = True,
    ) -> "CpuModel":
        """The model of a file that is opened, or of a decoder that is there.

        `storage` is q8_0, q4_0, q4_1, bf16 or fp32, that of the file unless said. `cache` is fp16, int8, or fp32 as it
        is for weights of fp32 unless said; without `n_blocks` it has room for one sequence of `context` tokens. Ids
        from `n_vocab` on, those of a padded head, are left out of the logits. A model without kernels is an
        `InputError` that says why, and so are kernels that fail where they are tried out first, unless `check` is off.
        """
        check_storage(storage)
        skeleton = source if isinstance(source, Decoder) else _skeleton(source)
        reason = why_not_model(skeleton)
        if reason is not None:
            raise InputError(f"the CPU engine has no kernels for this model: {reason}")
        context = _in_range("context", context, skeleton.context)
        n_vocab = _in_range("n_vocab", n_vocab, skeleton.n_vocab)
        n_blocks = -(-context // POSITIONS) if n_blocks is None else n_blocks
        n_threads = torch.get_num_threads() if n_threads is None else n_threads
        for name, value in (("n_blocks", n_blocks), ("n_threads", n_threads)):
            if value < 1:
                raise SettingError(name, value, "at least 1")
        if cache is not None and cache not in CACHES:
            raise SettingError("cache", cache, f"one of {', '.join(CACHES)}")
        if check:
            check_kernels(say)
        if isinstance(source, Decoder):
            weights, position = of_decoder(source, storage), source.positions[0]
        else:
            weights, position = of_source(skeleton, source, storage, say), _position(source)
        if cache is None:
            cache = "fp32" if {each.storage.name for each in weights.matrices.values()} == {"fp32"} else "fp16"
        return cls(
            model=skeleton,
            position=position,  # type: ignore[arg-type]
            weights=weights,
            n_vocab=n_vocab,
            n_blocks=n_blocks,
            context=context,
            cache=cache,
            n_threads=n_threads,
        )

    def step(self, rows: StepRows, tables: Sequence[Sequence[int]]) -> Tensor:
        """The logits after each wanted row, (len(wanted), n_vocab) float32; the cache holds all rows then.

        `tables[i]` are the blocks of sequence i, in the order of its positions. A position may be written again: what
        was there is gone. `wanted` rows come in their order.
        """
        ids, sequences, positions, wanted = (np.asarray(each, np.int64).reshape(-1) for each in rows)
        self._check(ids, sequences, positions, wanted)
        with self._lock:
            runs = self._runs(sequences, positions, tables)
            # Products write whole groups of rows, but a single one alone: what is beyond is not handed out.
            logits = torch.empty(len(wanted) + (GROUP if len(wanted) > 1 else 0), self._width)
            for begin in range(0, len(ids), ROWS):
                end = min(begin + ROWS, len(ids))
                low, high = np.searchsorted(wanted, (begin, end)) if len(ids) > ROWS else (0, len(wanted))
                self._put_rows(ids[begin:end], positions[begin:end], wanted[low:high] - begin)
                self._put_runs([_cut(run, begin, end) for run in runs if run.first < end and run.end > begin])
                self._table.set(LOGITS=logits.data_ptr() + 4 * self._width * int(low))
                self._helpers.wake()
                step(self._plan)
        return logits[: len(wanted), : self.n_vocab]

    @property
    def step_bytes(self) -> int:
        """The weights that a step reads: all matrices, without an embedding of which only rows are."""
        matrices = self._weights.matrices
        return sum(
            each.n_bytes for name, each in matrices.items() if name == self._table.head or name != "embedding.weight"
        )

    @property
    def cache_bytes(self) -> int:
        return sum(self._table.arrays[place].nbytes for place in (Word.KEYS, Word.VALUES))

    def read_all(self) -> int:
        """Read the memory of the weights once with all threads, and return its bytes: the limit of any step's speed."""
        with self._lock:
            self._helpers.wake()
            stream(self._plan, 4 * self.n_threads)
        return len(self._weights.memory)

    def close(self) -> None:
        """Send the helping threads home; the model cannot be used any more."""
        self._finalizer()

    def _check(self, ids: np.ndarray, sequences: np.ndarray, positions: np.ndarray, wanted: np.ndarray) -> None:
        if not len(ids) == len(sequences) == len(positions):
            raise InputError(f"{len(ids)} ids, {len(sequences)} sequences and {len(positions)} positions: as many each")
        if len(wanted) and not (wanted[0] >= 0 and wanted[-1] < len(ids) and (wanted[1:] > wanted[:-1]).all()):
            raise InputError(f"wanted rows {wanted.tolist()} of a step of {len(ids)}: expected one after the other")
        _check_range("token id", ids, self._n_tokens)
        _check_range("position", positions, self.context)

    def _runs(self, sequences: np.ndarray, positions: np.ndarray, tables: Sequence[Sequence[int]]) -> list[_Run]:
        """The runs of a step, all of whose blocks are there."""
        _check_range("sequence", sequences, len(tables))
        edges = [0, len(sequences)] if len(sequences) else []
        if len(sequences) > 1:
            breaks = np.flatnonzero((np.diff(sequences) != 0) | (np.diff(positions) != 1)) + 1
            edges[1:1] = breaks.tolist()
        found = []
        for first, end in pairwise(edges):
            sequence, n_blocks = int(sequences[first]), int(positions[end - 1]) // POSITIONS + 1
            blocks = tables[sequence][:n_blocks]
            if len(blocks) < n_blocks:
                raise InputError(
                    f"sequence {sequence} has {len(blocks)} blocks of {POSITIONS}, and position {positions[end - 1]}"
                )
            if not 0 <= min(blocks) <= max(blocks) < self.n_blocks:
                raise InputError(f"sequence {sequence} has a block outside of the {self.n_blocks} that there are")
            found.append(_Run(first, end, blocks))
        return found

    def _put_rows(self, ids: np.ndarray, positions: np.ndarray, wanted: np.ndarray) -> None:
        arrays, n = self._table.arrays, len(ids)
        arrays[Word.ROWS][:n, Row.TOKEN], arrays[Word.ROWS][:n, Row.POSITION] = ids, positions
        arrays[Word.WANTED][: len(wanted), 0] = wanted
        self._table.set(N_ROWS=n, N_WANTED=len(wanted))

    def _put_runs(self, runs: Sequence[_Run]) -> None:
        """The tables of a call's sequences, and the tiles that attend together."""
        rows, tiles, tables = self._table.arrays[Word.ROWS], self._table.arrays[Word.TILES], self._table.tables
        n_tiles, stride, address = 0, tables.strides[0], tables.ctypes.data
        for number, (first, end, blocks) in enumerate(runs):
            tables[number, : len(blocks)] = blocks
            rows[first:end, Row.TABLE] = address + number * stride
            for begin in range(first, end, MOST):
                tiles[n_tiles] = begin, min(MOST, end - begin)
                n_tiles += 1
        self._table.set(N_TILES=n_tiles)


def _cut(run: _Run, begin: int, end: int) -> _Run:
    """The part of a run that is in a call of the rows from `begin` to `end`, counted from there."""
    return _Run(max(run.first, begin) - begin, min(run.end, end) - begin, run.blocks)


def _skeleton(source: Source) -> Decoder:
    with torch.device("meta"):
        return Decoder.from_settings(source.settings, n_vocab=source.n_vocab).eval()


def _position(source: Source) -> RotaryPosition:
    """The tables of angles, which a skeleton has no memory for."""
    settings = source.settings
    d_head = settings.d_head or settings.d_model // settings.n_heads
    made = build(KINDS_OF_POSITION, settings.pattern("position")[0], context=settings.context, d_head=d_head)
    assert isinstance(made, RotaryPosition)
    return made


def _in_range(name: str, value: int | None, most: int) -> int:
    if value is not None and not 1 <= value <= most:
        raise SettingError(name, value, f"from 1 to {most}, that of the model")
    return most if value is None else value


def _check_range(what: str, found: np.ndarray, end: int) -> None:
    if len(found) and not 0 <= found.min() <= found.max() < end:
        wrong = found[(found < 0) | (found >= end)][0]
        raise InputError(f"{what} {wrong}: expected from 0 to {end - 1}")
