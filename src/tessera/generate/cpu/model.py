"""The CPU engine: the weights of a decoder packed, a cache of slots, and steps of any rows.

    model = CpuModel.from_source(open_model("model.gguf"), n_slots=4, context=2048)
    logits = model.step(StepRows(ids, slots, positions, wanted))

What a step computes for a row does not depend on the other rows, on how a prompt is cut into chunks, or on the number
of threads: the same bits each time.
"""

import threading
import weakref
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tessera.config import build
from tessera.errors import InputError, SettingError
from tessera.generate.cpu.attend import MOST
from tessera.generate.cpu.check import check_kernels
from tessera.generate.cpu.helpers import Control, Helpers
from tessera.generate.cpu.plan import Row, Word
from tessera.generate.cpu.step import step, stream
from tessera.generate.cpu.support import why_not_model
from tessera.generate.cpu.table import ROWS, Table
from tessera.generate.cpu.weights import Source, Weights, check_storage, of_decoder, of_source
from tessera.model.decoder import Decoder
from tessera.model.position import POSITIONS, RotaryPosition

CACHES = {"fp16": np.float16, "fp32": np.float32}


class StepRows(NamedTuple):
    """Tokens of several sequences: the slot of each in the cache, and its position there.

    The rows of a sequence come in the order of their positions, and what is before them is in the cache already.
    `wanted` are the indices of the rows whose logits are needed.
    """

    ids: Any
    sequences: Any
    positions: Any
    wanted: Any


