import functools
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.errors import InputError, SettingError
from tessera.tokenizers.sentencepiece import lattice
from tessera.tokenizers.sentencepiece.lattice_sums import Words
from tessera.tokenizers.sentencepiece.normalizer import Normalizer
from tessera.tokenizers.sentencepiece.piece_bpe import PieceBpe
from tessera.tokenizers.sentencepiece.piece_tokenizer import BYTE_NAMES, Piece, PieceTokenizer
from tessera.tokenizers.sentencepiece.unigram import UnigramTokenizer, best_cut
from tessera.tokenizers.sentencepiece.unigram_train import Model, digamma, find_seeds, losses, maximize, prune

UNKNOWN = Piece("<unk>", 0.0, "unknown")
BYTES = [Piece(name, 0.0, "byte") for name in BYTE_NAMES]
TEXTS = ["the cat sat on the mat, the cat ran", "the dog sat on the log; naïve café 日本語 日本語"] * 4

tables = st.dictionaries(
    st.text("abé", min_size=1, max_size=4), st.integers(-80, -1).map(lambda score: score / 8), min_size=1, max_size=12
)


def tokenizer_of(scores: dict[str, float], *first: Piece, **settings: object) -> UnigramTokenizer:
    pieces = [*(first or [UNKNOWN]), *(Piece(text, score) for text, score in scores.items())]
    made = {"normalizer": Normalizer.plain(dummy_prefix=False), "specials": [], **settings}
    return UnigramTokenizer(pieces=dict(enumerate(pieces)), **made)  # type: ignore[arg-type]


def every_cut(text: str) -> list[list[str]]:
    return [[text[:end], *rest] for end in range(1, len(text) + 1) for rest in every_cut(text[end:])] if text else [[]]


def score_of(cut: list[str], scores: dict[str, float], unknown: float) -> float:
    return sum(scores.get(piece, unknown if len(piece) == 1 else -math.inf) for piece in cut)


@settings(max_examples=80, deadline=None)
@given(text=st.text("abéx", max_size=8), scores=tables)
def test_the_best_cut_is_the_best_of_all(text: str, scores: dict[str, float]) -> None:
    cut = best_cut(text, scores, -20.0)
    assert "".join(cut) == text
    assert score_of(cut, scores, -20.0) == max(score_of(other, scores, -20.0) for other in every_cut(text))


@pytest.mark.parametrize("arithmetic", ["float32", "float64"])
@settings(max_examples=60, deadline=None)
@given(
    text=st.text("abéx ", max_size=40),
    scores=st.dictionaries(st.text("abé ", min_size=1, max_size=5), st.floats(-30, 0, width=32), min_size=1),
)
def test_the_compiled_loop_is_the_plain_one(arithmetic: str, text: str, scores: dict[str, float]) -> None:
    tokenizer = tokenizer_of(scores, *BYTES, arithmetic=arithmetic)
    ids = {piece.text: id for id, piece in tokenizer.pieces.items()}
    expected = []
    for piece in best_cut(text, scores, tokenizer.unknown_score, arithmetic=arithmetic):
        expected += [ids[piece]] if piece in scores else list(piece.encode())
    assert tokenizer.encode(text) == expected
    assert tokenizer.decode(expected) == text


def test_sums_in_single_precision_begin_anew() -> None:
    scores = {"a": -2000.3, "aa": -4000.5, "ab": -4000.7, "b": -2000.1}
    text = "aaabbaaaab" * 30
    tokenizer = tokenizer_of(scores, arithmetic="float32")
    cut = best_cut(text, scores, tokenizer.unknown_score, arithmetic="float32")
    assert [tokenizer.pieces[id].text for id in tokenizer.encode(text)] == cut


def test_the_working_arrays_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lattice, "ROOM", 32)
    scores = {"aa": -1.0, "aaa": -1.25, "b": -3.0, " a": -1.5}
    text = "a" * 1001 + "b" + " a" * 40 + "é" * 50
    tokenizer = tokenizer_of(scores, *BYTES)
    cut = best_cut(text, scores, tokenizer.unknown_score)
    assert [piece.text for id in tokenizer.encode(text) if (piece := tokenizer.pieces[id]).role == "normal"] == [
        piece for piece in cut if piece in scores
    ]
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_what_is_no_piece() -> None:
    scores = {"a": -1.0, "b": -2.0}
    assert tokenizer_of(scores).encode("axyzb日") == [1, 0, 2, 0]
    assert tokenizer_of(scores, *BYTES).encode("aé") == [256, 0xC3, 0xA9]
    assert tokenizer_of(scores).unk_id == 0
    assert tokenizer_of(scores, UNKNOWN, *BYTES).unk_id is None
    with pytest.raises(InputError, match="neither bytes nor an unknown piece"):
        tokenizer_of(scores, Piece("c", -3.0))


