import sysconfig
import time
from collections import Counter
from operator import add
from pathlib import Path
from random import Random

import pytest
import rustbpe
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.tokenizers.bpe import learn
from tessera.tokenizers.scan import PATTERNS, compile_pattern, split_pieces
from tessera.tokenizers.train import train_bpe


@settings(max_examples=200, deadline=None)
@given(pieces=st.dictionaries(st.text("ab", min_size=1, max_size=12), st.integers(1, 4), max_size=8))
def test_merges_are_the_textbooks(pieces: dict[str, int]) -> None:
    """Two letters make ties and runs (a, a); no two merges spell the same token."""
    words = {piece.encode(): count for piece, count in pieces.items()}
    sequences = [piece for piece, count in words.items() for _ in range(count)]
    merges, tokens = train_bpe(words, 290)
    assert (merges, tokens) == learn(sequences, 290)
    assert len(set(tokens)) == len(tokens)


def python_pieces(limit: int) -> tuple[list[str], Counter[str]]:
    folder = Path(sysconfig.get_path("stdlib"))
    texts = []
    for path in sorted(folder.glob("*.py")):
        texts.append(path.read_text(encoding="utf-8"))
        limit -= len(texts[-1])
        if limit < 0:
            break
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(split_pieces(compile_pattern("gpt4"), text))
    return texts, counts


def test_merges_are_the_textbooks_on_real_text() -> None:
    _, counts = python_pieces(1)
    words = {piece.encode(): count for piece, count in counts.items()}
    sequences = [piece.encode() for piece, count in counts.items() for _ in range(count)]
    assert train_bpe(words, 290) == learn(sequences, 290)


def test_tokens_are_rustbpes_on_real_text() -> None:
    texts, counts = python_pieces(500_000)
    theirs = rustbpe.Tokenizer()
    theirs.train_from_iterator(iter(texts), vocab_size=2000, pattern=PATTERNS["gpt4"])
    _, ours = train_bpe({piece.encode(): count for piece, count in counts.items()}, 2000)
    assert len(set(ours)) == 2000
    assert ours == [bytes(token) for token, _ in theirs.get_mergeable_ranks()]


def test_training_ends_where_the_pairs_do() -> None:
    merges, tokens = train_bpe({b"aaaa": 1, b"b": 7}, 1000)
    assert merges == [(97, 97), (256, 256)]
    assert tokens[256:] == [b"aa", b"aaaa"]
    assert train_bpe({}, 1000) == ([], [bytes([byte]) for byte in range(256)])


def test_counts_may_be_larger_than_32_bits() -> None:
    assert train_bpe({b"ab": 2**40, b"cd": 2**40 + 1}, 258)[0] == [(99, 100), (97, 98)]


def test_one_long_word_is_not_counted_anew_for_each_merge() -> None:
    """As text without spaces gives; counting all of it for each merge takes many times as long."""
    random = Random(0)
    word = "".join(chr(random.randrange(0x4E00, 0xA000)) for _ in range(30_000)).encode()
    start = time.process_time()
    _, tokens = train_bpe({word: 1}, 1024)
    assert len(tokens) == 1024
    assert time.process_time() - start < 5


def test_ids_beyond_the_surrogates_are_ids() -> None:
    """A word is a str of characters that are ids, 0xD800 to 0xDFFF too."""
    letters = [chr(code).encode() for code in range(0x4E00, 0x4E00 + 0x7000)]
    words = dict.fromkeys(map(add, letters, letters[1:]), 1)
    _, tokens = train_bpe(words, 0xE080)
    assert len(set(tokens)) == len(tokens) == 0xE080


@pytest.mark.slow
def test_ten_megabytes_take_seconds() -> None:
    folder = Path(sysconfig.get_path("stdlib"))
    counts: Counter[str] = Counter()
    size = 0
    for path in sorted(folder.rglob("*.py")):
        text = path.read_text(encoding="utf-8", errors="replace")
        counts.update(split_pieces(compile_pattern("gpt4"), text))
        size += len(text)
        if size > 10_000_000:
            break
    start = time.process_time()
    _, tokens = train_bpe({piece.encode(): count for piece, count in counts.items()}, 4096)
    assert len(tokens) == 4096
    assert time.process_time() - start < 15
