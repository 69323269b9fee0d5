"""The filters for one row: the same tokens as `filters.py` keeps, in a fraction of the time.

Two ideas. What has been dropped is forgotten: after a filter only the ids and logits of the candidates go on, in the
order of their ids. And only what can matter is sorted: if the tokens above a bound already reach p, the nucleus is
among them, exactly.

A row's numbers depend on that row alone. V vocabulary, K candidates.
"""

import math

import numpy as np

from tessera.generate.settings import Sampling

_BLOCK = 256
_ENOUGH = 1e-5
"""What sums of float32 weights may be wrong by, and more."""


class Candidates:
    """The tokens that may still be drawn: their `ids` (None is all of them), their logits, and the largest of these."""

    def __init__(self, logits_V: np.ndarray) -> None:
        self.n_vocab = len(logits_V)
        self.ids: np.ndarray | None = None
        self.logits = logits_V
        self.largest = logits_V.max()

    def divide(self, temperature: float) -> None:
        """(logits - max) / temperature."""
        smallest = float(np.finfo(self.logits.dtype).tiny)
        self.logits = self.logits - self.largest
        with np.errstate(over="ignore"):  # a difference that is too large to write is impossible
            self.logits /= self.logits.dtype.type(max(temperature, smallest))
        self.largest = self.logits.dtype.type(0.0)

    def keep(self, kept: np.ndarray) -> None:
        """Go on with those at these places."""
        self.ids = kept if self.ids is None else self.ids[kept]
        self.logits = self.logits[kept]

    def row(self) -> np.ndarray:
        """All logits, -inf where a token was dropped."""
        if self.ids is None:
            return self.logits
        row_V = np.full(self.n_vocab, -np.inf, dtype=self.logits.dtype)
        row_V[self.ids] = self.logits
        return row_V

    def pick(self, uniform: float) -> int:
        """The first token whose cumulative probability exceeds `uniform`, a number from 0 to below 1."""
        weights = np.exp(self.logits - self.largest)
        # Sums of blocks first: a running sum of all takes several times as long.
        starts = np.arange(0, len(weights), _BLOCK)
        ends = np.add.reduceat(weights, starts, dtype=np.float64).cumsum()
        # A product with a number just below 1 can round up to the total, which no cumulative probability exceeds.
        target = min(uniform * float(ends[-1]), math.nextafter(float(ends[-1]), 0.0))
        block = int(ends.searchsorted(target, side="right"))
        inside = weights[starts[block] : starts[block] + _BLOCK].cumsum(dtype=np.float64)
        rest = target - (float(ends[block - 1]) if block else 0.0)
        place = int(inside.searchsorted(rest, side="right"))
        if place == len(inside):  # summed in another order the block came out a little greater
            place = int(np.flatnonzero(weights[starts[block] : starts[block] + _BLOCK])[-1])
        place += int(starts[block])
        return place if self.ids is None else int(self.ids[place])


def candidates(logits_V: np.ndarray, sampling: Sampling) -> Candidates:
    """What temperature and filters leave of a row whose largest logit is finite."""
    found = Candidates(logits_V)
    if sampling.temperature != 1.0:
        found.divide(sampling.temperature)
    if sampling.top_k is not None and sampling.top_k < len(found.logits):
        found.keep(_top_k(found.logits, sampling.top_k))
    if sampling.top_p is not None and sampling.top_p < 1.0:
        found.keep(_top_p(found.logits, found.largest, sampling.top_p))
    if sampling.min_p:
        found.keep(np.flatnonzero(found.logits >= found.largest + logits_V.dtype.type(math.log(sampling.min_p))))
    if sampling.typical is not None and sampling.typical < 1.0:
        found.keep(np.flatnonzero(found.logits > -np.inf))
        found.keep(np.flatnonzero(_typical(found.logits, sampling.typical)))
        found.largest = found.logits.max()  # the most probable token may be gone
    return found


def _top_k(logits_K: np.ndarray, k: int) -> np.ndarray:
    return _first(logits_K, np.partition(logits_K, -k)[-k], k)


def _top_p(logits_K: np.ndarray, largest: np.floating, p: float) -> np.ndarray:
    weights_K = np.exp(logits_K - largest)
    total = weights_K.sum(dtype=np.float64)
    for bound in (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 0.0):
        likely = np.flatnonzero(weights_K > bound)
        if not bound or weights_K[likely].sum(dtype=np.float64) > (p + _ENOUGH) * total:
            break
    falling = np.sort(logits_K[likely])[::-1]
    probs = np.exp(falling - largest).astype(np.float64) / total
    n_kept = int(np.count_nonzero(np.cumsum(probs) - probs < p))
    return likely[_first(logits_K[likely], falling[n_kept - 1], n_kept)]


def _typical(logits_K: np.ndarray, p: float) -> np.ndarray:
    logits = logits_K.astype(np.float64) - logits_K.max()
    probs = np.exp(logits)
    total = probs.sum()
    probs /= total
    logprobs = logits - np.log(total)
    distances = np.abs(logprobs - (probs * logprobs).sum())
    for bound in (1.0, 3.0, 10.0, math.inf):
        near = np.flatnonzero(distances < bound)
        if probs[near].sum() > p + _ENOUGH:
            break
    order = near[np.argsort(distances[near], kind="stable")]
    n_kept = int(np.count_nonzero(np.cumsum(probs[order]) - probs[order] < p))
    kept_K = np.zeros(len(logits_K), dtype=bool)
    kept_K[order[:n_kept]] = True
    return kept_K


def _first(logits_K: np.ndarray, least: float, n_kept: int) -> np.ndarray:
    """Where the `n_kept` largest are, of which the least is `least`; of those equal to it, the first."""
    kept = np.flatnonzero(logits_K >= least)
    surplus = len(kept) - n_kept
    return np.delete(kept, np.flatnonzero(logits_K[kept] == least)[-surplus:]) if surplus else kept