@pytest.mark.parametrize(
    ("piece", "why"),
    [
        (Piece("", 0.0), "piece 1 is empty"),
        (Piece("a", math.nan), "score nan"),
        (Piece("a", 0.0, "control"), "role 'control': expected normal, user"),
        (Piece("<0x41>", 0.0, "byte"), "1 byte pieces"),
        (Piece("<0xZZ>", 0.0, "byte"), "is no byte"),
        (Piece("b", 0.0), "is there twice"),
        (UNKNOWN, "2 unknown ones"),
        (Piece("\ud800", 0.0), "lone surrogate"),
    ],
)
def test_a_table_that_is_wrong(piece: Piece, why: str) -> None:
    with pytest.raises(InputError, match=why):
        tokenizer_of({"b": -1.0}, UNKNOWN, piece)


def test_settings_that_are_wrong() -> None:
    with pytest.raises(SettingError, match="arithmetic = 'half': expected float32 or float64"):
        tokenizer_of({"b": -1.0}, arithmetic="half")
    with pytest.raises(SettingError, match=r"tokenizer\.end has no '</s>'"):
        tokenizer_of({"b": -1.0}, end="</s>")


def test_the_named_specials() -> None:
    tokenizer = tokenizer_of({"b": -1.0}, specials=["<s>", "</s>", "<pad>"], end="</s>", pad="<pad>")
    assert (tokenizer.end_id, tokenizer.pad_id) == (3, 4)
    loaded = UnigramTokenizer.from_state(tokenizer.state())
    assert (loaded.end_id, loaded.pad_id, loaded.state()) == (3, 4, tokenizer.state())


def test_the_space_in_front_comes_and_goes() -> None:
    tokenizer = UnigramTokenizer.train(TEXTS, vocab_size=310)
    assert tokenizer.pieces[tokenizer.encode("the")[0]].text.startswith(" ")
    for text in ["the cat", " the cat", "  ", " ", "", "a\u2581b \u2581", "the<|endoftext|>the <|endoftext|> the"]:
        assert tokenizer.decode(tokenizer.encode(text, specials="all")) == text
    assert tokenizer.decode(tokenizer.encode("the") * 2) == "the the"
    bare = UnigramTokenizer.train(TEXTS, vocab_size=310, dummy_prefix=False)
    assert bare.decode(bare.encode("the") * 2) == "thethe"


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("kind", [UnigramTokenizer, PieceBpe])
@settings(max_examples=40, deadline=None)
@given(parts=st.lists(st.text(st.sampled_from("the cat é\n\u2581 "), max_size=12), max_size=6), seam=st.booleans())
def test_a_text_in_parts(kind: Any, prefix: bool, parts: list[str], seam: bool) -> None:
    tokenizer = small(kind, prefix)
    parts = ["<|endoftext|>".join(parts), *parts, "the<|endo", "ftext|> cat"] if seam else parts
    whole = "".join(parts)
    arrays = list(tokenizer.encode_parts(parts, specials="all"))
    assert np.concatenate(arrays).tolist() == tokenizer.encode(whole, specials="all")
    assert tokenizer.cuts_at_spaces
    assert tokenizer.settled("the cat  sat  ") == 12


@functools.cache
def small(kind: Any, prefix: bool) -> PieceTokenizer:
    trained: PieceTokenizer = kind.train(TEXTS, vocab_size=305, dummy_prefix=prefix)
    return trained


def test_digamma() -> None:
    expected = [-0.5772156649015329, -1.9635100260214235, 2.2517525890667211, -10.423754940411076]
    assert digamma(np.array([1.0, 0.5, 10.0, 0.1])) == pytest.approx(expected, rel=1e-9)


def test_an_em_step_by_hand() -> None:
    """Three times "ab": both cuts, a|b (1/2 * 1/2) and ab (1/4), are as probable, so each piece is expected 1.5 times;
    psi(1.5) - psi(4.5) = -(1/1.5 + 1/2.5 + 1/3.5)."""
    pieces, scores = ["a", "b", "ab"], np.log([0.5, 0.5, 0.25])
    expected = Words({"ab": 3}).expected(pieces, scores)
    assert expected == pytest.approx([1.5, 1.5, 1.5])
    model = maximize(Model(pieces, scores), expected, 2, 2)
    assert model.pieces == pieces
    assert model.scores == pytest.approx([-(1 / 1.5 + 1 / 2.5 + 1 / 3.5)] * 3)
    rare = maximize(Model(pieces, scores), np.array([3.0, 0.1, 0.2]), 2, 2)
    assert rare.pieces == ["a", "b"]


