"""Byte-pair encoding: start from the 256 bytes, and make the most frequent pair of neighbours a token, again and again.

Gage 1994, "A New Algorithm for Data Compression"; Sennrich et al. 2016, "Neural Machine Translation of Rare Words with
Subword Units"; over bytes since GPT-2 (Radford et al. 2019). Two pure functions are the whole idea: `count_pairs` and
`merge`. `learn` and `NaiveBpe` are those two in a loop; what is fast (`train`, `encode`) must give what they give.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, Self

from tessera.errors import SettingError
from tessera.tokenizers.contract import Tokenizer
from tessera.tokenizers.specials import DEFAULT_SPECIALS, Specials, check_enough, n_ordinary, ordinary_parts

Pair = tuple[int, int]
Ties = Literal["first", "lexicographic"]


def count_pairs(ids: Sequence[int]) -> Counter[Pair]:
    """How often each pair of neighbours occurs.

    >>> count_pairs([1, 2, 3, 1, 2])
    Counter({(1, 2): 2, (2, 3): 1, (3, 1): 1})
    """
    return Counter(pairwise(ids))


def merge(ids: Sequence[int], pair: Pair, new: int) -> list[int]:
    """`ids` with `new` in place of each `pair`, from left to right.

    The example of the Wikipedia article, "aaabdaaabac": the pair "aa" becomes Z.

    >>> a, b, c, d, Z = 97, 98, 99, 100, 256
    >>> merge([a, a, a, b, d, a, a, a, b, a, c], (a, a), Z)
    [256, 97, 98, 100, 256, 97, 98, 97, 99]
    """
    merged: list[int] = []
    place = 0
    while place < len(ids):
        if tuple(ids[place : place + 2]) == pair:
            merged.append(new)
            place += 2
        else:
            merged.append(ids[place])
            place += 1
    return merged


def learn(sequences: Iterable[Sequence[int]], n_tokens: int, *, ties: Ties = "first") -> tuple[list[Pair], list[bytes]]:
    """The textbook trainer: the merges in order, and every token's bytes by id (256 bytes, then what was merged).

    Counts all pairs anew for each merge. Of pairs that are equally frequent, "first" takes the lowest (id, id),
    "lexicographic" the greatest pair of byte strings. Ends early, with fewer tokens, where no pair is left.
    """
    sequences = list(sequences)
    tokens = [bytes([byte]) for byte in range(256)]
    merges: list[Pair] = []
    while len(tokens) < n_tokens:
        counts: Counter[Pair] = Counter()
        for ids in sequences:
            counts += count_pairs(ids)
        if not counts:
            break
        if ties == "first":
            pair = min(counts, key=lambda pair: (-counts[pair], pair))
        else:
            pair = max(counts, key=lambda pair: (counts[pair], tokens[pair[0]], tokens[pair[1]]))
        sequences = [merge(ids, pair, len(tokens)) for ids in sequences]
        merges.append(pair)
        tokens.append(tokens[pair[0]] + tokens[pair[1]])
    return merges, tokens


class NaiveBpe(Tokenizer):
    """No split pattern, so tokens cross words and lines; for reading and small texts: a pass over the text a merge."""

    kind = "bpe-naive"

    def __init__(self, *, merges: Iterable[Pair], specials: Specials = DEFAULT_SPECIALS) -> None:
        tokens = [bytes([byte]) for byte in range(256)]
        self.merges: dict[Pair, int] = {}
        for first, second in merges:
            if not (0 <= first < len(tokens) and 0 <= second < len(tokens)) or (first, second) in self.merges:
                raise SettingError("tokenizer.merges", (first, second), "a new pair of ids that exist before the merge")
            self.merges[first, second] = len(tokens)
            tokens.append(tokens[first] + tokens[second])
        super().__init__(tokens=dict(enumerate(tokens)), specials=specials)

    def encode_ordinary(self, text: str) -> list[int]:
        ids = list(text.encode())
        while present := count_pairs(ids).keys() & self.merges.keys():
            pair = min(present, key=self.merges.__getitem__)
            ids = merge(ids, pair, self.merges[pair])
        return ids

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        *,
        vocab_size: int = 512,
        ties: Ties = "first",
        specials: Specials = DEFAULT_SPECIALS,
    ) -> Self:
        """`vocab_size` counts everything: bytes, merges and special tokens."""
        n_tokens = n_ordinary(vocab_size, specials, least=256)
        merges, tokens = learn((part.encode() for part in ordinary_parts(texts, specials)), n_tokens, ties=ties)
        check_enough(len(tokens), n_tokens, vocab_size)
        return cls(merges=merges, specials=specials)

    def settings(self) -> dict[str, Any]:
        return {"merges": [list(pair) for pair in self.merges], "specials": self.specials}

    @classmethod
    def restore(cls, settings: Mapping[str, Any]) -> Self:
        return cls(merges=[(first, second) for first, second in settings["merges"]], specials=settings["specials"])
