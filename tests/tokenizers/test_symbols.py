from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.errors import InputError, SettingError
from tessera.tokenizers import load_tokenizer, tokenizer_from_json, train_tokenizer
from tessera.tokenizers.symbols import SymbolTokenizer, split_symbols

NOTES = "C4 E4 G4 C4\nD4 F#4 C4\n"
WAYS: list[dict[str, Any]] = [
    {"separator": separator, "newline": newline}
    for separator in (None, "", ",", " | ", "--", "aba")
    for newline in ("separator", "symbol")
]
pieces = st.text(st.sampled_from("ab,| -\t\r\n\u2028é\U0001f3b5"), max_size=25)
words = st.text(st.characters(codec="utf-8", exclude_categories=["Z", "C"]), min_size=1, max_size=4)


def streamed(tokenizer: SymbolTokenizer, ids: list[int]) -> str:
    stream = tokenizer.stream()
    return "".join([*map(stream.push, ids), stream.finish()])


def of_letters(**more: Any) -> SymbolTokenizer:
    return SymbolTokenizer(symbols=["a", "b", "é", "\U0001f3b5"], **more)


def test_the_most_frequent_symbols_then_their_characters() -> None:
    tokenizer = SymbolTokenizer.train([NOTES])
    assert tokenizer.vocabulary() == [
        (0, b"<pad>"),
        (1, b"<unk>"),
        (2, b"C4"),
        (3, b"D4"),
        (4, b"E4"),
        (5, b"F#4"),
        (6, b"G4"),
        (7, b"<|endoftext|>"),
    ]
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.end_id, tokenizer.n_vocab) == (0, 1, 7, 8)
    assert tokenizer.encode("G4\tC4  B4") == [6, 2, 1]
    assert tokenizer.decode([6, 2, 1]) == "G4 C4 <unk>"
    assert SymbolTokenizer.train([NOTES], min_count=2).symbols == ["C4"]
    assert SymbolTokenizer.train([NOTES], vocab_size=5).n_vocab == 5
    assert SymbolTokenizer.train([NOTES], vocab_size=500).n_vocab == 8


@pytest.mark.parametrize(
    ("separator", "newline", "text", "symbols"),
    [
        (None, "separator", " a  b\tc\r\nd\n", ["a", "b", "c", "d"]),
        (None, "symbol", "a b\r\n\nc\n", ["a", "b", "\n", "\n", "c", "\n"]),
        ("", "separator", "MKV\nLA", ["M", "K", "V", "L", "A"]),
        ("", "symbol", "MK V\rL", ["M", "K", " ", "V", "\n", "L"]),
        (",", "separator", "e4,e5,\n\n,d 4", ["e4", "e5", "d 4"]),
        (",", "symbol", "e4,e5\nd4", ["e4", "e5", "\n", "d4"]),
        ("--", "separator", "a---b", ["a", "-b"]),
        (None, "separator", "", []),
        ("", "separator", "", []),
        (",", "symbol", "", []),
    ],
)
def test_how_a_text_is_split(separator: str | None, newline: Any, text: str, symbols: list[str]) -> None:
    assert split_symbols(text, separator, newline) == symbols


def test_lines_come_back_as_they_were() -> None:
    tokenizer = SymbolTokenizer.train([NOTES], newline="symbol")
    assert tokenizer.encode("C4 D4\nE4")[2] == 2
    assert tokenizer.decode(tokenizer.encode(NOTES)) == NOTES
    moves = SymbolTokenizer.train(["e4, e5\nd4"], separator=", ", newline="symbol")
    assert moves.decode(moves.encode("d4, e5\n\ne4")) == "d4, e5\n\ne4"
    stream = moves.stream()
    assert [stream.push(id) for id in moves.encode("d4, e5\ne4")] == ["d4", ", e5", "\n", "e4"]
    assert stream.finish() == ""
    assert stream.push(moves.encode("e5")[0]) == "e5"


def test_a_protein_needs_no_separator() -> None:
    tokenizer = SymbolTokenizer.train(["MKVLAAGIVG", "MKTAYIAKQR"], separator="")
    assert len(tokenizer.symbols) == 11
    assert tokenizer.decode(tokenizer.encode("MKVYQ")) == "MKVYQ"


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_known_symbols_come_back_and_encode_to_the_same_ids(way: dict[str, Any], data: st.DataObject) -> None:
    tokenizer = of_letters(**way)
    ids = data.draw(st.lists(st.integers(1, tokenizer.n_vocab - 2), max_size=12))
    if tokenizer.split_at == "":
        ids = [id for id in ids if id != tokenizer.unk_id]  # spelled out, it is five characters
    text = tokenizer.decode(ids)
    assert tokenizer.encode(text) == ids
    assert streamed(tokenizer, ids) == text
    assert tokenizer.encode_symbols(tokenizer.decode_symbols(ids)) == ids
    assert tokenizer.encode(tokenizer.decode([*ids, tokenizer.end_id, *ids]), specials="all") == [
        *ids,
        tokenizer.end_id,
        *ids,
    ]


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=80, deadline=None)
@given(parts=st.lists(pieces, max_size=5))
def test_a_text_in_parts_is_the_whole_text(way: dict[str, Any], parts: list[str]) -> None:
    tokenizer = of_letters(**way)
    try:
        whole = tokenizer.encode("".join(parts))
    except InputError:
        return  # two separators in a row
    assert np.concatenate(list(tokenizer.encode_parts(parts))).tolist() == whole


