import json
import random
import sysconfig
import time
from pathlib import Path
from typing import get_args

import pytest
import rustbpe
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenizers
from tessera.errors import InputError, SettingError
from tessera.tokenizers import train
from tessera.tokenizers.bpe import Ties, learn
from tessera.tokenizers.count import count_words
from tessera.tokenizers.scan import PATTERNS
from tessera.tokenizers.train import PRINTABLE_FIRST, learn_tokens, train_bpe
from tessera.tokenizers.word_counts import WordCounts
from tokenizers import models, pre_tokenizers, trainers

TIES = get_args(Ties)
# Two letters make ties and runs (a, a); zero and 0xFF are the ends of the order of bytes.
words_of = st.one_of(
    st.binary(min_size=1, max_size=12), *(st.text(a, min_size=1, max_size=12) for a in ("ab", "\0a\x7f"))
)
pieces_of = st.dictionaries(words_of, st.integers(1, 4), max_size=8)


def textbook(pieces: dict[bytes, int], n_tokens: int, ties: Ties) -> tuple[list[tuple[int, int]], list[bytes]]:
    return learn([piece for piece, count in pieces.items() for _ in range(count)], n_tokens, ties=ties)


def python_texts(limit: int) -> list[str]:
    """Files of the standard library, up to about `limit` bytes."""
    texts = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        texts.append(path.read_text(encoding="utf-8", errors="replace"))
        limit -= len(texts[-1])
        if limit < 0:
            break
    return texts


@pytest.mark.parametrize("ties", TIES)
@settings(max_examples=150, deadline=None)
@given(pieces=pieces_of, n_tokens=st.integers(256, 300))
def test_merges_are_the_textbooks(ties: Ties, pieces: dict[str | bytes, int], n_tokens: int) -> None:
    words = {piece if isinstance(piece, bytes) else piece.encode(): count for piece, count in pieces.items()}
    merges, tokens = train_bpe(words, n_tokens, ties=ties)
    assert (merges, tokens) == textbook(words, n_tokens, ties)
    assert len(set(tokens)) == len(tokens)


@pytest.mark.slow
@pytest.mark.parametrize("ties", TIES)
@settings(max_examples=1000, deadline=None)
@given(pieces=st.dictionaries(words_of, st.integers(1, 40), max_size=30), n_tokens=st.integers(256, 400))
def test_merges_are_the_textbooks_on_many(ties: Ties, pieces: dict[str | bytes, int], n_tokens: int) -> None:
    words = {piece if isinstance(piece, bytes) else piece.encode(): count for piece, count in pieces.items()}
    assert train_bpe(words, n_tokens, ties=ties) == textbook(words, n_tokens, ties)


@pytest.mark.parametrize("ties", TIES)
def test_merges_are_the_textbooks_on_real_text(ties: Ties, shared_data: Path) -> None:
    text = (shared_data / "text" / "the_verdict.txt").read_text(encoding="utf-8")[:3000]
    pieces = dict(count_words([text]).items())
    assert train_bpe(pieces, 400, ties=ties) == textbook(pieces, 400, ties)


@pytest.mark.parametrize("ties", TIES)
def test_little_room_and_other_thresholds_change_nothing(ties: Ties, monkeypatch: pytest.MonkeyPatch) -> None:
    """The index grows where it is too small, and is made anew for a lower threshold: the merges show nothing of it."""
    words = count_words(python_texts(300_000))
    expected = train_bpe(words, 3000, ties=ties)
    monkeypatch.setattr(train, "FIRST_PAIRS", 16)
    for step in (2, 1000, 2**40):
        monkeypatch.setattr(train, "STEP", step)
        assert train_bpe(words, 3000, ties=ties) == expected
    merges, tokens = train_bpe(words, 1000, ties=ties)
    assert (merges, tokens) == (expected[0][:744], expected[1][:1000])


def test_tokens_are_rustbpes() -> None:
    texts = python_texts(500_000)
    theirs = rustbpe.Tokenizer()
    theirs.train_from_iterator(iter(texts), vocab_size=2000, pattern=PATTERNS["gpt4"])
    _, ours = learn_tokens(texts, 2000)
    assert ours == [bytes(token) for token, _ in theirs.get_mergeable_ranks()]


