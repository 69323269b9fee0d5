"""The CPU engine: the weights of a decoder packed, a pool of blocks for keys and values, and steps of any rows.

    model = CpuModel.from_source(open_model("model.gguf"), n_blocks=512)
    logits = model.step(StepRows(ids, sequences, positions, wanted), tables)

It is a `Backend` of the scheduler. What a step computes for a row does not depend on the other rows, on how a prompt is
cut into chunks, on the number of threads, or on which blocks its sequence has: the same bits each time.
"""

import threading
import weakref
from collections.abc import Callable, Sequence
from itertools import accumulate, chain
from typing import NoReturn

import numpy as np

from tessera.errors import InputError, SettingError
from tessera.generate.cpu.asked import answer
from tessera.generate.cpu.check import check_kernels
from tessera.generate.cpu.helpers import Control, Helpers
from tessera.generate.cpu.kernels import GROUP
from tessera.generate.cpu.plan import Word
from tessera.generate.cpu.pool import CACHES, POSITIONS
from tessera.generate.cpu.step import stream
from tessera.generate.cpu.support import why_not
from tessera.generate.cpu.table import Table
from tessera.generate.cpu.weights import Source, Weights, check_storage, of_source
from tessera.generate.requests import StepRows
from tessera.model.plain import PlainDecoder, plain_decoder
from tessera.native.processors import n_processors


