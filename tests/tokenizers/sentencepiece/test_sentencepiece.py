import ast
import base64
import functools
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.errors import InputError
from tessera.tokenizers.sentencepiece.charsmap import Charsmap, parse_charsmap
from tessera.tokenizers.sentencepiece.model_file import dump_sentencepiece, load_sentencepiece
from tessera.tokenizers.sentencepiece.normalizer import Normalizer
from tessera.tokenizers.sentencepiece.piece_bpe import PieceBpe
from tessera.tokenizers.sentencepiece.piece_tokenizer import Piece, PieceTokenizer
from tessera.tokenizers.sentencepiece.protobuf import read_fields, write_message
from tessera.tokenizers.sentencepiece.unigram import UnigramTokenizer

PROSE = Path(ast.__file__).read_text().split("\n")  # English and code, on every machine
HARD = [
    "",
    " ",
    " two  spaces   ",
    "\u2581marks \u2581 \u2581",
    "ﬁne Ⅳ ½ ㌔ e\u0301 \u1100\u1161\u11a8 ｶﾞ",
    "a\u00a0b\u3000c\u200b\ufeff\u0000\x01\t\r\n d",
    "<s>x</s><unk><0x41>",
    "🙂👩‍👩‍👧 日本語 العربية " * 3,
    "aaaaaaaaaaaaaaaaaaaaaaaa" * 9,
]
text = st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(" \u2581aeo\u0301")), max_size=60)


@functools.cache
def trained(kind: str, **more: Any) -> bytes:
    """A model that the sentencepiece package trained on a little English and code."""
    sentencepiece = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    given = {"vocab_size": 900, "byte_fallback": False, "normalization_rule_name": "nmt_nfkc"} | more
    given = {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(PROSE), model_writer=model, model_type=kind, minloglevel=2, **given
    )
    return model.getvalue()


def processor(content: bytes) -> Any:
    return pytest.importorskip("sentencepiece").SentencePieceProcessor(model_proto=content)


