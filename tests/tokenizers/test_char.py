from pathlib import Path

import pytest

from tessera.errors import InputError, SettingError
from tessera.tokenizers.char import CharTokenizer


def test_ids_are_places_in_the_sorted_alphabet() -> None:
    tokenizer = CharTokenizer.train(["hello", " world"])
    assert tokenizer.alphabet == " dehlorw"
    assert tokenizer.encode("hello") == [3, 2, 4, 4, 5]
    assert (tokenizer.unk_id, tokenizer.end_id, tokenizer.n_vocab, tokenizer.pad_id) == (8, 9, 10, None)


def test_the_unknown_is_defined_both_ways() -> None:
    tokenizer = CharTokenizer.train(["abc"])
    assert tokenizer.encode("a?c") == [0, 3, 2]
    assert tokenizer.decode([0, 3, 2]) == "a\ufffdc"
    assert tokenizer.vocabulary() == [(0, b"a"), (1, b"b"), (2, b"c"), (3, "\ufffd".encode()), (4, b"<|endoftext|>")]


def test_tiny_shakespeare_has_65_characters(shared_data: Path) -> None:
    text = (shared_data / "text" / "tinyshakespeare.txt").read_text(encoding="utf-8")
    tokenizer = CharTokenizer.train([text])
    assert len(tokenizer.alphabet) == 65
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("texts", [[], [""], ["<|endoftext|>"]])
def test_no_text_is_an_error(texts: list[str]) -> None:
    with pytest.raises(InputError, match="no text"):
        CharTokenizer.train(texts)


@pytest.mark.parametrize("alphabet", ["", "aba"])
def test_an_alphabet_has_each_character_once(alphabet: str) -> None:
    with pytest.raises(SettingError, match=r"tokenizer\.alphabet"):
        CharTokenizer(alphabet=alphabet)
