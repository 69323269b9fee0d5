"""Byte-pair encoding as language models use it: a pattern cuts the text into pieces, and no token crosses a piece.

The pieces are words, numbers, runs of punctuation or of space (Radford et al. 2019, section 2.2). Each is taken whole
where it is a token, and else built up from its bytes, the earliest merge first.
"""

import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from tessera.errors import InputError, SettingError
from tessera.tokenizers import plain_train
from tessera.tokenizers.bpe import Pair, Ties
from tessera.tokenizers.contract import Tokenizer, map_threads
from tessera.tokenizers.encode import Encoder, PlainEncoder, compiles, make_encoder, settled_words
from tessera.tokenizers.files import read_text
from tessera.tokenizers.scan import compile_pattern
from tessera.tokenizers.specials import DEFAULT_SPECIALS, Specials, check_enough, n_ordinary

GROUP = 2**18
MOST_OF_A_THREAD = 2**23
FEW = 4096
"""Characters that are encoded in plain Python, one text after another, before the compiled encoder is loaded."""

Normalization = Literal["NFC", "NFD", "NFKC", "NFKD"]


class RegexBpe(Tokenizer):
    """The tokenizer of GPT-2 and after: `pattern` cuts the text into pieces, `ranks` cut each piece into tokens.

    `ranks` maps a token's bytes to its id. Without `merges`, the id is also the rank: of the neighbours whose joint
    bytes are a token, the lowest is joined first, as tiktoken does. With `merges`, pairs of ids, only those are joined,
    in their order, as Hugging Face's tokenizers do; `whole_pieces` (there `ignore_merges`) still takes a piece that is
    a token as it is. `normalize` is a Unicode normal form that text is brought to first, so that decoding gives that.
    `huggingface` is what a file of theirs held besides, kept for writing one again; it has no part in encoding.
    `drops_bytes` allows a vocabulary without some of the 256 bytes, as SmolLM's is without a few control characters:
    what is missing is left out of a text, as those who made it do; else such a vocabulary is an error.
    """

    kind = "bpe"

    def __init__(
        self,
        *,
        ranks: Mapping[bytes, int],
        pattern: str = "gpt4",
        specials: Specials = DEFAULT_SPECIALS,
        merges: Iterable[Pair] | None = None,
        whole_pieces: bool = True,
        normalize: Normalization | None = None,
        huggingface: Mapping[str, Any] | None = None,
        drops_bytes: bool = False,
    ) -> None:
        missing = [token for token in map(bytes, zip(range(256))) if token not in ranks]
        if missing and not drops_bytes:
            raise InputError(
                f"the vocabulary lacks {len(missing)} of the 256 single bytes, so some text would have no ids"
            )
        tokens = {rank: token for token, rank in ranks.items()}
        if len(tokens) < len(ranks):
            raise InputError("the vocabulary gives one id to two tokens")
        if normalize not in (None, "NFC", "NFD", "NFKC", "NFKD"):
            raise SettingError("tokenizer.normalize", normalize, "none, NFC, NFD, NFKC or NFKD")
        compile_pattern(pattern)
        self.pattern = pattern
        self.ranks = dict(ranks)
        self.merges = None if merges is None else _checked_merges(merges, tokens, ranks)
        self.whole_pieces = whole_pieces
        self.normalize = normalize
        self.huggingface = dict(huggingface or {})
        super().__init__(tokens=tokens, specials=specials)
        self._n_plain = 0
        # While a text is encoded, a missing byte has an id beyond all others.
        self._stand_ins = {token: self.n_vocab + i for i, token in enumerate(missing)}

    @cached_property
    def encoder(self) -> Encoder:
        """What does the work: compiled where it can be, plain Python where not."""
        ranks = self.ranks | self._stand_ins
        return make_encoder(ranks, pattern=self.pattern, merges=self.merges, whole_pieces=self.whole_pieces)

    @cached_property
    def _plain_encoder(self) -> PlainEncoder:
        return PlainEncoder(self.ranks | self._stand_ins, pattern=self.pattern, whole_pieces=self.whole_pieces)

    def _encoder_for(self, text: str) -> Encoder:
        """The compiled one takes a tenth of a second to load: a prompt need not wait for it."""
        self._n_plain += len(text)
        if self.merges is None and self._n_plain <= FEW and "encoder" not in vars(self):
            return self._plain_encoder
        return self.encoder

    def _kept(self, ids: np.ndarray) -> np.ndarray:
        """The ids without stand-ins."""
        kept = ids[ids < self.n_vocab] if self._stand_ins else ids
        return kept.astype(self.dtype, copy=False)

    def ordinary_array(self, text: str) -> np.ndarray:
        if self.normalize is not None:
            text = unicodedata.normalize(self.normalize, text)
        return self._kept(self._encoder_for(text).encode(text))

    def ordinary_arrays(self, texts: Sequence[str], threads: int) -> list[np.ndarray]:
        """In groups: of GROUP characters, or one for each thread, so that threads seldom wait for the interpreter."""
        if self.normalize is not None:
            texts = [unicodedata.normalize(self.normalize, text) for text in texts]
        most = GROUP if threads == 1 else min(max(sum(map(len, texts)) // threads + 1, GROUP), MOST_OF_A_THREAD)
        groups: list[list[str]] = []
        size = most
        for text in texts:
            if size >= most:
                groups.append([])
                size = 0
            groups[-1].append(text)
            size += len(text)
        encoder, dtype = self.encoder, np.uint32 if self._stand_ins else self.dtype
        found = map_threads(lambda group: encoder.encode_many(group, dtype), groups, threads)
        return [self._kept(ids) for group in found for ids in group]

    def settled(self, text: str) -> int:
        """A normal form may join characters across any other place than the one between two words."""
        return self.encoder.settled(text) if self.normalize is None else settled_words(text)

    def encode_ordinary(self, text: str) -> list[int]:
        return self.ordinary_array(text).tolist()

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        *,
        vocab_size: int = 4096,
        pattern: str = "gpt4",
        ties: Ties = "first",
        specials: Specials = DEFAULT_SPECIALS,
        normalize: Normalization | None = None,
        threads: int = 1,
        progress: Callable[[int, int], None] | None = None,
    ) -> Self:
        """Learn the merges inside the pieces of `texts`, each different piece once, by how often it occurs.

        `vocab_size` counts everything: bytes, merges and special tokens, but for those with an id at or above it.
        Of pairs that are equally frequent, `ties="first"` merges the one of the lowest ids, "lexicographic" that of the
        greatest bytes. `threads` count pieces; `progress(merges done, of)`.
        """
        n_tokens = n_ordinary(vocab_size, specials, least=256)
        if normalize is not None:
            texts = (unicodedata.normalize(normalize, text) for text in texts)
        if compiles():
            from tessera.tokenizers.train import learn_tokens  # it brings the compiler

            _, tokens = learn_tokens(
                texts, n_tokens, pattern=pattern, specials=specials, ties=ties, threads=threads, progress=progress
            )
        else:
            _, tokens = plain_train.learn_tokens(
                texts, n_tokens, pattern=pattern, specials=specials, ties=ties, progress=progress
            )
        check_enough(len(tokens), n_tokens, vocab_size)
        ranks = {token: id for id, token in enumerate(tokens)}
        return cls(ranks=ranks, pattern=pattern, specials=specials, normalize=normalize)

    @classmethod
    def train_files(
        cls,
        paths: Sequence[str | Path],
        *,
        vocab_size: int = 4096,
        pattern: str = "gpt4",
        ties: Ties = "first",
        specials: Specials = DEFAULT_SPECIALS,
        threads: int = 1,
        counts: str | Path | None = None,
        reading: Callable[[int, int], None] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Self:
        """The same from files of UTF-8 text, in memory that does not grow with them; `reading(bytes done, of)`.

        With `counts`, what was counted so far is kept in that file now and then, and a training that was stopped
        goes on from it.
        """
        if not compiles():
            if counts is not None:
                raise SettingError("counts", str(counts), "none without numba, which counts the pieces of large files")
            texts = ("".join(read_text(path)) for path in paths)
            return cls.train(
                texts, vocab_size=vocab_size, pattern=pattern, ties=ties, specials=specials, progress=progress
            )
        from tessera.tokenizers.count import count_files
        from tessera.tokenizers.train import train_bpe

        n_tokens = n_ordinary(vocab_size, specials, least=256)
        words = count_files(
            paths, pattern=pattern, specials=specials, threads=threads, partial=counts, progress=reading
        )
        _, tokens = train_bpe(words, n_tokens, ties=ties, progress=progress)
        check_enough(len(tokens), n_tokens, vocab_size)
        return cls(ranks={token: id for id, token in enumerate(tokens)}, pattern=pattern, specials=specials)

    def settings(self) -> dict[str, Any]:
        """The ranks' bytes are written as the characters of the same code (Latin-1)."""
        settings: dict[str, Any] = {
            "pattern": self.pattern,
            "ranks": {token.decode("latin-1"): rank for token, rank in self.ranks.items()},
            "specials": self.specials,
        }
        if self.merges is not None:
            settings["merges"] = [list(pair) for pair in self.merges]
        if not self.whole_pieces:
            settings["whole_pieces"] = False
        if self.normalize is not None:
            settings["normalize"] = self.normalize
        if self.huggingface:
            settings["huggingface"] = self.huggingface
        if self._stand_ins:
            settings["drops_bytes"] = True
        return settings

    @classmethod
    def restore(cls, settings: Mapping[str, Any]) -> Self:
        ranks = {token.encode("latin-1"): rank for token, rank in settings["ranks"].items()}
        names = ("merges", "whole_pieces", "normalize", "huggingface", "drops_bytes")
        more = {name: settings[name] for name in names if name in settings}
        return cls(ranks=ranks, pattern=settings["pattern"], specials=settings["specials"], **more)


def _checked_merges(merges: Iterable[Pair], tokens: Mapping[int, bytes], ranks: Mapping[bytes, int]) -> Sequence[Pair]:
    checked = []
    for place, (first, second) in enumerate(merges):
        if first not in tokens or second not in tokens or tokens[first] + tokens[second] not in ranks:
            raise InputError(f"merge {place} joins {first} and {second}, but these or their joint bytes are no token")
        checked.append((first, second))
    return checked
