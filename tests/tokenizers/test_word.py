import pytest

from tessera.errors import InputError, SettingError
from tessera.tokenizers.word import WordTokenizer, split_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Hello, World!", ["hello", "world"]),
        ("Don't stop; it\u2019s 'quoted'.", ["dont", "stop", "its", "quoted"]),
        ("snake_case well-known end.Start", ["snake", "case", "well", "known", "end", "start"]),
        ("ÉTÉ e\u0301te\u0301 日本", ["été", "e\u0301te\u0301", "日本"]),
        ("3.14 -- !?", ["3", "14"]),
        ("", []),
    ],
)
def test_words_are_lower_case_and_bare(text: str, words: list[str]) -> None:
    assert split_words(text) == words


def test_the_most_frequent_words_then_the_alphabet() -> None:
    tokenizer = WordTokenizer.train(["b a c a", "d C e"], vocab_size=6)
    assert tokenizer.words == ["a", "c", "b"]
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.end_id, tokenizer.n_vocab) == (0, 1, 5, 6)
    assert tokenizer.encode("A, e: b!") == [2, 1, 4]
    assert tokenizer.decode([2, 1, 0, 4, 99], unknown="replace") == "a <unk> <pad> b <unk>"
    assert WordTokenizer.train(["b a c a", "d C e"]).words == ["a", "c", "b", "d", "e"]


def test_the_vocabulary_has_the_markers() -> None:
    tokenizer = WordTokenizer(words=["a"])
    assert tokenizer.vocabulary() == [(0, b"<pad>"), (1, b"<unk>"), (2, b"a"), (3, b"<|endoftext|>")]


def test_a_stream_has_the_same_spaces() -> None:
    stream = WordTokenizer(words=["a", "b"]).stream()
    assert [stream.push(2), stream.push(3), stream.push(1), stream.finish()] == ["a", " b", " <unk>", ""]
    assert stream.push(2) == "a"


@pytest.mark.parametrize("vocab_size", [9, 3, 0, -1])
def test_a_size_that_the_text_does_not_allow(vocab_size: int) -> None:
    with pytest.raises(
        SettingError, match=rf"tokenizer.vocab_size = {vocab_size}: expected 4 to 8: .* 5 different words"
    ):
        WordTokenizer.train(["a b c d e"], vocab_size=vocab_size)
    assert WordTokenizer.train(["a b c d e"], vocab_size=8).n_vocab == 8


def test_no_words_is_an_error() -> None:
    with pytest.raises(InputError, match="no word"):
        WordTokenizer.train(["!!! ---"])


@pytest.mark.parametrize("words", [["a", "a"], ["<unk>"], [""]])
def test_each_word_is_given_once(words: list[str]) -> None:
    with pytest.raises(SettingError, match=r"tokenizer\.words"):
        WordTokenizer(words=words)
