"""Byte-pair encoding: start from the 256 bytes, and make the most frequent pair of neighbours a token, again and again.

Gage 1994, "A New Algorithm for Data Compression"; Sennrich et al. 2016, "Neural Machine Translation of Rare Words with
Subword Units"; over bytes since GPT-2 (Radford et al. 2019). Two pure functions are the whole idea: `count_pairs` and
`merge`. `NaiveBpe` is those two in a loop. `RegexBpe` is what language models use: a pattern cuts the text into pieces
first (words, numbers, runs of punctuation or space), no token crosses a piece, and a piece that was seen before is
looked up.

Of pairs that are equally frequent, the lowest (id, id) is merged. No two tokens have the same bytes: within what will
be one token, the merges are those that its bytes would see alone, so one pair only leads to it. That is why a token's
rank is enough to encode with.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Self

from tessera.errors import InputError, SettingError
from tessera.tokenizers.contract import Tokenizer
from tessera.tokenizers.encode import merge_lowest
from tessera.tokenizers.scan import compile_pattern, split_pieces
from tessera.tokenizers.specials import DEFAULT_SPECIALS, Specials, n_ordinary, ordinary_parts
from tessera.tokenizers.train import MAX_TOKENS, train_bpe

Pair = tuple[int, int]

CACHED_PIECES = 2**18
CACHED_LENGTH = 64  # characters; a longer piece is rarely met again


def count_pairs(ids: Sequence[int]) -> Counter[Pair]:
    """How often each pair of neighbours occurs.

    >>> count_pairs([1, 2, 3, 1, 2])
    Counter({(1, 2): 2, (2, 3): 1, (3, 1): 1})
    """
    return Counter(pairwise(ids))


def merge(ids: Sequence[int], pair: Pair, new: int) -> list[int]:
    """`ids` with `new` in place of each `pair`, from left to right.

    The example of the Wikipedia article on byte-pair encoding, "aaabdaaabac": the pair "aa" becomes Z.

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


def learn(sequences: Iterable[Sequence[int]], n_tokens: int) -> tuple[list[Pair], list[bytes]]:
    """The textbook trainer: the merges in order, and every token's bytes by id (256 bytes, then what was merged).

    Counts all pairs anew for each merge. Ends early, with fewer tokens, where no pair is left.
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
        pair = min(counts, key=lambda pair: (-counts[pair], pair))
        sequences = [merge(ids, pair, len(tokens)) for ids in sequences]
        merges.append(pair)
        tokens.append(tokens[pair[0]] + tokens[pair[1]])
    return merges, tokens


def _n_tokens(vocab_size: int, specials: Specials) -> int:
    """How many tokens to learn; a `SettingError` before any work where `vocab_size` cannot be met."""
    n_tokens = n_ordinary(vocab_size, specials)
    if not 256 <= n_tokens <= MAX_TOKENS:
        reserved = vocab_size - n_tokens
        expected = f"{256 + reserved} to {MAX_TOKENS + reserved}: 256 bytes, {reserved} special tokens, and merges"
        raise SettingError("tokenizer.vocab_size", vocab_size, expected)
    return n_tokens


def _check_enough(n_found: int, n_tokens: int, vocab_size: int) -> None:
    if n_found < n_tokens:
        most = vocab_size - n_tokens + n_found
        raise SettingError("tokenizer.vocab_size", vocab_size, f"at most {most}: the text has no more pairs to merge")


class NaiveBpe(Tokenizer):
    """The textbook: no split pattern, so tokens cross words and lines; for reading and for small texts.

    Encoding joins the earliest merge that is present until none is, one pass over the text for each.
    """

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
    def train(cls, texts: Iterable[str], *, vocab_size: int = 512, specials: Specials = DEFAULT_SPECIALS) -> Self:
        """`vocab_size` counts everything: bytes, merges and special tokens."""
        n_tokens = _n_tokens(vocab_size, specials)
        merges, tokens = learn((part.encode() for part in ordinary_parts(texts, specials)), n_tokens)
        _check_enough(len(tokens), n_tokens, vocab_size)
        return cls(merges=merges, specials=specials)

    def settings(self) -> dict[str, Any]:
        return {"merges": [list(pair) for pair in self.merges], "specials": self.specials}

    @classmethod
    def restore(cls, settings: Mapping[str, Any]) -> Self:
        return cls(merges=[(first, second) for first, second in settings["merges"]], specials=settings["specials"])


class RegexBpe(Tokenizer):
    """The tokenizer of GPT-2 and after: `pattern` cuts the text into pieces, `ranks` cut each piece into tokens.

    `ranks` maps a token's bytes to its id, which is also its rank: the lower, the earlier it is joined. For the same
    ranks and pattern the ids are tiktoken's.
    """

    kind = "bpe"

    def __init__(
        self, *, ranks: Mapping[bytes, int], pattern: str = "gpt4", specials: Specials = DEFAULT_SPECIALS
    ) -> None:
        missing = sum(bytes([byte]) not in ranks for byte in range(256))
        if missing:
            raise InputError(f"the vocabulary lacks {missing} of the 256 single bytes, so some text would have no ids")
        tokens = {rank: token for token, rank in ranks.items()}
        if len(tokens) < len(ranks):
            raise InputError("the vocabulary gives one id to two tokens")
        self.pattern = pattern
        self.ranks = dict(ranks)
        self._pattern = compile_pattern(pattern)
        self._cache: dict[str, list[int]] = {}
        super().__init__(tokens=tokens, specials=specials)

    def encode_ordinary(self, text: str) -> list[int]:
        known = self._cache
        ids: list[int] = []
        for piece in split_pieces(self._pattern, text):
            tokens = known.get(piece)
            ids += self._encode_piece(piece) if tokens is None else tokens
        return ids

    def _encode_piece(self, piece: str) -> list[int]:
        content = piece.encode()
        whole = self.ranks.get(content)
        ids = merge_lowest(content, self.ranks) if whole is None else [whole]
        if len(piece) <= CACHED_LENGTH:
            if len(self._cache) >= CACHED_PIECES:
                self._cache.clear()
            self._cache[piece] = ids
        return ids

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        *,
        vocab_size: int = 4096,
        pattern: str = "gpt4",
        specials: Specials = DEFAULT_SPECIALS,
    ) -> Self:
        """Learn the merges inside the pieces of `texts`, each different piece once, by how often it occurs.

        `vocab_size` counts everything: bytes, merges and special tokens, but for those with an id at or above it.
        """
        n_tokens = _n_tokens(vocab_size, specials)
        compiled = compile_pattern(pattern)
        counts: Counter[str] = Counter()
        for part in ordinary_parts(texts, specials):
            counts.update(split_pieces(compiled, part))
        _, tokens = train_bpe({piece.encode(): count for piece, count in counts.items()}, n_tokens)
        _check_enough(len(tokens), n_tokens, vocab_size)
        return cls(ranks={token: id for id, token in enumerate(tokens)}, pattern=pattern, specials=specials)

    def settings(self) -> dict[str, Any]:
        """The ranks' bytes are written as the characters of the same code (Latin-1)."""
        ranks = {token.decode("latin-1"): rank for token, rank in self.ranks.items()}
        return {"pattern": self.pattern, "ranks": ranks, "specials": self.specials}

    @classmethod
    def restore(cls, settings: Mapping[str, Any]) -> Self:
        ranks = {token.encode("latin-1"): rank for token, rank in settings["ranks"].items()}
        return cls(ranks=ranks, pattern=settings["pattern"], specials=settings["specials"])
