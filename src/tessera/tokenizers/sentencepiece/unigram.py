"""The unigram language model: a piece has a probability, and a text is cut into the pieces whose product is greatest.

Kudo 2018, "Subword Regularization: Improving Neural Network Translation Models with Multiple Subword Candidates",
section 3.2:

    P(x) = p(x1) p(x2) ... p(xn)        x* = the cut of the text with the greatest P(x)

Scores are the logarithms. The best cut that ends at a place is the best cut up to some earlier place and one piece
more (Viterbi), so a text takes n times the longest piece. `best_cut` is that in plain Python; the compiled loop in
`lattice.py` gives the same.
"""

import math
from array import array
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any, Self

import numpy as np

from tessera.errors import SettingError
from tessera.tokenizers.sentencepiece.normalizer import Normalizer
from tessera.tokenizers.sentencepiece.piece_tokenizer import Piece, PieceTokenizer, marked
from tessera.tokenizers.specials import DEFAULT_SPECIALS, Specials, ordinary_parts

UNKNOWN_PENALTY = 10.0  # how far below the least probable piece a character is that is none
USER_BONUS = 0.1
# The type of the sums, and below what they begin anew: single precision would end at steps of an eighth in a megabyte.
ARITHMETICS = {"float32": ("f", -1e5), "float64": ("d", -math.inf)}


def best_cut(text: str, scores: Mapping[str, float], unknown: float, *, arithmetic: str = "float64") -> list[str]:
    """The pieces of `text` with the greatest sum of scores; of equals, the one whose last piece begins first.

    A character that is no piece may stand alone, with the score `unknown`.

    >>> best_cut("abc", {"a": -3.0, "b": -3.0, "c": -3.0, "ab": -4.0, "bc": -3.5}, -20.0)
    ['a', 'bc']
    """
    longest = max(map(len, scores), default=1)
    typecode, least = ARITHMETICS[arithmetic]
    best = array(typecode, [0.0]) * (len(text) + 1)  # rounds what it is given
    sum_of = array(typecode, [0.0])
    start = [-1] * (len(text) + 1)
    for at in range(len(text)):
        if best[at] < least:
            for end in range(len(text), at - 1, -1):
                best[end] -= best[at]
        for end in range(at + 1, min(at + longest, len(text)) + 1):
            score = scores.get(text[at:end], unknown if end == at + 1 else None)
            if score is None:
                continue
            sum_of[0] = best[at] + score
            if start[end] < 0 or sum_of[0] > best[end]:
                best[end], start[end] = sum_of[0], at
    pieces: list[str] = []
    end = len(text)
    while end:
        pieces.append(text[start[end] : end])
        end = start[end]
    return pieces[::-1]


class UnigramTokenizer(PieceTokenizer):
    """Cuts by `best_cut`. What is no piece becomes bytes, or one unknown id for a run.

    `arithmetic`: sums of scores in "float64", or in "float32" as SentencePiece has them, where nearly equal cuts may
    change places. `unknown_score` is 10 below the least score unless it is given.
    """

    kind = "unigram"

    def __init__(
        self,
        *,
        pieces: Mapping[int, Piece],
        normalizer: Normalizer | None = None,
        arithmetic: str = "float64",
        unknown_score: float | None = None,
        specials: Specials = DEFAULT_SPECIALS,
        begin: str | None = None,
        end: str | None = None,
        pad: str | None = None,
    ) -> None:
        if arithmetic not in ARITHMETICS:
            raise SettingError("tokenizer.arithmetic", arithmetic, " or ".join(ARITHMETICS))
        super().__init__(pieces=pieces, normalizer=normalizer, specials=specials, begin=begin, end=end, pad=pad)
        self.arithmetic = arithmetic
        self._round: type[np.floating] = np.float32 if arithmetic == "float32" else np.float64
        normal = [piece.score for piece in self.pieces.values() if piece.role == "normal"]
        least = float(self._round(min(normal, default=0.0)))
        self.unknown_score = float(self._round(least - UNKNOWN_PENALTY)) if unknown_score is None else unknown_score
        self._given_unknown_score = unknown_score
        self._found = {id: piece for id, piece in self.pieces.items() if piece.role in ("normal", "user")}

    @cached_property
    def scores(self) -> dict[str, float]:
        """The score of every piece that is looked for. A user's piece gets a tenth for each byte after the first, as
        in SentencePiece, which no probability reaches."""
        return {
            text: float(score if role == "normal" else self._round(USER_BONUS * (len(marked(text).encode()) - 1)))
            for text, score, role in self._found.values()
        }

    @cached_property
    def cuts_at_spaces(self) -> bool:
        """Sums must be exact too, or equally good cuts might be settled otherwise after another beginning."""
        scores = [self.unknown_score, *self.scores.values()]
        exact = self.arithmetic == "float64" and all((score * 1024).is_integer() for score in scores)
        return exact and super().cuts_at_spaces

    def encode_part(self, part: str) -> list[int]:
        return self._encode(part).tolist()

    @cached_property
    def _encode(self) -> Callable[[str], np.ndarray]:
        from tessera.tokenizers.sentencepiece.lattice import Cutter  # numba is imported with the first text

        rows = list(self._found)
        return Cutter(
            pieces=[piece.text.encode() for piece in self._found.values()],
            scores=list(self.scores.values()),
            ids=rows,
            byte_ids=self.byte_ids,
            unknown_id=-1 if self._unknown_id is None else self._unknown_id,
            unknown_score=self.unknown_score,
            arithmetic=self._round,
            least=ARITHMETICS[self.arithmetic][1],
        )

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
        """A vocabulary of `vocab_size` in all: `<unk>`, 256 bytes, characters, pieces and the special tokens.

        The commonest characters that make up `character_coverage` of the texts are pieces; the others become bytes, or
        `<unk>` without `byte_fallback`. A piece has at most `max_piece_length` characters.
        """
        from tessera.tokenizers.sentencepiece.unigram_train import train_unigram

        pieces = train_unigram(
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
        return {
            **self.table_settings(),
            "arithmetic": self.arithmetic,
            "unknown_score": self._given_unknown_score,
        }