class CpuModel:
    """A decoder as packed weights, with room for `n_slots` sequences of `context` tokens; made by `from_source`."""

    def __init__(
        self,
        *,
        model: Decoder,
        position: RotaryPosition,
        weights: Weights,
        n_slots: int,
        context: int,
        cache: str,
        n_threads: int,
    ) -> None:
        self.n_vocab, self.context, self.n_slots, self.n_threads = model.n_vocab, context, n_slots, n_threads
        self.storages = sorted({each.storage.name for each in weights.matrices.values()})
        self._lengths = np.zeros(n_slots, np.int64)
        self._weights, self._lock = weights, threading.Lock()
        control = Control(n_threads)
        self._table = table = Table(
            model, weights, position, n_slots=n_slots, context=context, cache=CACHES[cache], n_threads=n_threads
        )
        table.set(CONTROL=control.address)
        self._plan = table.address
        self._queries_a_key = int(table.words[Word.N_HEADS] // table.words[Word.N_KV_HEADS])
        self._helpers = Helpers(n_threads - 1, self._plan, control, held=table)
        self._finalizer = weakref.finalize(self, self._helpers.end)

    @classmethod
    def from_source(
        cls,
        source: Source | Decoder,
        storage: str | None = None,
        *,
        n_slots: int = 1,
        context: int | None = None,
        cache: str | None = None,
        n_threads: int | None = None,
        say: Callable[[str], None] = lambda line: None,
        check: bool = True,
    ) -> "CpuModel":
        """The model of a file that is opened, or of a decoder that is there.

        `storage` is q8_0, q4_0, q4_1, bf16 or fp32, that of the file unless said. `cache` is fp16, or fp32 as it is for
        weights of fp32 unless said. A model without kernels is an `InputError` that says why, and so are kernels that
        fail where they are tried out first, unless `check` is off.
        """
        check_storage(storage)
        skeleton = source if isinstance(source, Decoder) else _skeleton(source)
        reason = why_not_model(skeleton)
        if reason is not None:
            raise InputError(f"the CPU engine has no kernels for this model: {reason}")
        context = _checked_context(context, skeleton, n_slots)
        if check:
            check_kernels(say)
        if isinstance(source, Decoder):
            weights, position = of_decoder(source, storage), source.positions[0]
        else:
            weights, position = of_source(skeleton, source, storage, say), _position(source)
        if cache is None:
            cache = "fp32" if {each.storage.name for each in weights.matrices.values()} == {"fp32"} else "fp16"
        if cache not in CACHES:
            raise SettingError("cache", cache, f"one of {', '.join(CACHES)}")
        n_threads = torch.get_num_threads() if n_threads is None else n_threads
        if n_threads < 1:
            raise SettingError("n_threads", n_threads, "at least 1")
        return cls(
            model=skeleton,
            position=position,  # type: ignore[arg-type]
            weights=weights,
            n_slots=n_slots,
            context=context,
            cache=cache,
            n_threads=n_threads,
        )

    def step(self, rows: StepRows) -> Tensor:
        """The logits after each wanted row, (len(wanted), n_vocab) float32; the cache holds all rows then."""
        ids, slots, positions, wanted = (np.asarray(each, np.int64).reshape(-1) for each in rows)
        if not len(ids) == len(slots) == len(positions):
            raise InputError(f"{len(ids)} ids, {len(slots)} sequences and {len(positions)} positions: expected as many")
        if len(wanted) and not 0 <= wanted.min() <= wanted.max() < len(ids):
            raise InputError(f"wanted rows {wanted.tolist()} of a step of {len(ids)}")
        _check_range("token id", ids, self.n_vocab)
        _check_range("slot", slots, self.n_slots)
        _check_range("position", positions, self.context)
        logits = torch.empty(len(wanted), self.n_vocab)
        with self._lock:
            runs = self._runs(slots, positions)
            for begin in range(0, len(ids), ROWS):
                end = min(begin + ROWS, len(ids))
                here = np.flatnonzero((wanted >= begin) & (wanted < end))
                found = self._call(ids[begin:end], slots[begin:end], positions[begin:end], wanted[here] - begin)
                logits[torch.from_numpy(here)] = torch.from_numpy(found)
            for slot, _, last in runs:
                self._lengths[slot] = last
        return logits

    def free(self, slot: int) -> None:
        """Forget the sequence in a slot."""
        self._lengths[slot] = 0

    def length(self, slot: int) -> int:
        """How many tokens of its sequence a slot holds."""
        return int(self._lengths[slot])

    def copy(self, source: int, target: int, length: int) -> None:
        """Let `target` begin with the first `length` tokens of `source`: what they share need not be computed twice."""
        if length > self._lengths[source]:
            raise InputError(f"slot {source} holds {self._lengths[source]} tokens, and {length} are to be copied")
        with self._lock:
            blocks = -(-length // 16)
            keys, values = self._table.arrays[Word.KEYS], self._table.arrays[Word.VALUES]
            keys[:, target, :, :blocks] = keys[:, source, :, :blocks]
            values[:, target, :, :length] = values[:, source, :, :length]
            self._lengths[target] = length

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

    def _call(self, ids: np.ndarray, slots: np.ndarray, positions: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """One native call."""
        rows, tiles = self._table.arrays[Word.ROWS], self._table.arrays[Word.TILES]
        n, n_tiles = len(ids), 0
        rows[:n, Row.TOKEN], rows[:n, Row.SLOT], rows[:n, Row.POSITION] = ids, slots, positions
        self._table.arrays[Word.WANTED][: len(wanted), 0] = wanted
        at_once = max(1, MOST // self._queries_a_key)
        for first, end in _stretches(slots, positions):
            for begin in range(first, end, at_once):
                tiles[n_tiles] = begin, min(at_once, end - begin)
                n_tiles += 1
        self._table.set(N_ROWS=n, N_TILES=n_tiles, N_WANTED=len(wanted))
        self._helpers.wake()
        step(self._plan)
        return self._table.arrays[Word.LOGITS][: len(wanted), : self.n_vocab]

    def _runs(self, slots: np.ndarray, positions: np.ndarray) -> list[tuple[int, int, int]]:
        """Slot, begin and end of what is new; each must go on where its sequence ends, or before."""
        ends: dict[int, int] = {}
        runs = []
        for first, end in _stretches(slots, positions):
            slot, begin = int(slots[first]), int(positions[first])
            if slot in ends and begin != ends[slot]:
                raise InputError(f"slot {slot}: position {begin} after {ends[slot] - 1} in one step")
            if slot not in ends and begin > self._lengths[slot]:
                raise InputError(f"slot {slot} holds {self._lengths[slot]} tokens, and the next has position {begin}")
            ends[slot] = int(positions[end - 1]) + 1
            runs.append((slot, begin, ends[slot]))
        return runs


def _stretches(slots: np.ndarray, positions: np.ndarray) -> list[tuple[int, int]]:
    """First row and end of each stretch of one slot with positions one after the other."""
    breaks = np.flatnonzero((np.diff(slots) != 0) | (np.diff(positions) != 1)) + 1
    edges = [0, *breaks.tolist(), len(slots)]
    return [(first, end) for first, end in pairwise(edges) if end > first]


def _skeleton(source: Source) -> Decoder:
    with torch.device("meta"):
        return Decoder.from_settings(source.settings, n_vocab=source.n_vocab).eval()


def _position(source: Source) -> RotaryPosition:
    """The tables of angles, which a skeleton has no memory for."""
    settings = source.settings
    d_head = settings.d_head or settings.d_model // settings.n_heads
    made = build(POSITIONS, settings.pattern("position")[0], context=settings.context, d_head=d_head)
    assert isinstance(made, RotaryPosition)
    return made


def _checked_context(context: int | None, model: Decoder, n_slots: int) -> int:
    if n_slots < 1:
        raise SettingError("n_slots", n_slots, "at least 1")
    context = model.context if context is None else context
    if not 1 <= context <= model.context:
        raise SettingError("context", context, f"from 1 to {model.context}, that of the model")
    return context


def _check_range(what: str, found: np.ndarray, end: int) -> None:
    if len(found) and not 0 <= found.min() <= found.max() < end:
        wrong = found[(found < 0) | (found >= end)][0]
        raise InputError(f"{what} {wrong}: expected from 0 to {end - 1}")
