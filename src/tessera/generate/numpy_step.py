"""Steps by the model in NumPy (`tessera.scratch`): for machines that have nothing else.

The cache is a pool of blocks, as with the others: what begins alike is shared, and positions may be written again. The
rows of a sequence are computed together, sequence after sequence, over its keys and values gathered from its blocks. So
what a sequence says does not depend on who else is in the step.

P positions of the pool, S of a sequence, T rows of it, G heads of keys, K their width, V vocabulary.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from tessera.errors import InputError
from tessera.generate.requests import StepRows
from tessera.scratch.cache import Cache, LayerCache
from tessera.scratch.decoder import Decoder


class NumpyStep:
    """A decoder and a cache of `n_blocks` blocks. `n_vocab`: ids beyond are left out of the logits."""

    def __init__(self, model: Decoder, *, n_blocks: int, block_size: int = 16, n_vocab: int | None = None) -> None:
        self.model, self.context = model, model.context
        self.n_vocab = model.n_vocab if n_vocab is None else n_vocab
        self.n_blocks, self.block_size = n_blocks, block_size
        dtype = model.head_weight.data.dtype
        self._pools = [
            np.zeros((2, n_blocks * block_size, block.attention.n_kv_heads, block.attention.d_head), dtype)
            for block in model.blocks
        ]
        """Keys and values of each layer, (2, P, G, K)."""

    def step(self, rows: StepRows, tables: Sequence[Sequence[int]]) -> np.ndarray:
        """The logits after each wanted row, (wanted, V) in float32."""
        ids, sequences, positions, wanted = (np.asarray(each, np.int64) for each in rows)
        found_WV = np.empty((len(wanted), self.n_vocab), np.float32)
        firsts = np.flatnonzero(np.diff(sequences, prepend=-1)).tolist()
        for first, end in pairwise([*firsts, len(ids)]):
            low, high = np.searchsorted(wanted, (first, end))
            start = int(positions[first])
            cache = self._cache(start, start + end - first, tables[int(sequences[first])])
            logits_BWV = self.model.logits(ids[None, first:end], cache, wanted=wanted[low:high] - first)
            found_WV[low:high] = logits_BWV[0, :, : self.n_vocab]
        return found_WV

    def _cache(self, start: int, end: int, blocks: Sequence[int]) -> Cache:
        """What a sequence has before `start`, with room up to `end`."""
        size = self.block_size
        if len(blocks) * size < end:
            raise InputError(f"a sequence has {len(blocks)} blocks of {size}, and {end} positions")
        places_S = (np.asarray(blocks, np.int64)[:, None] * size + np.arange(size)).reshape(-1)[:end]
        return Cache([_Gathered(pool, places_S, start) for pool in self._pools])


class _Gathered(LayerCache):
    """The places of a pool that are a sequence's, as a cache of a layer."""

    def __init__(self, pool_2PGK: np.ndarray, places_S: np.ndarray, length: int) -> None:
        self._pool_2PGK, self._places_S, self.length = pool_2PGK, places_S, length

    @property
    def capacity(self) -> int:
        return len(self._places_S)

    def append(self, k_BTGK: np.ndarray, v_BTGK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        end = self.length + k_BTGK.shape[1]
        for numbers_PGK, new_BTGK in zip(self._pool_2PGK, (k_BTGK, v_BTGK), strict=True):
            numbers_PGK[self._places_S[self.length : end]] = new_BTGK[0]
        self.length = end
        keys_BSGK, values_BSGK = self._pool_2PGK[:, None, self._places_S[:end]]
        return keys_BSGK, values_BSGK
