"""Byte-pair training in plain Python: what runs where numba is missing, and what the compiled loop must equal.

Same merges, same order, same ids as the textbook loop (`bpe.learn`), without counting anew: each different piece of the
text is a word with a count, it is known which words have a pair, and a merge touches these only. The next pair comes
from a heap whose entries may be out of date; one that is, is put back with the count that it has by now.
"""

from collections import Counter
from collections.abc import Iterable
from functools import total_ordering
from heapq import heapify, heappop, heappush
from itertools import pairwise
from typing import Any

from tessera.tokenizers.bpe import Pair, Ties, merge
from tessera.tokenizers.count import Progress
from tessera.tokenizers.scan import compile_pattern, split_pieces
from tessera.tokenizers.specials import DEFAULT_SPECIALS, Specials, ordinary_parts


def learn_tokens(
    texts: Iterable[str],
    n_tokens: int,
    *,
    pattern: str = "gpt4",
    specials: Specials = DEFAULT_SPECIALS,
    ties: Ties = "first",
    progress: Progress | None = None,
) -> tuple[list[Pair], list[bytes]]:
    """What `tessera.tokenizers.train.learn_tokens` gives: the merges in order, and every token's bytes by id."""
    compiled = compile_pattern(pattern)
    pieces: Counter[str] = Counter()
    for part in ordinary_parts(texts, specials):
        pieces.update(split_pieces(compiled, part))
    trainer = _Trainer(pieces, ties)
    while len(trainer.tokens) < n_tokens and trainer.merge_next():
        if progress is not None:
            progress(len(trainer.merges), n_tokens - 256)
    return trainer.merges, trainer.tokens


@total_ordering
class _Greatest:
    """Bytes in the reverse of their order, for a heap that gives the least."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Greatest) and self.content == other.content

    def __lt__(self, other: "_Greatest") -> bool:
        return self.content > other.content


class _Trainer:
    """The words as they are after each merge, and where each pair occurs."""

    def __init__(self, pieces: Counter[str], ties: Ties) -> None:
        self.tokens = [bytes([byte]) for byte in range(256)]
        self.merges: list[Pair] = []
        self._ties = ties
        self._words = [list(piece.encode()) for piece in pieces]
        self._times = list(pieces.values())
        self._counts: Counter[Pair] = Counter()
        self._places: dict[Pair, set[int]] = {}
        for number, word in enumerate(self._words):
            self._count(number, word, 1)
        self._heap = [self._entry(pair) for pair in self._counts]
        heapify(self._heap)

    def _entry(self, pair: Pair) -> tuple[Any, ...]:
        """The most frequent first; of those that are equally frequent, the one that `ties` says."""
        if self._ties == "first":
            return -self._counts[pair], pair, pair
        first, second = pair
        return -self._counts[pair], (_Greatest(self.tokens[first]), _Greatest(self.tokens[second])), pair

    def _count(self, number: int, word: list[int], sign: int) -> None:
        for pair in pairwise(word):
            self._counts[pair] += sign * self._times[number]
            self._places.setdefault(pair, set()).add(number)

    def merge_next(self) -> bool:
        """Make the most frequent pair a token; False where no pair is left."""
        while self._heap:
            entry = heappop(self._heap)
            pair = entry[-1]
            if not self._counts[pair]:
                continue
            if -entry[0] != self._counts[pair]:
                heappush(self._heap, self._entry(pair))
                continue
            self._merge(pair)
            return True
        return False

    def _merge(self, pair: Pair) -> None:
        new = len(self.tokens)
        self.merges.append(pair)
        self.tokens.append(self.tokens[pair[0]] + self.tokens[pair[1]])
        changed: set[Pair] = set()
        for number in self._places.pop(pair):
            word = self._words[number]
            self._count(number, word, -1)
            word = self._words[number] = merge(word, pair, new)
            self._count(number, word, 1)
            changed.update(found for found in pairwise(word) if new in found)
        del self._counts[pair]
        for found in changed:
            heappush(self._heap, self._entry(found))
