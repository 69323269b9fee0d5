import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.errors import InputError
from tessera.tokenizers.sentencepiece.normalizer import Normalizer
from tessera.tokenizers.sentencepiece.piece_bpe import PieceBpe, Ranks, join_lowest
from tessera.tokenizers.sentencepiece.piece_bpe_train import join_pair, learn_pieces
from tessera.tokenizers.sentencepiece.piece_tokenizer import BYTE_NAMES, Piece

UNKNOWN = Piece("<unk>", 0.0, "unknown")
BYTES = [Piece(name, 0.0, "byte") for name in BYTE_NAMES]
TEXTS = ["the cat sat on the mat, the cat ran", "the dog sat on the log; naïve café 日本語 日本語"] * 4

tables = st.dictionaries(st.text("ab ", min_size=1, max_size=4), st.integers(-9, 0).map(float), max_size=12)


def tokenizer_of(*pieces: Piece, **settings: object) -> PieceBpe:
    made = {"normalizer": Normalizer.plain(dummy_prefix=False), "specials": [], **settings}
    return PieceBpe(pieces=dict(enumerate(pieces)), **made)  # type: ignore[arg-type]


def join_plainly(text: str, rank: Ranks) -> list[str]:
    """The best pair of all, again and again."""
    parts = list(text)
    while True:
        found = [(rank(parts[at], parts[at + 1]), at) for at in range(len(parts) - 1)]
        known = [(each, at) for each, at in found if each is not None]
        if not known:
            return parts
        _, at = min(known)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


@settings(max_examples=100, deadline=None)
@given(text=st.text("ab x", max_size=30), scores=tables)
def test_joins_are_those_of_the_plain_loop(text: str, scores: dict[str, float]) -> None:
    rank = Ranks(scores, None)
    assert join_lowest(text, rank) == join_plainly(text, rank)
    merges = [(piece[:1], piece[1:]) for piece in sorted(scores) if len(piece) > 1]
    rank = Ranks(scores, merges)
    assert join_lowest(text, rank) == join_plainly(text, rank)


@settings(max_examples=60, deadline=None)
@given(text=st.text("ab x", max_size=30), scores=tables)
def test_words_are_joined_as_the_whole_text_is(text: str, scores: dict[str, float]) -> None:
    tokenizer = tokenizer_of(*BYTES, *(Piece(piece, score) for piece, score in scores.items()))
    ids = {piece.text: id for id, piece in tokenizer.pieces.items()}
    joined = join_lowest(text, Ranks(scores, None))
    assert tokenizer.encode(text) == [
        id for part in joined for id in ([ids[part]] if part in scores else part.encode())
    ]
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_long_word_takes_no_quadratic_time() -> None:
    tokenizer = tokenizer_of(*BYTES, *(Piece("a" * 2**n, -float(n)) for n in range(6)))
    started = time.process_time()
    assert len(tokenizer.encode("a" * 200_000)) == 200_000 / 32
    assert time.process_time() - started < 10


def test_a_list_of_merges_is_all_that_is_joined() -> None:
    pieces = [UNKNOWN, *map(Piece, ["a", "b", "c", "ab", "bc", "abc"])]
    assert tokenizer_of(*pieces, merges=[("b", "c"), ("a", "b")]).encode("abcab") == [1, 5, 4]
    assert tokenizer_of(*pieces, merges=[("a", "b"), ("b", "c"), ("ab", "c")]).encode("abcab") == [6, 4]
    with pytest.raises(InputError, match=r"needs the piece 'ca'"):
        tokenizer_of(*pieces, merges=[("c", "a")])


def test_what_is_no_piece() -> None:
    pieces = [UNKNOWN, Piece("a", -1.0)]
    assert tokenizer_of(*pieces).encode("axyzaé") == [1, 0, 1, 0]
    assert tokenizer_of(*pieces).encode("x x") == [0]
    assert tokenizer_of(*pieces, fuse_unknown=False).encode("axya") == [1, 0, 0, 1]
    assert tokenizer_of(*pieces, *BYTES).encode("aé") == [1, 2 + 0xC3, 2 + 0xA9]


def test_user_pieces_are_found_wherever_they_are_spelled_out() -> None:
    pieces = [UNKNOWN, *(Piece(text, -1.0) for text in ["a", "b", "ab", "ba"])]
    tokenizer = tokenizer_of(*pieces, Piece("bb", 0.0, "user"), Piece("bba", 0.0, "user"))
    assert tokenizer.encode("abbab") == [1, 6, 2]
    assert tokenizer.encode("abba bb") == [1, 6, 0, 5]


def test_an_unused_piece_falls_apart() -> None:
    pieces = [UNKNOWN, *(Piece(text, -float(n)) for n, text in enumerate(["a", "b", "c", "ab"]))]
    tokenizer = tokenizer_of(*pieces, Piece("abc", -9.0, "unused"))
    assert tokenizer.encode("abc") == [4, 3]
    assert tokenizer.decode([5]) == "abc"


def test_training_is_the_plain_loop() -> None:
    words = {" the": 9, " then": 4, " hen": 5, "aaaa": 3, " an": 2}
    cut, expected = {word: list(word) for word in words}, []
    for _ in range(7):
        counts: dict[tuple[str, str], int] = {}
        for word, symbols in cut.items():
            for pair in pairwise(symbols):
                counts[pair] = counts.get(pair, 0) + words[word]
        best = min(counts, key=lambda pair: (-counts[pair], pair[0] + pair[1], pair[0]))
        cut = {word: join_pair(symbols, best) for word, symbols in cut.items()}
        expected.append(best[0] + best[1])
    assert learn_pieces(words, 7, longest=16) == expected
    assert max(map(len, learn_pieces(words, 99, longest=3))) == 3


def test_a_trained_tokenizer() -> None:
    tokenizer = PieceBpe.train(TEXTS, vocab_size=310)
    assert tokenizer.n_vocab == 310
    assert tokenizer.state() == PieceBpe.train(TEXTS[::-1], vocab_size=310).state()
    assert len(tokenizer.encode("the cat")) == 2
    for text in [*TEXTS, "", " ", "  x ", "a\u2581b", "🙂\0\n"]:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    loaded = PieceBpe.from_state(tokenizer.state())
    assert loaded.encode(TEXTS[1]) == tokenizer.encode(TEXTS[1])
