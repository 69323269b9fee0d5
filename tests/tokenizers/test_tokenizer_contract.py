"""The promises that every kind keeps: each test runs over every entry of TOKENIZERS."""

import json
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tiktoken
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
NUMBERS = ["0.5 1 2 3.5 7 -1e-3", "4, 10, -2"]
SIZES = {"bpe": 300, "bpe-naive": 290, "unigram": 305, "bpe-pieces": 310}
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

HARD_NUMBERS = [
    "",
    " ",
    "\n,\n",
    "\r\n1\r\n2\r\n\r\n",
    "-0.0\t1e300 +.5",
    "5e-324, 1.,-7",
    " ".join(map(str, range(500))),
]

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)


def corpus(kind: str) -> list[str]:
    return NUMBERS if kind == "bins" else CORPUS


def trained(kind: str, **more: object) -> Tokenizer:
    size = {"vocab_size": SIZES[kind]} if kind in SIZES else {}
    return TOKENIZERS[kind].train(corpus(kind), **size, **more)  # type: ignore[call-arg]


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return trained(request.param)


@pytest.fixture(scope="module", params=BYTE_LEVEL)
def byte_level(request: pytest.FixtureRequest) -> Tokenizer:
    return trained(request.param)


def streamed(tokenizer: Tokenizer, ids: list[int]) -> str:
    stream = tokenizer.stream(unknown="replace")
    return "".join([*map(stream.push, ids), stream.finish()])


@pytest.mark.parametrize("number", range(len(HARD)))
def test_hard_strings_survive(tokenizer: Tokenizer, number: int) -> None:
    hard = HARD_NUMBERS[number % len(HARD_NUMBERS)] if tokenizer.kind == "bins" else HARD[number]
    ids = tokenizer.encode(hard, specials="none")
    assert all(0 <= id < tokenizer.n_vocab for id in ids)
    assert streamed(tokenizer, ids) == tokenizer.decode(ids)
    assert tokenizer.encode(tokenizer.decode(ids), specials="none") == ids or tokenizer.kind in ("char", "word")
    if tokenizer.kind in BYTE_LEVEL:
        assert tokenizer.decode(ids) == hard
        assert tokenizer.decode_bytes(ids) == hard.encode()


@settings(max_examples=60, deadline=None)
@given(text=text)
def test_byte_level_kinds_round_trip_every_text(byte_level: Tokenizer, text: str) -> None:
    assert byte_level.decode(byte_level.encode(text, specials="none")) == text
    assert byte_level.decode(byte_level.encode(text, specials="all")) == text


@settings(max_examples=60, deadline=None)
@given(ids=st.lists(st.integers(-2, 320), max_size=30))
def test_stream_equals_decode_for_any_ids(tokenizer: Tokenizer, ids: list[int]) -> None:
    assert streamed(tokenizer, ids) == tokenizer.decode(ids, unknown="replace")


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
    if tokenizer.kind == "bins":
        with pytest.raises(InputError, match="is no finite number"):
            tokenizer.encode("<|endoftext|>", specials="none")
    else:
        assert end not in tokenizer.encode("<|endoftext|>", specials="none")
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
    text = f"{corpus(tokenizer.kind)[0]}<|abc|>{corpus(tokenizer.kind)[1]}<|a|><|ab|>"
    ids = loaded.encode(text, specials="all")
    assert ids == sparse.encode(text, specials="all")
    assert [id for id in ids if id in loaded.specials.values()] == [5_000, 70_000, loaded.specials["<|ab|>"]]
    assert loaded.decode([5_000, 70_000]) == loaded.separator.decode().join(["<|abc|>", "<|a|>"])
    assert loaded.vocabulary() == sparse.vocabulary()
    assert loaded.vocabulary()[-1] == (70_000, b"<|a|>")


