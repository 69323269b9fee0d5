"""Byte-pair training that does not count anew: each merge touches only the places of its pair.

Same merges, same order, same ids as the textbook loop (`bpe.learn`). Each different piece of the text is one word with
a count; `merge_loop` holds the compiled loop and says how it works. Importing this module imports numba.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from tessera.errors import InputError, SettingError
from tessera.native.memory import address_of
from tessera.tokenizers.bpe import Pair, Ties
from tessera.tokenizers.compiled import merge_loop as loop
from tessera.tokenizers.compiled import pair_index as index
from tessera.tokenizers.count import Progress, count_words
from tessera.tokenizers.specials import DEFAULT_SPECIALS, MAX_ORDINARY, Specials
from tessera.tokenizers.word_counts import WordCounts

SLICE = 256  # merges between two looks at Ctrl-C and the progress
FIRST_PAIRS = 2**16  # room in the index to begin with
STEP = 16  # the threshold falls by at most this factor
BYTES = bytes(range(256))

# Hugging Face's order of the bytes: by the characters that GPT-2 writes them as, the printable ones of Latin-1 first.
_PRINTABLE = bytes([*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)])
PRINTABLE_FIRST = _PRINTABLE + bytes(byte for byte in BYTES if byte not in _PRINTABLE)


def learn_tokens(
    texts: Iterable[str],
    n_tokens: int,
    *,
    pattern: str = "gpt4",
    specials: Specials = DEFAULT_SPECIALS,
    ties: Ties = "first",
    threads: int = 1,
    progress: Progress | None = None,
) -> tuple[list[Pair], list[bytes]]:
    """Count the pieces of `texts` (see `count_words`, also for `threads`), and `train_bpe` on them."""
    _check(n_tokens, ties, BYTES)
    words = count_words(texts, pattern=pattern, specials=specials, threads=threads)
    return train_bpe(words, n_tokens, ties=ties, progress=progress)


def train_bpe(
    pieces: Mapping[bytes, int] | WordCounts,
    n_tokens: int,
    *,
    ties: Ties = "first",
    alphabet: Sequence[int] = BYTES,
    progress: Progress | None = None,
) -> tuple[list[Pair], list[bytes]]:
    """The merges in order, and every token's bytes by id, learned from `pieces` and how often each occurs.

    Of pairs that are equally frequent, "first" takes the lowest (id, id), where single bytes come in the order of
    `alphabet` (with PRINTABLE_FIRST the merges are those of Hugging Face's trainer; a byte's id is its value all the
    same). "lexicographic" takes the greatest pair of byte strings. That settles all ties, as no two tokens have the
    same bytes: within what becomes one token, the merges are those that its bytes would see alone, so one pair only
    leads to it. `progress(merges done, of)` is called now and then. Ends early, with fewer tokens, where no pair is
    left.

    >>> merges, tokens = train_bpe({b"low": 5, b"lower": 2, b"newest": 6}, 258)
    >>> merges, tokens[256:]
    ([(119, 101), (108, 111)], [b'we', b'lo'])
    """
    _check(n_tokens, ties, alphabet)
    words = pieces if isinstance(pieces, WordCounts) else WordCounts.of(pieces)
    trainer = _Trainer(words, n_tokens, ties, np.array(list(alphabet)))
    while trainer.advance(SLICE):
        if progress is not None:
            progress(trainer.n_merges, n_tokens - 256)
    merges = trainer.merges()
    tokens = [bytes([byte]) for byte in BYTES]
    for first, second in merges:
        tokens.append(tokens[first] + tokens[second])
    if progress is not None:
        progress(len(merges), len(merges))
    return merges, tokens


def _check(n_tokens: int, ties: Ties, alphabet: Sequence[int]) -> None:
    if not 256 <= n_tokens <= MAX_ORDINARY:
        raise SettingError("n_tokens", n_tokens, f"256 to {MAX_ORDINARY}")
    if ties not in ("first", "lexicographic"):
        raise SettingError("tokenizer.ties", ties, "first or lexicographic")
    if sorted(alphabet) != list(BYTES) or (ties != "first" and bytes(alphabet) != BYTES):
        raise SettingError(
            "alphabet", alphabet, "each of the 256 bytes once, in their own order but for ties = 'first'"
        )


class _Trainer:
    """The arrays of the compiled loop, made larger or anew where it asks for that, and the table of their addresses."""

    def __init__(self, words: WordCounts, n_tokens: int, ties: Ties, alphabet: np.ndarray) -> None:
        n_symbols = len(words.content) + len(words) + 1
        if n_symbols >= 2**31:
            raise InputError(f"{len(words)} different pieces of {len(words.content)} bytes are too many to train on")
        if np.dot(np.diff(words.ends, prepend=0).astype(np.float64), words.counts) >= 2.0**63:
            raise InputError("the pieces are counted more often than 64 bits can say")
        self.n_tokens = n_tokens
        self._alphabet = alphabet
        self._table = np.zeros(index.SIZE, np.int64)
        self._arrays: dict[int, np.ndarray] = {}
        self._table[index.N_TOKENS] = 256
        self._table[index.MOST_TOKENS] = n_tokens
        self._table[index.TIES] = {"first": index.FIRST, "lexicographic": index.LEXICOGRAPHIC}[ties]
        tokens = np.ones((n_tokens, 4), np.int64)
        tokens[:, 3] = np.arange(n_tokens).astype(np.uint64) << np.uint64(56)
        self._set(index.TOKENS, tokens)
        self._set(index.SYMBOLS, np.empty(n_symbols, np.int32))
        self._set(index.RUNS, np.ones((len(np.unique(words.counts)) + 1, 2), np.int64))
        self._set(index.RUN_AT, np.zeros((n_symbols >> loop.BLOCK) + 1, np.int32))
        self._set(index.TOUCHED, np.zeros(2 * n_tokens, np.int32))
        self._set(index.NEAR, np.zeros((2 * n_tokens, 2), np.int64))
        self._set_pairs(FIRST_PAIRS)
        ranks = np.empty(256, np.int64)
        ranks[alphabet] = np.arange(256)
        order = np.argsort(-words.counts, kind="stable")
        arrays = (address_of(array) for array in (words.content, words.ends, words.counts, order))
        self._n_runs = loop.lay_out(self._at, *arrays, len(words), address_of(ranks))
        self._index(self._first_threshold())

    def _set(self, field: int, array: np.ndarray) -> None:
        self._arrays[field] = array
        self._table[field] = address_of(array)

    @property
    def _at(self) -> int:
        return address_of(self._table)

    def _set_pairs(self, n_pairs: int) -> None:
        """Room for so many pairs, and what is known of the present ones."""
        for field, width in ((index.PAIRS, 4), (index.HEAP, 2)):
            array = np.empty((n_pairs, width), np.int64)
            if field in self._arrays:
                array[: len(self._arrays[field])] = self._arrays[field]
            self._set(field, array)
        self._set(index.SLOTS, np.zeros(2 * n_pairs, np.int32))
        self._table[index.MASK] = 2 * n_pairs - 1
        self._table[index.MOST_PAIRS] = n_pairs
        index.rehash(self._at)

    @property
    def n_merges(self) -> int:
        return int(self._table[index.N_TOKENS]) - 256

    def merges(self) -> list[Pair]:
        """The merges so far as pairs of ids."""
        ids = np.concatenate([self._alphabet, np.arange(256, 256 + self.n_merges)])
        joined = self._arrays[index.TOKENS][256 : 256 + self.n_merges, 0]
        return list(zip(ids[joined >> 32].tolist(), ids[joined & index.LOW].tolist(), strict=True))

    def advance(self, n_merges: int) -> bool:
        """Make `n_merges` more, or as many as there are; whether there may be more to make."""
        wanted = min(256 + self.n_merges + n_merges, self.n_tokens)
        while (why := loop.merge_until(self._at, wanted)) != loop.DONE:
            threshold = int(self._table[index.THRESHOLD])
            if why == loop.PAIRS_FULL:
                self._set_pairs(2 * int(self._table[index.MOST_PAIRS]))
            elif why == loop.PLACES_FULL:
                self._index(threshold)
            elif threshold > 1:
                self._index(self._lower(threshold))
            else:
                return False
        return wanted < self.n_tokens

    def _first_threshold(self) -> int:
        """A guess: the most frequent pair of bytes is often some hundredth of all."""
        runs = self._arrays[index.RUNS][: self._n_runs].astype(np.float64)
        return int(max(1.0, np.dot(np.diff(runs[:, 0], prepend=1.0), runs[:, 1]) / 64 / STEP))

    def _lower(self, threshold: int) -> int:
        """The count of the n-th merge falls about as 1/n: low enough for all that are wanted, and not by too much."""
        share = max(self.n_merges, 1) / (self.n_tokens - 256)
        return max(1, threshold // STEP, int(threshold * share * 0.7))

    def _index(self, threshold: int) -> None:
        """Count all pairs and index those that occur at least `threshold` times, or the best if none does."""
        loop.compact(self._at, self._n_runs)
        n_symbols = int(self._table[index.N_SYMBOLS])
        self._arrays.pop(index.PLACES, None)
        self._set(index.PLACES, np.empty(3 * n_symbols, np.int32))
        self._table[index.MOST_PLACES] = 3 * n_symbols
        starts = np.empty(self.n_tokens + 1, np.int64)
        while True:
            self._table[[index.N_PAIRS, index.N_HEAP, index.N_PLACES]] = 0
            self._table[index.THRESHOLD] = threshold
            self._arrays[index.SLOTS][:] = 0
            highest = loop.index_pairs(self._at, address_of(starts))
            if highest < 0:
                self._set_pairs(2 * int(self._table[index.MOST_PAIRS]))
            elif highest >= threshold or threshold == 1:
                return
            else:
                threshold = max(1, highest // STEP)
