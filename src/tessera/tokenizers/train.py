"""The byte-pair trainer that does not count anew: each merge touches only the words that hold its pair.

Same merges, same order, same ids as the textbook loop (`bpe.learn`), from three ideas. Each different piece of the text
is one word with a count. `where` leads from a pair to the words that may hold it. A heap offers the most frequent pair;
its entries go stale when counts fall, and are put right when they come up (a count that rises is pushed at once).

A word is a `str` whose characters are token ids: `chr(id)`. So a pair is a `str` of two characters, pairs compare as
(id, id) does, and `str.replace` merges from left to right at the speed of C.
"""

from collections import defaultdict
from collections.abc import Mapping
from heapq import heapify, heappop, heappush
from operator import add

MAX_TOKENS = 0x110000  # the characters that a str can hold


class _Words:
    """The pieces as words, and how often each pair of neighbours occurs in them."""

    def __init__(self, pieces: Mapping[bytes, int]) -> None:
        self.words = [piece.decode("latin-1") for piece in pieces]
        self.weights = list(pieces.values())
        self.counts: dict[str, int] = defaultdict(int)
        self.where: dict[str, list[int]] = defaultdict(list)
        for place, (word, weight) in enumerate(zip(self.words, self.weights, strict=True)):
            for pair in map(add, word, word[1:]):
                self.counts[pair] += weight
                self.where[pair].append(place)

    def merge(self, pair: str, token: str) -> list[str]:
        """Put `token` in place of `pair` in every word; returns the pairs whose count rose."""
        words, weights, where = self.words, self.weights, self.where
        changes: dict[str, int] = defaultdict(int)
        for place in where.pop(pair):
            word = words[place]
            if pair not in word:  # merged away since, or listed twice
                continue
            weight = weights[place]
            words[place] = merged = word.replace(pair, token)
            for old in map(add, word, word[1:]):
                changes[old] -= weight
            for new in map(add, merged, merged[1:]):
                changes[new] += weight
                if token in new:
                    where[new].append(place)
        rose = []
        for changed, change in changes.items():
            if change:
                self.counts[changed] += change
            if change > 0:
                rose.append(changed)
        return rose


def train_bpe(pieces: Mapping[bytes, int], n_tokens: int) -> tuple[list[tuple[int, int]], list[bytes]]:
    """The merges in order, and every token's bytes by id, learned from `pieces` and how often each occurs.

    Ends early, with fewer tokens, where no pair is left.

    >>> merges, tokens = train_bpe({b"low": 5, b"lower": 2, b"newest": 6}, 258)
    >>> merges, tokens[256:]
    ([(119, 101), (108, 111)], [b'we', b'lo'])
    """
    words = _Words(pieces)
    heap = [(-count, pair) for pair, count in words.counts.items()]
    heapify(heap)
    tokens = [bytes([byte]) for byte in range(256)]
    id_of = {token: id for id, token in enumerate(tokens)}
    merges: dict[tuple[int, int], None] = {}
    while heap and len(tokens) < n_tokens:
        negative, pair = heappop(heap)
        count = words.counts[pair]
        if count != -negative:
            if 0 < count < -negative:
                heappush(heap, (-count, pair))
            continue
        first, second = map(ord, pair)
        token = tokens[first] + tokens[second]
        if token not in id_of:
            id_of[token] = len(tokens)
            tokens.append(token)
        merges.setdefault((first, second))
        for rose in words.merge(pair, chr(id_of[token])):
            heappush(heap, (-words.counts[rose], rose))
    return list(merges), tokens