@settings(max_examples=40, deadline=None)
@given(words=st.dictionaries(st.text("abé", min_size=1, max_size=6), st.integers(1, 9), min_size=1), scores=tables)
def test_expected_counts_are_the_sums_over_all_cuts(words: dict[str, int], scores: dict[str, float]) -> None:
    scores = {"a": -1.0, "b": -2.0, "é": -3.0} | scores
    expected = dict.fromkeys(scores, 0.0)
    for word, count in words.items():
        chances = [(cut, math.exp(score_of(cut, scores, -math.inf))) for cut in every_cut(word)]
        whole = sum(chance for _, chance in chances)
        for cut, chance in chances:
            for piece in cut if chance else []:
                expected[piece] += count * chance / whole
    found = Words(words).expected(list(scores), np.array(list(scores.values())))
    assert found == pytest.approx(list(expected.values()), abs=1e-9)


def test_a_loss_by_hand() -> None:
    """ "ab" twice and "a" once: without ab, a is there three times and b twice, of 5 pieces and no more of 3."""
    pieces, scores = ["a", "b", "ab", "ba"], np.log([0.3, 0.2, 0.5, 0.01])
    counts, instead = Words({"ab": 2, "a": 1}).usage(pieces, scores)
    assert counts.tolist() == [1, 0, 2, 0]
    assert [sorted(rows) for rows in instead] == [[], [], [0, 1], [0, 1]]
    lost = losses(scores, counts, instead)
    assert lost[:2].tolist() == [math.inf, math.inf]
    assert lost[2] == pytest.approx(2 * (math.log(2 / 3) - math.log(3 / 5) - math.log(2 / 5)))
    assert lost[3] == -math.inf
    assert prune(Model(pieces, scores), lost, 3).pieces == ["a", "b", "ab"]


def test_seeds_are_the_frequent_substrings() -> None:
    seeds, weights = find_seeds({"abab": 2, "xaby": 3, "q": 9}, ["a", "b", "x", "y", "q"], longest=3)
    found = dict(zip(seeds, weights, strict=True))
    assert found == {"ab": 14, "ba": 4, "aba": 6, "bab": 6, "xa": 6, "by": 6, "xab": 9, "aby": 9}
    assert list(found.values()) == sorted(found.values(), reverse=True)


def test_training() -> None:
    tokenizer = UnigramTokenizer.train(TEXTS, vocab_size=320)
    assert tokenizer.n_vocab == 320
    assert tokenizer.state() == UnigramTokenizer.train(TEXTS[::-1], vocab_size=320).state()
    texts = {piece.text for piece in tokenizer.pieces.values()}
    assert set("".join(TEXTS)) <= texts
    assert {" the", " cat", " sat"} <= texts
    assert all(" " not in text[1:].lstrip(" ") for text in texts)
    assert all((piece.score * 128).is_integer() for piece in tokenizer.pieces.values())
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_training_without_bytes_and_with_fewer_characters() -> None:
    tokenizer = UnigramTokenizer.train(TEXTS, vocab_size=50, byte_fallback=False, character_coverage=0.9)
    assert tokenizer.n_vocab == 50
    assert tokenizer.decode(tokenizer.encode("the cat ï🙂")) == "the cat \ufffd"


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"vocab_size": 257}, "vocab_size = 257: expected 259 to"),
        ({"vocab_size": 270}, "vocab_size = 270: expected at least 2[89].: the text has .. characters"),
        ({"vocab_size": 5000}, "vocab_size = 5000: expected at most 351: the text has no more"),
        ({"max_piece_length": 1}, "max_piece_length = 1: expected 2 to 64"),
    ],
)
def test_sizes_that_the_text_does_not_allow(given: dict[str, int], why: str) -> None:
    with pytest.raises(SettingError, match=why):
        UnigramTokenizer.train(TEXTS, **given)  # type: ignore[arg-type]


def test_no_text_is_an_error() -> None:
    with pytest.raises(InputError, match="no text"):
        UnigramTokenizer.train(["", "<|endoftext|>"], vocab_size=300)


def test_a_zero_character_is_bytes() -> None:
    tokenizer = UnigramTokenizer.train(["a\0b \0a\0b ab\0"] * 3, vocab_size=263)
    assert tokenizer.encode("\0")[1:] == [1]
    assert tokenizer.decode(tokenizer.encode("a\0b")) == "a\0b"


def test_as_few_tokens_as_sentencepiece(shared_data: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    lines = (shared_data / "text" / "tinyshakespeare.txt").read_text().split("\n")
    ours = UnigramTokenizer.train(lines, vocab_size=2000, specials=[])
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=2000, byte_fallback=True, bos_id=-1, eos_id=-1,
        normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    n_ours = sum(len(ours.encode(line)) for line in lines)
    n_theirs = sum(map(len, theirs.encode(lines)))
    assert n_ours <= 1.02 * n_theirs