def test_a_long_text_in_parts_does_not_wait_for_its_end() -> None:
    for way in WAYS:
        tokenizer = of_letters(**way)
        text = tokenizer.decode([4] * 1000)
        assert tokenizer.settled(text) > len(text) - 12, way


@settings(max_examples=40, deadline=None)
@given(sequences=st.lists(st.lists(words, min_size=1, max_size=8), min_size=1, max_size=4))
def test_lists_and_their_text_are_the_same(sequences: list[list[str]]) -> None:
    tokenizer = SymbolTokenizer.from_sequences(sequences)
    assert tokenizer.state() == SymbolTokenizer.train([" ".join(sequence) for sequence in sequences]).state()
    for sequence in sequences:
        ids = tokenizer.encode_symbols(sequence)
        assert tokenizer.decode_symbols(ids) == sequence
        assert tokenizer.encode(" ".join(sequence)) == ids
    assert tokenizer_from_json(tokenizer.to_json()).state() == tokenizer.state()


def test_an_unknown_symbol_is_an_error_on_request(tmp_path: Path) -> None:
    tokenizer = SymbolTokenizer.train([NOTES], on_unknown="error")
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    assert loaded.encode("C4 D4") == tokenizer.encode("C4 D4")
    with pytest.raises(InputError, match=r"symbol 1 of the sequence, 'H4', is not in the vocabulary"):
        loaded.encode("C4 H4")
    with pytest.raises(InputError, match=r"symbol 0 of the sequence, '<unk>'"):
        loaded.encode("<unk>")


def test_the_markers_are_never_made_by_a_text() -> None:
    tokenizer = SymbolTokenizer.train(["a <unk> <pad> <unk> b"])
    assert tokenizer.symbols == ["a", "b"]
    assert tokenizer.encode("<pad> a <unk>") == [1, 2, 1]
    assert tokenizer.decode_symbols([0, 1, 2, tokenizer.end_id or 0]) == ["<pad>", "<unk>", "a", "<|endoftext|>"]


def test_two_separators_in_a_row_are_an_error() -> None:
    with pytest.raises(InputError, match=r"no symbol between two separators ',' at character 1 of the line 'a,,b'"):
        of_letters(separator=",").encode("b\na,,b")


@pytest.mark.parametrize(
    ("symbols", "more"),
    [
        (["a", "a"], {}),
        (["<unk>"], {}),
        ([""], {}),
        (["a b"], {}),
        (["a\n"], {}),
        (["a,b"], {"separator": ","}),
        (["a,"], {"separator": ","}),
        (["ab"], {"separator": ""}),
        (["\n"], {"newline": "symbol", "separator": ""}),
        (["x<|endoftext|>"], {}),
    ],
)
def test_a_symbol_must_come_back_from_the_text(symbols: list[str], more: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=r"tokenizer\.symbols"):
        SymbolTokenizer(symbols=symbols, **more)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"min_count": 0}, r"tokenizer\.min_count = 0"),
        ({"vocab_size": 3}, r"tokenizer\.vocab_size = 3: expected 4 or more"),
        ({"newline": "symbol", "vocab_size": 4}, r"tokenizer\.vocab_size = 4: expected 5 or more"),
        ({"separator": "\n"}, r"tokenizer\.separator = .*tokenizer\.newline"),
        ({"newline": "keep"}, r"tokenizer\.newline = 'keep': expected 'separator' or 'symbol'"),
        ({"on_unknown": "skip"}, r"tokenizer\.on_unknown = 'skip'"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        train_tokenizer({"name": "symbols", **settings}, [NOTES])


@pytest.mark.parametrize(("texts", "min_count"), [([], 1), ([" \n"], 1), (["<|endoftext|>"], 1), (["a b"], 2)])
def test_no_symbol_is_an_error(texts: list[str], min_count: int) -> None:
    with pytest.raises(InputError, match="no symbol in the text"):
        SymbolTokenizer.train(texts, min_count=min_count)


def test_more_specials_can_be_added_later() -> None:
    tokenizer = SymbolTokenizer.train([NOTES], newline="symbol").with_specials({"<|bar|>": None})
    assert tokenizer.newline == "symbol"
    assert tokenizer.encode("C4<|bar|>D4", specials="all") == [
        *tokenizer.encode("C4"),
        tokenizer.specials["<|bar|>"],
        *tokenizer.encode("D4"),
    ]
