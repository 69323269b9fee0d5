"""The byte-pair trainer that does not count anew: each merge touches only the words that hold its pair.

Same merges, same order, same ids as the textbook loop (`bpe.learn`), from three ideas. Each different piece of the text
is one word with a count. `where` leads from a pair to the words that may hold it. A heap offers the most frequent pair;
its entries go stale as counts fall, and are put right when they come up. (Only a new token's pairs ever gain.)

A word is a `str` whose characters are token ids: `chr(id)`. So a pair is a `str` of two characters, pairs compare as
(id, id) does, and `str.replace` merges from left to right at the speed of C.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
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
                self._note(pair, place)

    def _note(self, pair: str, place: int) -> None:
        places = self.where[pair]
        if not places or places[-1] != place:
            places.append(place)

    def merge(self, pair: str, token: str) -> list[str]:
        """Put `token` in place of `pair` in every word; returns the pairs that are new, which all hold `token`.

        Only the neighbourhood of a merge is counted anew ("xababy" to "xTTy"), however long the word is.
        """
        changes: dict[str, int] = defaultdict(int)
        for place in self.where.pop(pair):
            word = self.words[place]
            if pair not in word:  # merged away since, or noted twice
                continue
            parts = word.split(pair)
            self.words[place] = token.join(parts)
            weight = self.weights[place]
            for left, run, right in _runs(parts):
                old = left + pair * run + right
                new = left + token * run + right
                for gone in map(add, old, old[1:]):
                    changes[gone] -= weight
                for made in map(add, new, new[1:]):
                    changes[made] += weight
                    self._note(made, place)
        for changed, change in changes.items():
            self.counts[changed] += change
        return [changed for changed, change in changes.items() if change > 0]


def _runs(parts: list[str]) -> Iterator[tuple[str, int, str]]:
    """Where `parts` were cut: the character before (or ""), how many cuts in a row, the character after (or "").

    >>> list(_runs("xababyab".split("ab")))
    [('x', 2, 'y'), ('y', 1, '')]
    """
    left, run = parts[0][-1:], 0
    for part in parts[1:]:
        run += 1
        if part:
            yield left, run, part[0]
            left, run = part[-1], 0
    if run:
        yield left, run, ""


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
    merges: list[tuple[int, int]] = []
    while heap and len(tokens) < n_tokens:
        negative, pair = heappop(heap)
        count = words.counts[pair]
        if count != -negative:
            if count:
                heappush(heap, (-count, pair))
            continue
        first, second = map(ord, pair)
        for new in words.merge(pair, chr(len(tokens))):
            heappush(heap, (-words.counts[new], new))
        merges.append((first, second))
        tokens.append(tokens[first] + tokens[second])
    return merges, tokens