def test_what_is_allowed_becomes_an_id_and_the_rest_is_refused() -> None:
    tokenizer = ByteTokenizer(specials=["<|a|>", "<|b|>"])
    text = "<|a|><|b|>"
    assert tokenizer.encode(text, specials="all") == [256, 257]
    assert tokenizer.encode(text, specials="none") == [*text.encode()]
    assert tokenizer.encode(text, specials={"<|b|>"}, disallowed=()) == [*b"<|a|>", 257]
    assert tokenizer.encode(text, disallowed=()) == [*text.encode()]
    assert tokenizer.encode("<|b|>", disallowed={"<|a|>"}) == [*b"<|b|>"]
    for refused in ({}, {"specials": {"<|b|>"}}, {"disallowed": {"<|a|>"}}):
        with pytest.raises(InputError, match=r"holds the special token '<\|a\|>': say specials='all'"):
            tokenizer.encode(text, **refused)  # type: ignore[arg-type]
        with pytest.raises(InputError, match=r"special token '<\|a\|>'"):
            tokenizer.encode_array(text, **refused)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match=r"specials has no '<\|c\|>'"):
        tokenizer.encode("", specials={"<|c|>"})
    with pytest.raises(SettingError, match="'none', 'raise', 'all' or a set"):
        tokenizer.encode("", specials="<|a|>")
    with pytest.raises(SettingError, match=r"disallowed = '<\|a\|>'"):
        tokenizer.encode("", disallowed="<|a|>")


@settings(max_examples=100, deadline=None)
@given(text=st.text("<|ab> ", max_size=40), allowed=st.sets(st.sampled_from(["<|a|>", "<|ab|>", "<|a|><|b|>"])))
def test_specials_are_tiktokens(text: str, allowed: set[str]) -> None:
    specials = {"<|a|>": 300, "<|ab|>": 301, "<|a|><|b|>": 500}
    ranks = {bytes([byte]): byte for byte in range(256)}
    theirs = tiktoken.Encoding("s", pat_str=r"[\s\S]", mergeable_ranks=ranks, special_tokens=specials)
    ours = ByteTokenizer(specials=specials)
    # tiktoken tries the tokens in the order of a hash map, so only those without a longer one are comparable
    allowed -= {"<|a|>"} if "<|a|><|b|>" in allowed else set()
    assert ours.encode(text, specials=allowed, disallowed=()) == theirs.encode(
        text, allowed_special=allowed, disallowed_special=()
    )
    try:
        expected = theirs.encode(text, allowed_special=allowed)
    except ValueError:
        with pytest.raises(InputError, match="special token"):
            ours.encode(text, specials=allowed)
    else:
        assert ours.encode(text, specials=allowed) == expected


def test_special_tokens_are_added_later(tokenizer: Tokenizer, tmp_path: Path) -> None:
    more = tokenizer.with_specials({"<|user|>": None, "<|far|>": 9_999})
    assert more.specials == {"<|user|>": tokenizer.n_vocab, "<|far|>": 9_999, **tokenizer.specials}
    assert more.encode(corpus(tokenizer.kind)[0]) == tokenizer.encode(corpus(tokenizer.kind)[0])
    assert more.encode("<|user|>", specials="all") == [tokenizer.n_vocab]
    more.save(tmp_path / "tokenizer.json")
    assert load_tokenizer(tmp_path / "tokenizer.json").specials == more.specials
    assert "<|user|>" not in tokenizer.specials


@settings(max_examples=60, deadline=None)
@given(text=st.text("ab <|endoftext>\n\u65e5", max_size=60), cuts=st.lists(st.integers(0, 60), max_size=6))
def test_a_text_in_parts_has_the_ids_of_the_whole(tokenizer: Tokenizer, text: str, cuts: list[int]) -> None:
    if tokenizer.kind == "bins":
        text = "".join(" " if character.isspace() else "1" for character in text)
    places = [0, *sorted(cuts), len(text)]
    parts = [text[start:stop] for start, stop in pairwise(places)]
    for specials in ("none", "all"):
        arrays = list(tokenizer.encode_parts(parts, specials=specials))
        assert np.concatenate(arrays).tolist() == tokenizer.encode("".join(parts), specials=specials)
        assert {array.dtype for array in arrays} == {np.dtype(tokenizer.dtype)}