PLAIN = {"byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False}
USER = ("\u2581\u2581", "self", "<x>", "def\u2581")
MODELS = [
    {},
    PLAIN,
    {"normalization_rule_name": "identity"},
    {"normalization_rule_name": "nfkc_cf", "byte_fallback": True, "add_dummy_prefix": False},
    {"user_defined_symbols": USER},
    PLAIN | {"user_defined_symbols": USER, "control_symbols": ("<c>",), "pad_id": 3},
    {"split_by_whitespace": False, "unk_id": 2, "bos_id": 0, "eos_id": 1},
]


@pytest.mark.parametrize("more", MODELS, ids=str)
@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_the_ids_are_those_of_sentencepiece(kind: str, more: dict[str, Any]) -> None:
    content = trained(kind, **more)
    ours, theirs = load_sentencepiece(content, "m.model"), processor(content)
    again = processor(dump_sentencepiece(ours))
    assert ours.n_vocab == theirs.vocab_size()

    @settings(max_examples=150, deadline=None)
    @given(text=text)
    def check(text: str) -> None:
        ids = theirs.encode(text)
        assert ours.encode_ordinary(text) == ids
        assert again.encode(text) == ids

    check()
    for line in [*HARD, *PROSE[:300], "\n".join(PROSE)]:
        ids = theirs.encode(line)
        assert ours.encode_ordinary(line) == ids == again.encode(line)
        if theirs.unk_id() not in ids and "\u2581" not in line:
            assert ours.decode(ids) == theirs.decode(ids)
    assert type(ours).from_state(ours.state()).encode_ordinary(PROSE[9]) == theirs.encode(PROSE[9])


def test_a_real_model(shared_data: Path) -> None:
    content = (shared_data / "tokenizers" / "sentencepiece_2000.model").read_bytes()
    ours, theirs = load_sentencepiece(content, "real"), processor(content)
    assert (ours.begin, ours.end, ours.specials) == ("<s>", "</s>", {"<s>": 1, "</s>": 2})
    for path in sorted((shared_data / "text").iterdir()):
        whole = path.read_text()
        assert ours.encode_ordinary(whole) == theirs.encode(whole), path
        lines = whole.split("\n")[:400]
        assert [ours.encode_ordinary(line) for line in lines] == theirs.encode(lines)


@pytest.mark.slow
@settings(max_examples=20_000, deadline=None)
@given(text=text)
def test_a_real_model_on_any_text(shared_data: Path, text: str) -> None:
    ours, theirs = _real(shared_data)
    assert ours.encode_ordinary(text) == theirs.encode(text)


@functools.cache
def _real(folder: Path) -> tuple[PieceTokenizer, Any]:
    content = (folder / "tokenizers" / "sentencepiece_2000.model").read_bytes()
    return load_sentencepiece(content, "real"), processor(content)


@pytest.mark.parametrize("kind", [UnigramTokenizer, PieceBpe])
@pytest.mark.parametrize("byte_fallback", [True, False])
def test_what_we_train_gives_the_same_ids_there(kind: Any, byte_fallback: bool) -> None:
    ours = kind.train(PROSE, vocab_size=700, byte_fallback=byte_fallback, specials=["<s>", "</s>"])
    theirs = processor(dump_sentencepiece(ours))
    back = load_sentencepiece(dump_sentencepiece(ours), "back")
    for line in [*HARD, *PROSE[:300], "\n".join(PROSE)]:
        if "\u2581" not in line:
            ids = ours.encode_ordinary(line)
            assert theirs.encode(line) == ids == back.encode_ordinary(line)
    assert theirs.decode(ours.encode(PROSE[0])) == PROSE[0]


def test_runs_of_equal_cuts_are_settled_as_there() -> None:
    content = trained("unigram")
    ours, theirs = load_sentencepiece(content, "m"), processor(content)
    for n in range(1, 40):
        line = " ".join(word + word[-1:] * (n * k % 11) for k, word in enumerate(PROSE[n].split()))
        assert ours.encode_ordinary(line * 9) == theirs.encode(line * 9)


def small(*more: tuple[int, Any], pieces: Any = (), trainer: Any = ((3, 1),), rules: Any = ()) -> bytes:
    rows = [((1, b"<unk>"), (3, 2)), ((1, b"a"), (2, -1.0)), *pieces]
    written = [(1, write_message(row)) for row in rows]
    return write_message([*written, (2, write_message(trainer)), (3, write_message(rules)), *more])


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (small(trainer=[(3, 3)]), "a model of type word: expected unigram or bpe"),
        (small(trainer=[(3, 4)]), "a model of type char"),
        (small(trainer=[(24, 1)]), "treat_whitespace_as_suffix"),
        (small(trainer=[(35, 1)]), "0 byte pieces, with byte_fallback = true"),
        (small(pieces=[((1, b"<0x41>"), (3, 6))]), "1 byte pieces, with byte_fallback = false"),
        (small(pieces=[((1, b"a"), (2, -2.0))]), "'a', is there twice"),
        (small(pieces=[((1, b""),)]), "piece 2: text '', score 0.0, type 1: not a piece"),
        (small(pieces=[((1, b"b"), (3, 9))]), "type 9: not a piece"),
        (small(pieces=[((1, b"b"), (2, float("nan")))]), "score nan"),
        (small(pieces=[((1, b"\xff"),)]), "not UTF-8"),
        (small(pieces=[((1, b"a b"),)]), "holds a space"),
        (small(pieces=[((1, 7),)]), "field 1 holds a number, not bytes"),
        (small(pieces=[((1, b"<u>"), (3, 2))]), "2 unknown ones"),
        (small(rules=[(2, b"abc")]), "table of characters is damaged"),
        (small(rules=[(2, b"\xff\xff\xff\xffabc")]), "table of characters is damaged"),
        (write_message([(1, write_message([(1, b"a")]))]), "no unknown piece"),
        (b"", "no unknown piece"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "a field of 9223372036854775807 bytes"),
        (b"\x80" * 40, "a number does not end"),
        (b"\x0a\x80", "a number does not end"),
        (b"\x0b", "no field has the key 11"),
        (b"\x0d\x00", "a field of 4 bytes"),
    ],
)
def test_a_model_that_cannot_be_read(content: bytes, why: str) -> None:
    with pytest.raises(InputError, match=f"m.model.*{why}"):
        load_sentencepiece(content, "m.model")


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_damaged_model_is_an_error_or_a_model(data: st.DataObject) -> None:
    content = bytearray(small_model())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content))) :]
    for _ in range(data.draw(st.integers(0, 4))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        ours = load_sentencepiece(bytes(content), "m.model")
        ours.decode(ours.encode_ordinary("the ﬁne cat e\u0301\u0323 x"))
    except InputError as error:
        assert "m.model" in str(error) or "table of characters" in str(error)


@functools.cache
def small_model() -> bytes:
    """A whole model of few bytes, with the beginning of a real table of characters."""
    charsmap = base64.b64decode(load_sentencepiece(trained("unigram"), "m").normalizer.steps[0][1]["charsmap"])
    pieces = [((1, piece.encode()), (2, -1.5)) for piece in ["\u2581the", "t", "h", "e", "\u2581", "c", "at"]]
    return small(pieces=pieces, rules=[(1, b"nfkc"), (2, charsmap)])


def test_every_mutation_of_the_head_of_a_model() -> None:
    content = small(pieces=[((1, b"b"), (2, -1.5)), ((1, b"<s>"), (3, 3))], rules=[(3, 1), (4, 0)])
    for place in range(len(content)):
        for value in range(256):
            mutant = content[:place] + bytes([value]) + content[place + 1 :]
            try:
                load_sentencepiece(mutant, "m.model").encode_ordinary("ab c")
            except InputError as error:
                assert "m.model" in str(error)


def unpacked(content: bytes) -> dict[str, str]:
    """The table as a dict, by trying every byte at every node."""
    units, values = parse_charsmap(content)
    table, waiting = {}, [(b"", 0)]
    while waiting:
        key, node = waiting.pop()
        base = node ^ ((int(units[node]) >> 10) << ((int(units[node]) & 512) >> 6))
        if key and int(units[node]) & 256:
            start = int(units[base]) & 0x7FFFFFFF
            table[key.decode()] = values[start : values.index(b"\0", start)].decode()
        places = base ^ np.arange(1, 256)
        inside = places < len(units)
        hits = (units[np.where(inside, places, 0)] & 0x800000FF) == np.arange(1, 256)
        waiting += [(key + bytes([byte + 1]), int(places[byte])) for byte in np.nonzero(inside & hits)[0]]
    return table


@pytest.mark.slow
def test_a_table_of_characters_replaces_its_longest_keys() -> None:
    step = load_sentencepiece(trained("unigram"), "m").normalizer.steps[0][1]
    content = base64.b64decode(step["charsmap"])
    table = unpacked(content)
    longest = max(map(len, table))

    @settings(max_examples=2000, deadline=None)
    @given(text=st.one_of(text, st.lists(st.sampled_from(sorted(table)), max_size=8).map("".join)))
    def check(text: str) -> None:
        at, out = 0, ""
        while at < len(text):
            keys = (text[at : at + size] for size in range(longest, 0, -1))
            key = next((key for key in keys if key in table), None)
            out += text[at] if key is None else table[key]
            at += len(key or "x")
        assert Charsmap(content).by_longest_key(text) == out

    check()


def test_what_a_model_cannot_hold() -> None:
    pieces = {0: Piece("<unk>", 0.0, "unknown"), 1: Piece("a", -1.0)}
    for tokenizer, why in [
        (UnigramTokenizer(pieces=pieces, specials={"<s>": 9}), "no gaps"),
        (UnigramTokenizer(pieces=pieces, normalizer=Normalizer(steps=[("unicode", {"form": "NFC"})])), "normalizer"),
        (UnigramTokenizer(pieces=pieces, unknown_score=-3.0), "unknown_score"),
        (PieceBpe(pieces=pieces, merges=[]), "list of pairs"),
        (PieceBpe(pieces=pieces, fuse_unknown=False), "fuse_unknown"),
    ]:
        with pytest.raises(InputError, match=why):
            dump_sentencepiece(tokenizer)


def test_the_wire_format() -> None:
    message = write_message([(1, 150), (2, b"testing"), (3, -1), (4, 0.5)])
    assert list(read_fields(message, "m")) == [
        (1, 0, 150),
        (2, 2, b"testing"),
        (3, 0, 2**64 - 1),
        (4, 5, b"\x00\x00\x00\x3f"),
    ]
    assert re.fullmatch("089601.*", message.hex())