def hugging_face_merges(text: str, n_tokens: int) -> list[tuple[bytes, bytes]]:
    """Its merges as bytes: GPT-2's letters, printable bytes as themselves, the others from U+0100 on."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=n_tokens, show_progress=False, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([text], trainer)
    byte_of = dict(zip(sorted(alphabet), PRINTABLE_FIRST, strict=True))
    return [
        (bytes(byte_of[letter] for letter in first), bytes(byte_of[letter] for letter in second))
        for first, second in json.loads(tokenizer.to_str())["model"]["merges"]
    ]


CORPORA = ["shakespeare", "python", "chinese"]


def corpus_text(corpus: str, request: pytest.FixtureRequest) -> str:
    """About 500 kB."""
    if corpus == "python":
        return "".join(python_texts(500_000))
    folder = request.getfixturevalue("shared_data")
    if corpus == "shakespeare":
        return (folder / "text" / "tinyshakespeare.txt").read_text(encoding="utf-8")[:500_000]
    content = (folder / "instruct" / "alpaca_zh_demo.json").read_text(encoding="utf-8")
    return json.dumps(json.loads(content), ensure_ascii=False)[:500_000]


@pytest.mark.parametrize("corpus", CORPORA)
def test_merges_are_hugging_faces(corpus: str, request: pytest.FixtureRequest) -> None:
    text = corpus_text(corpus, request)
    words = count_words([text], pattern="gpt2", unicode_version="16.0.0")
    merges, tokens = train_bpe(words, 4000, alphabet=PRINTABLE_FIRST)
    assert [(tokens[first], tokens[second]) for first, second in merges] == hugging_face_merges(text, 4000)


@pytest.mark.slow
@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("corpus", CORPORA)
def test_merges_are_the_textbooks_on_three_corpora(corpus: str, ties: Ties, request: pytest.FixtureRequest) -> None:
    pieces = dict(count_words([corpus_text(corpus, request)[:8_000]]).items())
    assert train_bpe(pieces, 420, ties=ties) == textbook(pieces, 420, ties)


def test_training_ends_where_the_pairs_do() -> None:
    merges, tokens = train_bpe({b"aaaa": 1, b"b": 7}, 1000)
    assert merges == [(97, 97), (256, 256)]
    assert tokens[256:] == [b"aa", b"aaaa"]
    assert train_bpe({}, 1000) == ([], [bytes([byte]) for byte in range(256)])
    assert train_bpe({b"a": 1}, 256) == ([], [bytes([byte]) for byte in range(256)])


def test_counts_may_be_larger_than_32_bits() -> None:
    assert train_bpe({b"ab": 2**40, b"cd": 2**40 + 1, b"x": 2**62}, 258)[0] == [(99, 100), (97, 98)]
    with pytest.raises(InputError, match="more often than 64 bits can say"):
        train_bpe({b"ab": 2**62}, 258)


def test_ties_by_bytes_look_beyond_what_is_equal() -> None:
    """At a sixth byte, after the eight that are compared as a number, not at all but in length, and at a zero."""
    pieces = {b" the q-x": 1, b" the r-x": 1, b"0123456789-a": 1, b"0123456789z-a": 1, b"01234567\0-a": 1}
    assert train_bpe(pieces, 300, ties="lexicographic") == textbook(pieces, 300, "lexicographic")


def test_one_long_word_is_not_counted_anew_for_each_merge() -> None:
    """As text without spaces gives; counting all of it for each merge takes many times as long."""
    source = random.Random(0)
    word = "".join(chr(source.randrange(0x4E00, 0xA000)) for _ in range(30_000)).encode()
    train_bpe({b"ab": 1}, 257)
    start = time.process_time()
    _, tokens = train_bpe({word: 1}, 20_000)
    assert len(set(tokens)) == 20_000
    assert time.process_time() - start < 5


def test_progress_is_told_and_can_stop_the_training() -> None:
    words = count_words(python_texts(300_000))
    seen: list[tuple[int, int]] = []
    train_bpe(words, 1000, progress=lambda *told: seen.append(told))
    assert seen == [(256, 744), (512, 744), (744, 744)]

    def stop(done: int, of: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_bpe(words, 1000, progress=stop)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_tokens": 255}, "n_tokens = 255: expected 256 to"),
        ({"n_tokens": 2**21}, "n_tokens = 2097152: expected 256 to"),
        ({"ties": "last"}, "tokenizer.ties = 'last': expected first or lexicographic"),
        ({"alphabet": b"ab"}, "alphabet = b'ab': expected each of the 256 bytes once"),
        ({"alphabet": PRINTABLE_FIRST, "ties": "lexicographic"}, "for ties = 'first'"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message.replace("(", r"\(")):
        train_bpe({b"ab": 1}, **{"n_tokens": 300, **settings})  # type: ignore[arg-type]
    if "alphabet" not in settings:
        with pytest.raises(SettingError, match=message):
            learn_tokens(iter(()), **{"n_tokens": 300, **settings})  # type: ignore[arg-type]


def test_learning_from_texts_never_sees_special_tokens() -> None:
    texts = ["low lower<|end of it|>lowest", "<|end of it|>low"]
    merges, tokens = learn_tokens(texts, 262, specials=["<|end of it|>"], threads=2)
    assert (merges, tokens) == textbook({b"low": 3, b" lower": 1, b"lowest": 1}, 262, "first")


@pytest.mark.slow
def test_a_vocabulary_of_two_hundred_thousand() -> None:
    words = count_words(python_texts(60_000_000), pattern="gpt2")
    merges, tokens = train_bpe(words, 200_000)
    assert len(set(tokens)) == len(tokens) == 200_000
    few, _ = train_bpe(words, 5000)
    assert merges[: len(few)] == few


def test_words_may_come_as_counts() -> None:
    pieces = {b"low": 5, b"lower": 2}
    assert train_bpe(WordCounts.of(pieces), 260) == train_bpe(pieces, 260)