def test_a_file_has_the_ids_of_its_text(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    text = (corpus(tokenizer.kind)[1] if tokenizer.kind == "bins" else "one two\r\nthe <|endoftext|> caf\u00e9 ") * 20
    path.write_bytes(text.encode())
    assert np.concatenate(list(tokenizer.encode_file(path))).tolist() == tokenizer.encode(text, specials="none")
    path.write_bytes(b"good\xff")
    with pytest.raises(InputError, match=r"text.txt: not UTF-8 text"):
        list(tokenizer.encode_file(path))
    with pytest.raises(InputError, match="no such file"):
        list(tokenizer.encode_file(tmp_path / "none.txt"))


def test_a_batch_is_arrays_of_the_smallest_type(tokenizer: Tokenizer) -> None:
    texts = corpus(tokenizer.kind)
    arrays = tokenizer.encode_batch(texts)
    assert [array.tolist() for array in tokenizer.encode_batch(texts * 9, threads=3)] == 9 * [
        array.tolist() for array in arrays
    ]
    assert [array.tolist() for array in arrays] == [tokenizer.encode(text) for text in texts]
    assert {array.dtype for array in arrays} == {np.dtype(np.uint16)}
    wide = trained(tokenizer.kind, specials={"<|x|>": 2**16})
    assert wide.encode_batch(["<|x|>"], specials="all")[0].dtype == np.uint32
    fits = trained(tokenizer.kind, specials={"<|x|>": 2**16 - 1})
    assert fits.encode_batch(["<|x|>"], specials="all")[0].tolist() == [2**16 - 1]
    assert fits.dtype == np.uint16


def test_ids_may_be_arrays_and_tensors(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(corpus(tokenizer.kind)[0])
    assert tokenizer.decode(np.array(ids)) == tokenizer.decode(torch.tensor(ids)) == tokenizer.decode(ids)
    with pytest.raises(TypeError):
        tokenizer.decode([1.5])  # type: ignore[list-item]


def test_an_unknown_id_is_named_or_replaced(tokenizer: Tokenizer) -> None:
    expected = "<unk>" if tokenizer.kind in ("word", "symbols") else "\ufffd"
    for id in (tokenizer.n_vocab, -1, 10**12):
        assert tokenizer.decode([id], unknown="replace") == expected
        assert tokenizer.decode_batch([[id], []], unknown="replace") == [expected, ""]
        for decode in (tokenizer.decode, tokenizer.decode_bytes, lambda ids: tokenizer.stream().push(ids[0])):
            with pytest.raises(InputError, match=f"no token has the id {id}: this vocabulary ends at"):
                decode([id])
    with pytest.raises(SettingError, match="unknown = 'skip'"):
        tokenizer.decode([], unknown="skip")  # type: ignore[arg-type]


@pytest.mark.parametrize("surrogate", ["a\ud800", "\udcff", "\udc00\ud800"])
def test_a_lone_surrogate_is_a_clear_error(tokenizer: Tokenizer, surrogate: str) -> None:
    with pytest.raises(InputError, match=r"character \d of the text is a lone surrogate \(U\+D[8C]"):
        tokenizer.encode(surrogate)
    if tokenizer.kind != "byte":
        with pytest.raises(InputError, match="lone surrogate"):
            type(tokenizer).train(["123", surrogate])


def test_specials_take_no_part_in_training(tokenizer: Tokenizer) -> None:
    size = {"vocab_size": SIZES[tokenizer.kind]} if tokenizer.kind in SIZES else {}
    joined = type(tokenizer).train(["<|endoftext|>".join(corpus(tokenizer.kind))], **size)  # type: ignore[call-arg]
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
    assert (
        train_tokenizer({"name": tokenizer.kind, **size}, corpus(tokenizer.kind)).fingerprint == tokenizer.fingerprint
    )
    with pytest.raises(SettingError, match=r"has no 'specialss'; did you mean 'specials'\?"):
        train_tokenizer({"name": tokenizer.kind, "specialss": []}, CORPUS)
    with pytest.raises(SettingError, match=r"tokenizer has no 'bpee'; did you mean 'bpe'\?"):
        train_tokenizer("bpee", CORPUS)
    with pytest.raises(SettingError, match=r"tokenizer\.vocab_size = 'many'"):
        train_tokenizer({"name": "bpe", "vocab_size": "many"}, CORPUS)
