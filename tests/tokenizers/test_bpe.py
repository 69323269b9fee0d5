import pytest

from tessera.errors import SettingError
from tessera.tokenizers.bpe import NaiveBpe, count_pairs, learn, merge
from tessera.tokenizers.regex_bpe import RegexBpe


def test_pairs_are_counted_and_merged_from_the_left() -> None:
    a, b, c, d, Z, Y, X = 97, 98, 99, 100, 256, 257, 258
    ids = [a, a, a, b, d, a, a, a, b, a, c]
    assert count_pairs(ids) == {(a, a): 4, (a, b): 2, (b, d): 1, (d, a): 1, (b, a): 1, (a, c): 1}
    ids = merge(ids, (a, a), Z)
    assert ids == [Z, a, b, d, Z, a, b, a, c]
    ids = merge(merge(ids, (Z, a), Y), (Y, b), X)
    assert ids == [X, d, X, a, c]
    assert merge([a, a, a, a, a], (a, a), Z) == [Z, Z, a]
    assert merge([], (a, a), Z) == []


def test_the_textbook_learns_the_wikipedia_example() -> None:
    merges, tokens = learn([b"aaabdaaabac"], 259)
    assert merges == [(97, 97), (97, 98), (256, 257)]
    assert tokens[256:] == [b"aa", b"ab", b"aaab"]
    naive = NaiveBpe.train(["aaabdaaabac"], vocab_size=259, specials=[])
    assert naive.encode("aaabdaaabac") == [258, 100, 258, 97, 99]


def test_naive_tokens_cross_words_and_regex_tokens_do_not() -> None:
    texts = ["a b a b a b a b"]
    assert b"a b" in dict(NaiveBpe.train(texts, vocab_size=259).vocabulary()).values()
    assert b"a b" not in dict(RegexBpe.train(texts, vocab_size=259).vocabulary()).values()


def test_merges_must_name_earlier_ids() -> None:
    with pytest.raises(SettingError, match=r"tokenizer\.merges = \(97, 256\)"):
        NaiveBpe(merges=[(97, 256)])
    with pytest.raises(SettingError, match=r"tokenizer\.merges = \(97, 97\)"):
        NaiveBpe(merges=[(97, 97), (97, 97)])


def test_ties_are_broken_by_ids_or_by_bytes() -> None:
    """All three pairs occur once: the lowest ids are those of "ab", the greatest bytes those of "ca"."""
    assert learn([b"ab", b"bc", b"ca"], 257) == ([(97, 98)], [*map(bytes, zip(range(256), strict=True)), b"ab"])
    assert learn([b"ab", b"bc", b"ca"], 257, ties="lexicographic")[0] == [(99, 97)]
    words = [b"low"] * 5 + [b"lower"] * 2 + [b"widest"] * 3 + [b"newest"] * 6
    merges, tokens = learn(words, 262, ties="lexicographic")  # the example of CS336, assignment 1
    assert tokens[256:] == [b"st", b"est", b"ow", b"low", b"west", b"ne"]
    assert len(merges) == 6
