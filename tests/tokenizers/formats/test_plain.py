from pathlib import Path

import pytest

from tessera.errors import InputError
from tessera.tokenizers import CharTokenizer, WordTokenizer, import_tokenizer, load_vocabulary


def test_a_list_of_characters(tmp_path: Path) -> None:
    path = tmp_path / "characters.txt"
    path.write_text("\ufeff<unk>\nb\na\n{\n \n\\n\n\\\n日\r\n<|endoftext|>\n", encoding="utf-8", newline="")
    loaded = load_vocabulary("char", path)
    assert loaded.decode(range(loaded.n_vocab)) == "ba{ \n\\日\ufffd<|endoftext|>"
    assert import_tokenizer(path).fingerprint == loaded.fingerprint


def test_a_list_of_words(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("<pad>\n<unk>\nThe\ncat\nthe\n\nisn't\n", encoding="utf-8")
    loaded = load_vocabulary("word", path, specials=[])
    assert loaded.decode(range(loaded.n_vocab)) == "<pad> <unk> the cat isnt"
    assert loaded.encode("The cat isn't!") == [2, 3, 4]
    assert import_tokenizer(path, specials=[]).fingerprint == loaded.fingerprint


@pytest.mark.parametrize("first", ["", "{", "[", "1"])
def test_the_first_character_does_not_look_like_another_format(tmp_path: Path, first: str) -> None:
    (tmp_path / "list").write_text(f"{first}\nx\nyy"[:4] + "\n")
    assert isinstance(import_tokenizer(tmp_path / "list"), CharTokenizer)


def test_words_of_one_letter_are_words_where_that_is_said(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("a\ni\n")
    assert isinstance(import_tokenizer(tmp_path / "list"), CharTokenizer)
    assert isinstance(import_tokenizer(tmp_path / "list", format="word"), WordTokenizer)


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("char", b"a\nbc\n", "line 2: 'bc' is not one new character"),
        ("char", b"a\na\n", "line 2: 'a'"),
        ("char", b"\n", "no character"),
        ("char", b"\xff\xfe", "not UTF-8 text"),
        ("word", b"a\ntwo words\n", "line 2: 'two words' is not one word"),
        ("word", b"--\n", "line 1"),
        ("word", b"", "no word"),
    ],
)
def test_wrong_lists_name_the_line(tmp_path: Path, kind: str, content: bytes, message: str) -> None:
    (tmp_path / "list").write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_vocabulary(kind, tmp_path / "list")