class CpuModel:
    """A decoder as packed weights, with a cache of `n_blocks` blocks; made by `from_source`."""

    block_size = POSITIONS

    def __init__(
        self,
        *,
        model: PlainDecoder,
        weights: Weights,
        n_tokens: int,
        n_vocab: int,
        n_blocks: int,
        context: int,
        cache: str,
        n_threads: int,
    ) -> None:
        self.n_vocab, self.context, self.n_blocks = n_vocab, context, n_blocks
        self.cache, self.n_threads = cache, n_threads
        self.storages = sorted({each.storage.name for each in weights.matrices.values()})
        self._n_tokens = n_tokens
        self._weights, self._lock = weights, threading.Lock()
        control = Control(n_threads)
        self._table = table = Table(
            model, weights, n_blocks=n_blocks, context=context, cache=cache, n_threads=n_threads
        )
        table.set(CONTROL=control.address)
        self._plan = table.address
        self._width = int(table.words[Word.S_LOGITS]) // 4
        self._helpers = Helpers(n_threads - 1, self._plan, control, held=table)
        self._finalizer = weakref.finalize(self, self._helpers.end)

    @classmethod
    def from_source(
        cls,
        source: Source,
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
        """The model of files that are opened.

        `storage` is q8_0, q4_0, q4_1, bf16 or fp32, that of the file unless said. `cache` is fp16, int8, or fp32 as it
        is for weights of fp32 unless said; without `n_blocks` it has room for one sequence of `context` tokens. Ids
        from `n_vocab` on, those of a padded head, are left out of the logits. A model without kernels is an
        `InputError` that says why, and so are kernels that fail where they are tried out first, unless `check` is off.
        """
        check_storage(storage)
        reason = why_not(source.settings)
        if reason is not None:
            raise InputError(f"the CPU engine has no kernels for this model: {reason}")
        model = plain_decoder(source.settings, n_vocab=source.n_vocab)
        context = _in_range("context", context, source.settings.context)
        n_vocab = _in_range("n_vocab", n_vocab, source.n_vocab)
        n_blocks = -(-context // POSITIONS) if n_blocks is None else n_blocks
        n_threads = n_processors() if n_threads is None else n_threads
        for name, value in (("n_blocks", n_blocks), ("n_threads", n_threads)):
            if value < 1:
                raise SettingError(name, value, "at least 1")
        if cache is not None and cache not in CACHES:
            raise SettingError("cache", cache, f"one of {', '.join(CACHES)}")
        if check:
            check_kernels(say)
        weights = of_source(model, source, storage, say)
        if cache is None:
            cache = "fp32" if {each.storage.name for each in weights.matrices.values()} == {"fp32"} else "fp16"
        return cls(
            model=model,
            weights=weights,
            n_tokens=source.n_vocab,
            n_vocab=n_vocab,
            n_blocks=n_blocks,
            context=context,
            cache=cache,
            n_threads=n_threads,
        )

    def step(self, rows: StepRows, tables: Sequence[Sequence[int]]) -> np.ndarray:
        """The logits after each wanted row, (len(wanted), n_vocab) float32; the cache holds all rows then.

        `tables[i]` are the blocks of sequence i, in the order of its positions. A position may be written again: what
        was there is gone. `wanted` rows come in their order.
        """
        ids, sequences, positions, wanted = rows
        starts = [0, *accumulate(map(len, tables))]
        # Products write whole groups of rows, but a single one alone: what is beyond is not handed out.
        logits = np.empty((len(wanted) + (GROUP if len(wanted) > 1 else 0), self._width), np.float32)
        sizes = (len(ids), len(wanted), len(tables), self._n_tokens, self.context, _address(logits))
        asked = np.array(
            [*sizes, *ids, *sequences, *positions, *wanted, *starts, *chain.from_iterable(tables)], np.int64
        )
        if not len(ids) == len(sequences) == len(positions):
            raise InputError(f"{len(ids)} ids, {len(sequences)} sequences and {len(positions)} positions: as many each")
        with self._lock:
            self._helpers.wake()
            done = answer(self._plan, _address(asked))
        if not done:
            self._explain(rows, tables)
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

    def read(self, memory: np.ndarray) -> None:
        """Read some bytes once with all threads, and do nothing with them.

        Of several times what the processor's caches hold, it tells how fast any step can be at most.
        """
        with self._lock:
            self._table.set(STREAM=memory.ctypes.data, N_STREAM=memory.nbytes)
            self._helpers.wake()
            stream(self._plan, 4 * self.n_threads)

    def close(self) -> None:
        """Send the helping threads home; the model cannot be used any more."""
        self._finalizer()

    def _explain(self, rows: StepRows, tables: Sequence[Sequence[int]]) -> NoReturn:
        """What is not right about a step."""
        ids, sequences, positions, wanted = (np.asarray(each, np.int64).reshape(-1) for each in rows)
        if len(wanted) and not (wanted[0] >= 0 and wanted[-1] < len(ids) and (wanted[1:] > wanted[:-1]).all()):
            raise InputError(f"wanted rows {wanted.tolist()} of a step of {len(ids)}: expected one after the other")
        _check_range("token id", ids, self._n_tokens)
        _check_range("position", positions, self.context)
        _check_range("sequence", sequences, len(tables))
        for sequence, position in zip(sequences.tolist(), positions.tolist(), strict=True):
            n_blocks = len(tables[sequence])
            if position // POSITIONS >= n_blocks:
                raise InputError(f"sequence {sequence} has {n_blocks} blocks of {POSITIONS}, and position {position}")
        for number, blocks in enumerate(tables):
            if len(blocks) and not 0 <= min(blocks) <= max(blocks) < self.n_blocks:
                raise InputError(f"sequence {number} has a block outside of the {self.n_blocks} that there are")
        raise AssertionError("the compiled checks refuse what is right")


def _address(array: np.ndarray) -> int:
    """`array.ctypes.data`, in less time."""
    return int(array.__array_interface__["data"][0])


def _in_range(name: str, value: int | None, most: int) -> int:
    if value is not None and not 1 <= value <= most:
        raise SettingError(name, value, f"from 1 to {most}, that of the model")
    return most if value is None else value


def _check_range(what: str, found: np.ndarray, end: int) -> None:
    if len(found) and not 0 <= found.min() <= found.max() < end:
        wrong = found[(found < 0) | (found >= end)][0]
        raise InputError(f"{what} {wrong}: expected from 0 to {end - 1}")
