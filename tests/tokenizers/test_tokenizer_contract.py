"""The promises that every kind keeps: each test runs over every entry of TOKENIZERS."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.errors import DamagedError, InputError, SettingError, StorageError
from tessera.tokenizers import (
    TOKENIZERS,
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    load_tokenizer,
    tokenizer_from_json,
    tokenizer_from_state,
    train_tokenizer,
)

CORPUS = ["the cat sat on the mat, the cat ran\n", "naïve café: 日本語 \u2013 123 {x: 'y'}\n    return 1\r\n\t🙂"]
SIZES = {"bpe": 300, "bpe-naive": 290}
BYTE_LEVEL = ["byte", "bpe", "bpe-naive"]
HARD = [
    "",
    " ",
    "?",
    "\n \n",
    "text that ends in a space after a line \n ",
    "    four\tand a tab\r\n\r\nwindows  ",
    "don't DON'T we'll I'M it'\u017f",
    "1234567890 3.14159",
    "日本語のテキスト、한국어, العربية, עברית, ไทย",
    "🙂🇩🇪👩‍👩‍👧‍👦 e\u0301 \u200b\ufeff\u0000\x1c\x1d\x85\u2028",
    "the <|endoftext|> of <|end the cat<|endoftext|><|endoftext|>",
    "\ufffd\U0010ffff<unk> <pad>",
    "aaaaaaaaaaaaaaaaaaaaaaaa" * 10,
]

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)


def trained(kind: str, **more: object) -> Tokenizer:
    size = {"vocab_size": SIZES[kind]} if kind in SIZES else {}
    return TOKENIZERS[kind].train(CORPUS, **size, **more)  # type: ignore[call-arg]


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return trained(request.param)


@pytest.fixture(scope="module", params=BYTE_LEVEL)
def byte_level(request: pytest.FixtureRequest) -> Tokenizer:
    return trained(request.param)


def streamed(tokenizer: Tokenizer, ids: list[int]) -> str:
    stream = tokenizer.stream()
    return "".join([*map(stream.push, ids), stream.finish()])


@pytest.mark.parametrize("hard", HARD)
def test_hard_strings_survive(tokenizer: Tokenizer, hard: str) -> None:
    ids = tokenizer.encode(hard)
    assert all(0 <= id < tokenizer.n_vocab for id in ids)
    assert streamed(tokenizer, ids) == tokenizer.decode(ids)
    assert tokenizer.encode(tokenizer.decode(ids)) == ids or tokenizer.kind in ("char", "word")
    if tokenizer.kind in BYTE_LEVEL:
        assert tokenizer.decode(ids) == hard
        assert tokenizer.decode_bytes(ids) == hard.encode()


@settings(max_examples=60, deadline=None)
@given(text=text)
def test_byte_level_kinds_round_trip_every_text(byte_level: Tokenizer, text: str) -> None:
    assert byte_level.decode(byte_level.encode(text)) == text
    assert byte_level.decode(byte_level.encode(text, specials="all")) == text


@settings(max_examples=60, deadline=None)
@given(ids=st.lists(st.integers(-2, 320), max_size=30))
def test_stream_equals_decode_for_any_ids(tokenizer: Tokenizer, ids: list[int]) -> None:
    assert streamed(tokenizer, ids) == tokenizer.decode(ids)


def test_stream_waits_for_a_whole_character() -> None:
    stream = ByteTokenizer().stream()
    pieces = [stream.push(byte) for byte in "é🙂".encode()]
    assert pieces == ["", "é", "", "", "", "🙂"]
    assert stream.push(0xF0) == ""
    assert stream.finish() == "\ufffd"
    assert stream.push(ord("a")) == "a"


def test_every_kind_knows_the_end_of_a_document(tokenizer: Tokenizer) -> None:
    end = tokenizer.end_id
    assert end is not None
    assert tokenizer.encode("<|endoftext|>", specials="all") == [end]
    assert end not in tokenizer.encode("<|endoftext|>")
    assert tokenizer.decode([end]) == "<|endoftext|>"


def test_sparse_specials_survive_a_save(tokenizer: Tokenizer, tmp_path: Path) -> None:
    sparse = trained(tokenizer.kind, specials={"<|a|>": 70_000, "<|ab|>": None, "<|abc|>": 5_000})
    path = tmp_path / "tokenizer.json"
    sparse.save(path)
    loaded = load_tokenizer(path)
    assert type(loaded) is type(sparse)
    assert tokenizer_from_json(sparse.to_json()).state() == loaded.state()
    assert loaded.state() == sparse.state()
    assert loaded.fingerprint == sparse.fingerprint != tokenizer.fingerprint
    assert loaded.n_vocab == 70_001
    assert loaded.specials == sparse.specials
    ids = loaded.encode("the<|abc|>cat<|a|><|ab|>", specials="all")
    assert ids == sparse.encode("the<|abc|>cat<|a|><|ab|>", specials="all")
    assert [id for id in ids if id in loaded.specials.values()] == [5_000, 70_000, loaded.specials["<|ab|>"]]
    assert loaded.decode([5_000, 70_000]) == loaded.separator.decode().join(["<|abc|>", "<|a|>"])
    assert loaded.vocabulary() == sparse.vocabulary()
    assert loaded.vocabulary()[-1] == (70_000, b"<|a|>")


def test_only_the_allowed_specials_are_special() -> None:
    tokenizer = ByteTokenizer(specials=["<|a|>", "<|b|>"])
    assert tokenizer.encode("<|a|><|b|>", specials={"<|b|>"}) == [*b"<|a|>", 257]
    with pytest.raises(SettingError, match=r"specials has no '<\|c\|>'"):
        tokenizer.encode("", specials={"<|c|>"})
    with pytest.raises(SettingError, match="'none', 'all' or a set"):
        tokenizer.encode("", specials="<|a|>")


def test_a_batch_is_arrays_of_the_smallest_type(tokenizer: Tokenizer) -> None:
    arrays = tokenizer.encode_batch(CORPUS)
    assert [array.tolist() for array in arrays] == [tokenizer.encode(text) for text in CORPUS]
    assert {array.dtype for array in arrays} == {np.dtype(np.uint16)}
    wide = trained(tokenizer.kind, specials={"<|x|>": 2**16})
    assert wide.encode_batch(["<|x|>"], specials="all")[0].dtype == np.uint32
    fits = trained(tokenizer.kind, specials={"<|x|>": 2**16 - 1})
    assert fits.encode_batch(["<|x|>"], specials="all")[0].tolist() == [2**16 - 1]
    assert fits.dtype == np.uint16


def test_ids_may_be_arrays_and_tensors(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(CORPUS[0])
    assert tokenizer.decode(np.array(ids)) == tokenizer.decode(torch.tensor(ids)) == tokenizer.decode(ids)
    with pytest.raises(TypeError):
        tokenizer.decode([1.5])  # type: ignore[list-item]


def test_an_unknown_id_decodes_to_something_defined(tokenizer: Tokenizer) -> None:
    expected = "<unk>" if tokenizer.kind == "word" else "\ufffd"
    assert tokenizer.decode([tokenizer.n_vocab]) == tokenizer.decode([-1]) == tokenizer.decode([10**12]) == expected


@pytest.mark.parametrize("surrogate", ["a\ud800", "\udcff", "\udc00\ud800"])
def test_a_lone_surrogate_is_a_clear_error(tokenizer: Tokenizer, surrogate: str) -> None:
    with pytest.raises(InputError, match=r"character \d of the text is a lone surrogate \(U\+D[8C]"):
        tokenizer.encode(surrogate)
    if tokenizer.kind != "byte":
        with pytest.raises(InputError, match="lone surrogate"):
            type(tokenizer).train(["abc", surrogate])


def test_specials_take_no_part_in_training(tokenizer: Tokenizer) -> None:
    size = {"vocab_size": SIZES[tokenizer.kind]} if tokenizer.kind in SIZES else {}
    joined = type(tokenizer).train(["<|endoftext|>".join(CORPUS)], **size)  # type: ignore[call-arg]
    assert joined.vocabulary() == tokenizer.vocabulary()
    assert sum(b"|" in token for _, token in joined.vocabulary() if len(token) > 1) == 1


@pytest.mark.parametrize("cut", [0, 1, 60, -2])
def test_a_truncated_file_is_damaged(tokenizer: Tokenizer, tmp_path: Path, cut: int) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    content = path.read_bytes()
    path.write_bytes(content[: cut % len(content)])
    with pytest.raises(DamagedError, match=r"tokenizer.json is damaged"):
        load_tokenizer(path)


def test_a_changed_file_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    CharTokenizer(alphabet="abc").save(path)
    path.write_text(path.read_text().replace('"abc"', '"abd"'))
    with pytest.raises(DamagedError, match="sha256"):
        load_tokenizer(path)
    with pytest.raises(DamagedError, match="sha256"):
        CharTokenizer.load(path)
    with pytest.raises(DamagedError, match=r"run\.db is damaged: .*sha256"):
        tokenizer_from_json(path.read_text(), "run.db")


def test_a_save_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tokenizer.json"
    CharTokenizer(alphabet="abc").save(path)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"cannot write .*tokenizer.json: No space left"):
        CharTokenizer(alphabet="xyz").save(path)
    assert list(tmp_path.iterdir()) == [path]
    assert CharTokenizer.load(path).alphabet == "abc"


def test_errors_of_load(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_tokenizer(tmp_path / "none.json")
    with pytest.raises(InputError, match="cannot be read"):
        load_tokenizer(tmp_path)
    ByteTokenizer().save(tmp_path / "byte.json")
    with pytest.raises(InputError, match="of kind 'byte', not 'char'"):
        CharTokenizer.load(tmp_path / "byte.json")
    with pytest.raises(StorageError, match="cannot write"):
        ByteTokenizer().save(tmp_path / "none" / "byte.json")


def test_errors_of_a_state(tokenizer: Tokenizer) -> None:
    state = json.loads(json.dumps(tokenizer.state()))
    assert tokenizer_from_state(state).fingerprint == tokenizer.fingerprint
    with pytest.raises(InputError, match="kind 'letters'; known are char, word, byte"):
        tokenizer_from_state(state | {"kind": "letters"})
    with pytest.raises(InputError, match="version 99"):
        tokenizer_from_state(state | {"version": 99})
    with pytest.raises(InputError, match="not the state of a tokenizer"):
        tokenizer_from_state({"kind": tokenizer.kind, "version": 1})


def test_a_spec_trains_and_mistakes_are_named(tokenizer: Tokenizer) -> None:
    size = {"vocab_size": SIZES[tokenizer.kind]} if tokenizer.kind in SIZES else {}
    assert train_tokenizer({"name": tokenizer.kind, **size}, CORPUS).fingerprint == tokenizer.fingerprint
    with pytest.raises(SettingError, match=r"has no 'specialss'; did you mean 'specials'\?"):
        train_tokenizer({"name": tokenizer.kind, "specialss": []}, CORPUS)
    with pytest.raises(SettingError, match=r"tokenizer has no 'bpee'; did you mean 'bpe'\?"):
        train_tokenizer("bpee", CORPUS)
    with pytest.raises(SettingError, match=r"tokenizer\.vocab_size = 'many'"):
        train_tokenizer({"name": "bpe", "vocab_size": "many"}, CORPUS)
