"""Byte-pair encoding over characters, as Llama 2 and Mistral have it: spaces in front, and bytes for what is no piece.

Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units"; in this form from SentencePiece
(Kudo & Richardson 2018). Unlike `RegexBpe` it begins with characters, not bytes, and no pattern cuts the text: of all
neighbours that make a piece, the pair with the highest score is joined first, the leftmost of equals.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from heapq import heappop, heappush
from typing import Any, Self

from tessera.errors import InputError
from tessera.tokenizers.sentencepiece.normalizer import Normalizer
from tessera.tokenizers.sentencepiece.piece_tokenizer import CROSSING, Piece, PieceTokenizer
from tessera.tokenizers.specials import DEFAULT_SPECIALS, Specials, ordinary_parts

CACHED_WORDS = 2**17
CACHED_LENGTH = 64  # characters; a longer word is rarely met again

Pair = tuple[str, str]


class Ranks:
    """Which neighbours are joined, and which first: any whose text is a piece, or only the pairs of a list."""

    def __init__(self, scores: Mapping[str, float], merges: Sequence[Pair] | None) -> None:
        falling = sorted(set(scores.values()), reverse=True)
        rank_of = {score: rank for rank, score in enumerate(falling)}
        self._texts = {text: rank_of[score] for text, score in scores.items()}
        self._pairs = None if merges is None else {pair: rank for rank, pair in enumerate(merges)}

    def __call__(self, left: str, right: str) -> int | None:
        return self._texts.get(left + right) if self._pairs is None else self._pairs.get((left, right))


def join_lowest(symbols: Sequence[str], rank: Ranks, halves: dict[str, Pair] | None = None) -> list[str]:
    """`symbols` after all joins: the pair of the lowest rank first, the leftmost of equals.

    A heap of (rank, place of the left one, length of both): n log n for any text. An entry whose symbols are gone or
    longer by now is passed over. `halves` takes down of what two texts each pair that was met would be made.

    >>> join_lowest("abab", Ranks({"ab": -1.0, "ba": -2.0, "abab": -3.0}, None))
    ['abab']
    """
    parts = list(symbols)
    stop = len(parts)
    after = list(range(1, stop + 1))
    before = list(range(-1, stop - 1))
    heap: list[tuple[int, int, int]] = []

    def offer(left: int, right: int) -> None:
        found = rank(parts[left], parts[right])
        if found is not None:
            heappush(heap, (found, left, len(parts[left]) + len(parts[right])))
            if halves is not None:
                halves[parts[left] + parts[right]] = parts[left], parts[right]

    for place in range(stop - 1):
        offer(place, place + 1)
    while heap:
        _, left, length = heappop(heap)
        right = after[left]
        if not parts[left] or right == stop or len(parts[left]) + len(parts[right]) != length:
            continue
        parts[left] += parts[right]
        parts[right] = ""
        after[left] = after[right]
        if before[left] >= 0:
            offer(before[left], left)
        if after[left] < stop:
            before[after[left]] = left
            offer(left, after[left])
    return [part for part in parts if part]


class PieceBpe(PieceTokenizer):
    """Joins by score: any neighbours whose text is a piece. With `merges`, only those pairs, in that order.

    What is no piece in the end becomes bytes, or the unknown id: one for a run with `fuse_unknown`, else one for each
    character.
    """

    kind = "bpe-pieces"

    def __init__(
        self,
        *,
        pieces: Mapping[int, Piece],
        normalizer: Normalizer | None = None,
        merges: Sequence[Pair] | None = None,
        fuse_unknown: bool = True,
        specials: Specials = DEFAULT_SPECIALS,
        begin: str | None = None,
        end: str | None = None,
        pad: str | None = None,
    ) -> None:
        super().__init__(pieces=pieces, normalizer=normalizer, specials=specials, begin=begin, end=end, pad=pad)
        self.fuse_unknown = fuse_unknown
        self.merges = None if merges is None else [(left, right) for left, right in merges]
        found = [(id, piece) for id, piece in self.pieces.items() if piece.role in ("normal", "user", "unused")]
        self._ids = {piece.text: id for id, piece in found}
        for left, right in self.merges or ():
            for text in (left, right, left + right):
                if text not in self._ids:
                    raise InputError(f"the merge {(left, right)!r} needs the piece {text!r}, which is not there")
        self._rank = Ranks({piece.text: piece.score for _, piece in found}, self.merges)
        self._unused = frozenset(piece.text for _, piece in found if piece.role == "unused")
        self._user = frozenset(piece.text for _, piece in found if piece.role == "user")
        self._cache: dict[str, list[int]] = {}

    @cached_property
    def cuts_at_spaces(self) -> bool:
        return not self._unused and super().cuts_at_spaces

    @cached_property
    def _users(self) -> re.Pattern[str]:
        longest_first = sorted(self._user, key=lambda text: (-len(text), text))
        return re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")

    @cached_property
    def _words(self) -> re.Pattern[str]:
        """What can be joined on its own: where no piece has a space but at its beginning, nothing is joined across the
        boundary of a word and the space after it."""
        crossing = self._unused or any(map(CROSSING.search, self._ids))
        return re.compile("(?s:.+)" if crossing else " *[^ ]+| +")

    def encode_part(self, part: str) -> list[int]:
        ids: list[int] = []
        known = self._cache
        for place, stretch in enumerate(self._users.split(part) if self._user else [part]):
            if place % 2:
                ids.append(self._ids[stretch])
                continue
            for word in self._words.findall(stretch):
                found = known.get(word)
                ids += self._encode_word(word) if found is None else found
        return self._fuse(ids) if self.fuse_unknown and not self.byte_ids else ids

    def _encode_word(self, word: str) -> list[int]:
        halves: dict[str, Pair] | None = {} if self._unused else None
        joined = join_lowest(word, self._rank, halves)
        ids = [id for text in joined for id in self._ids_of(text, halves or {})]
        if len(word) <= CACHED_LENGTH:
            if len(self._cache) >= CACHED_WORDS:
                self._cache.clear()
            self._cache[word] = ids
        return ids

    def _ids_of(self, text: str, halves: Mapping[str, Pair]) -> list[int]:
        """An unused piece falls into the two that it was made of, as often as need be."""
        if text in self._unused and text in halves:
            return [id for half in halves[text] for id in self._ids_of(half, halves)]
        if text in self._ids:
            return [self._ids[text]]
        if self.byte_ids:
            return [self.byte_ids[byte] for byte in text.encode()]
        assert self._unknown_id is not None
        return [self._unknown_id]

    def _fuse(self, ids: list[int]) -> list[int]:
        unknown = self._unknown_id
        return [id for previous, id in zip([None, *ids], ids, strict=False) if not previous == id == unknown]

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        *,
        vocab_size: int = 8000,
        byte_fallback: bool = True,
        character_coverage: float = 0.9995,
        dummy_prefix: bool = True,
        max_piece_length: int = 16,
        specials: Specials = DEFAULT_SPECIALS,
    ) -> Self:
        """A vocabulary of `vocab_size` in all: `<unk>`, 256 bytes, merged pieces, characters and the special tokens.

        The commonest characters that make up `character_coverage` of the texts are pieces; the others become bytes, or
        `<unk>` without `byte_fallback`. A piece has at most `max_piece_length` characters.
        """
        from tessera.tokenizers.sentencepiece.piece_bpe_train import train_piece_bpe

        pieces = train_piece_bpe(
            ordinary_parts(texts, specials),
            vocab_size=vocab_size,
            specials=specials,
            byte_fallback=byte_fallback,
            character_coverage=character_coverage,
            dummy_prefix=dummy_prefix,
            max_piece_length=max_piece_length,
        )
        return cls(pieces=pieces, normalizer=Normalizer.plain(dummy_prefix=dummy_prefix), specials=specials)

    def settings(self) -> dict[str, Any]:
        merges = None if self.merges is None else [list(pair) for pair in self.merges]
        return {**self.table_settings(), "merges": merges, "fuse_unknown": self.fuse_unknown}
