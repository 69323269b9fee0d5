import ast
import base64
import functools
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.errors import InputError
from tessera.tokenizers.sentencepiece.huggingface_pieces import from_huggingface_pieces, to_huggingface_pieces
from tessera.tokenizers.sentencepiece.model_file import load_sentencepiece
from tessera.tokenizers.sentencepiece.normalizer import Normalizer
from tessera.tokenizers.sentencepiece.piece_bpe import PieceBpe
from tessera.tokenizers.sentencepiece.piece_tokenizer import BYTE_NAMES, Piece
from tessera.tokenizers.sentencepiece.unigram import UnigramTokenizer

PROSE = Path(ast.__file__).read_text().split("\n")
MARK = "\u2581"
HARD = [
    "",
    " ",
    " two  spaces   ",
    "\u2581marks \u2581 \u2581",
    "a</s> b<s>",
    "<s>",
    " <s> x",
    "a\n\r\t\x1c b",
    "日本語🙂 " * 3,
]

# Characters whose properties are older than the Unicode tables of any of the libraries.
old = st.characters(exclude_categories=["Cs", "Cn", "Co"], max_codepoint=0x3FF)
text = st.text(st.one_of(old, st.sampled_from(" \u2581aeo\u0301日本🙂ﬁ")), max_size=50)
any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)

PREPEND, TO_MARK = (
    {"type": "Prepend", "prepend": MARK},
    {"type": "Replace", "pattern": {"String": " "}, "content": MARK},
)
SINGLE = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
WORDS = {"type": "WhitespaceSplit"}


def metaspace(scheme: str, split: bool) -> dict[str, Any]:
    return {"type": "Metaspace", "replacement": MARK, "prepend_scheme": scheme, "split": split}


def sequence(inside: str, *steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", inside: list(steps)}


@functools.cache
def charsmap() -> str:
    sentencepiece = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(PROSE), model_writer=model, vocab_size=400, minloglevel=2
    )
    return str(load_sentencepiece(model.getvalue(), "m").normalizer.steps[0][1]["charsmap"])


def precompiled() -> dict[str, Any]:
    return {"type": "Precompiled", "precompiled_charsmap": charsmap()}


SHAPES: dict[str, Any] = {
    "llama": lambda: (sequence("normalizers", PREPEND, TO_MARK), None),
    "mistral": lambda: (None, metaspace("first", False)),
    "always": lambda: ({"type": "NFKC"}, metaspace("always", True)),
    "never": lambda: (sequence("normalizers", {"type": "NFC"}, SINGLE), metaspace("never", True)),
    "t5": lambda: (precompiled(), sequence("pretokenizers", WORDS, metaspace("always", True))),
    "words": lambda: (
        {"type": "Strip", "strip_left": False, "strip_right": True},
        sequence("pretokenizers", WORDS, metaspace("first", True)),
    ),
    "xlm": lambda: (sequence("normalizers", precompiled(), SINGLE), metaspace("always", False)),
}


@functools.cache
def trained(shape: str, kind: str) -> str:
    """A tokenizer.json that the tokenizers package trained; Llama's has no pre-tokenizer but while it is trained."""
    tokenizers = pytest.importorskip("tokenizers")
    normalizer, pre_tokenizer = SHAPES[shape]()
    special = ["<unk>", "<s>", "</s>"]
    data = json.loads(tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>")).to_str())
    if kind == "unigram":
        data = json.loads(tokenizers.Tokenizer(tokenizers.models.Unigram()).to_str())
        trainer = tokenizers.trainers.UnigramTrainer(
            vocab_size=500, special_tokens=special, unk_token="<unk>", show_progress=False
        )
    else:
        bytes_ = BYTE_NAMES if kind == "bpe with bytes" else []
        data["model"] |= {"byte_fallback": bool(bytes_), "fuse_unk": bool(bytes_)}
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=800, special_tokens=[*special, *bytes_], show_progress=False
        )
    data |= {"normalizer": normalizer, "pre_tokenizer": pre_tokenizer or metaspace("never", True)}
    theirs = tokenizers.Tokenizer.from_str(json.dumps(data))
    theirs.train_from_iterator(PROSE, trainer)
    data = json.loads(theirs.to_str())
    data["pre_tokenizer"] = pre_tokenizer
    data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] in special[1:]]
    return json.dumps(data)


@pytest.mark.parametrize("kind", ["bpe", "bpe with bytes", "unigram"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_ids_are_those_of_tokenizers(shape: str, kind: str) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    content = trained(shape, kind)
    theirs = tokenizers.Tokenizer.from_str(content)
    ours = from_huggingface_pieces(json.loads(content), "x.json")
    written = to_huggingface_pieces(ours)
    again = tokenizers.Tokenizer.from_str(json.dumps(written))

    @settings(max_examples=100, deadline=None)
    @given(text=text)
    def check(text: str) -> None:
        ids = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, specials="all") == ids
        assert again.encode(text, add_special_tokens=False).ids == ids

    check()
    for line in [*HARD, *PROSE[:200], "\n".join(PROSE[:1500])]:
        ids = theirs.encode(line, add_special_tokens=False).ids
        assert ours.encode(line, specials="all") == ids
        assert again.encode(line, add_special_tokens=False).ids == ids
    assert from_huggingface_pieces(written, "again").state() == ours.state()
    assert type(ours).from_state(ours.state()).encode(PROSE[7]) == ours.encode(PROSE[7])
    assert (ours.begin, ours.end, ours.specials) == ("<s>", "</s>", {"<s>": 1, "</s>": 2})


@pytest.mark.parametrize("shape", ["llama", "mistral"])
@settings(max_examples=100, deadline=None)
@given(text=any_text)
def test_any_text_where_nothing_is_normalized(shape: str, text: str) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    content = trained(shape, "bpe with bytes")
    theirs = tokenizers.Tokenizer.from_str(content)
    ours = from_huggingface_pieces(json.loads(content), "x.json")
    assert ours.encode(text, specials="all") == theirs.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("kind", [UnigramTokenizer, PieceBpe])
def test_what_we_train_gives_the_same_ids_there(kind: Any) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    ours = kind.train(PROSE, vocab_size=700, specials=["<s>", "</s>"])
    data = to_huggingface_pieces(ours)
    theirs = tokenizers.Tokenizer.from_str(json.dumps(data))
    back = from_huggingface_pieces(data, "back")
    for line in [*PROSE[:300], *HARD, "\n".join(PROSE[:1500])]:
        if MARK not in line:
            ids = ours.encode(line, specials="all")
            assert theirs.encode(line).ids == ids == back.encode(line, specials="all")
    for line in PROSE[:300]:
        assert theirs.decode(ours.encode(line), skip_special_tokens=False) == line


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_spaces_go_along(prefix: bool) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    step = ("sentencepiece", {"remove_extra_whitespaces": True, "add_dummy_prefix": prefix})
    trained = PieceBpe.train(PROSE, vocab_size=600)
    ours = PieceBpe(pieces=trained.pieces, normalizer=Normalizer(steps=[step]))
    data = to_huggingface_pieces(ours)
    theirs, back = tokenizers.Tokenizer.from_str(json.dumps(data)), from_huggingface_pieces(data, "back")
    for line in [*HARD, "  a  b \u2581 ", "a \n", "  ", *PROSE[:50]]:
        assert theirs.encode(line).ids == ours.encode_ordinary(line) == back.encode_ordinary(line)


LLAMA = {"normalizer": sequence("normalizers", PREPEND, TO_MARK), "pre_tokenizer": None, "added_tokens": []}
BPE = {"type": "BPE", "unk_token": "<unk>", "vocab": {"<unk>": 0, "a": 1, "b": 2, "ab": 3}, "merges": ["a b"]}
UNIGRAM = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0]]}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"normalizer": {"type": "Lowercase"}}, "a normalizer of type 'Lowercase'; .* Prepend, Replace"),
        ({"normalizer": sequence("normalizers", {"type": "BertNormalizer"})}, "of type 'BertNormalizer'"),
        ({"normalizer": {"type": "Replace", "pattern": {"Regex": "x+"}, "content": ""}}, "pattern = 'x"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "table of characters"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "?"}}, "not base64"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "a pre-tokenizer of type Whitespace"),
        ({"pre_tokenizer": metaspace("never", True) | {"replacement": "_"}}, "writes '_'"),
        ({"pre_tokenizer": metaspace("often", True)}, "metaspace = 'often'"),
        ({"model": BPE | {"dropout": 0.1}}, "dropout = 0.1"),
        ({"model": BPE | {"ignore_merges": True}}, "ignore_merges"),
        ({"model": BPE | {"end_of_word_suffix": "</w>"}}, "end_of_word_suffix"),
        ({"model": BPE | {"merges": ["a"]}}, "the merge 'a' is not two pieces"),
        ({"model": BPE | {"merges": [["b", "a"]]}}, "needs the piece 'ba'"),
        ({"model": BPE | {"unk_token": None}}, "neither bytes nor an unknown piece"),
        ({"model": BPE | {"vocab": {"<unk>": 0, "a b": 1}}}, "holds a space"),
        ({"model": BPE | {"vocab": ["a"]}}, "vocab"),
        ({"model": UNIGRAM | {"vocab": []}}, "no piece"),
        ({"model": UNIGRAM | {"vocab": [["a"]]}}, "is not a piece and its score"),
        ({"model": UNIGRAM | {"vocab": [["a", 0.0], ["a", 1.0]]}}, "there twice"),
        ({"model": UNIGRAM | {"unk_id": None}}, "neither bytes nor an unknown piece"),
        ({"model": UNIGRAM | {"byte_fallback": True, "vocab": [["<unk>", 0.0], ["<0x41>", 0.0]]}}, "1 byte pieces"),
        ({"added_tokens": [{"id": 9, "content": "<s>"}]}, "has the id 9, but would be 4"),
        ({"added_tokens": [{"id": 4, "content": "<s>", "lstrip": True}]}, "lstrip = true"),
    ],
)
def test_a_file_that_cannot_be_read(change: dict[str, Any], why: str) -> None:
    assert from_huggingface_pieces(LLAMA | {"model": BPE}, "x.json").encode("ab") == [0, 3]
    with pytest.raises(InputError, match=f"x.json.*{why}"):
        from_huggingface_pieces(LLAMA | {"model": BPE} | change, "x.json")


def places(value: Any) -> list[list[Any]]:
    """The way to every value inside of JSON."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [[key, *rest] for key, child in inside for rest in [[], *places(child)]]


WRONG = [None, True, -1, 3, 10**400, float("nan"), "", MARK, "\ud800", [], {}, [[]], {"type": "Sequence"}, {"type": 5}]


@pytest.mark.parametrize("shape", ["llama", "mistral"])
@pytest.mark.parametrize("model", [BPE, UNIGRAM], ids=["bpe", "unigram"])
def test_a_damaged_file_is_an_error_or_a_tokenizer(shape: str, model: dict[str, Any]) -> None:
    normalizer, pre_tokenizer = SHAPES[shape]()
    added = [{"id": len(model["vocab"]), "content": "<s>", "special": True}]
    whole = {"normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "model": model, "added_tokens": added}
    for *way, last in places(whole):
        for wrong in WRONG:
            damaged = json.loads(json.dumps(whole))
            functools.reduce(lambda value, key: value[key], way, damaged)[last] = wrong
            try:
                from_huggingface_pieces(damaged, "x.json").encode("the é <s>", specials="all")
            except InputError as error:
                assert "x.json" in str(error)


def test_what_a_file_cannot_hold() -> None:
    pieces = {0: Piece("<unk>", 0.0, "unknown"), 1: Piece("a", -1.0), 2: Piece("b", -1.0)}
    table = base64.b64encode(b"\4\0\0\0\0\0\0\0x\0").decode()
    for tokenizer, why in [
        (UnigramTokenizer(pieces=pieces, specials={"<s>": 9}), "no gaps"),
        (UnigramTokenizer(pieces=pieces, arithmetic="float32"), "float32"),
        (UnigramTokenizer(pieces=pieces, unknown_score=-3.0), "unknown_score"),
        (UnigramTokenizer(pieces=pieces, specials=["a"]), "text of a piece"),
        (UnigramTokenizer(pieces={**pieces, 3: Piece("c", 0.0, "user")}), "role user"),
        (UnigramTokenizer(pieces=pieces, normalizer=Normalizer([("sentencepiece", {"charsmap": table})])), "table"),
        (PieceBpe(pieces={**pieces, 3: Piece("ac", -2.0)}), "some character of its pieces is no piece"),
        (PieceBpe(pieces={**pieces, 3: Piece("ab", -2.0), 4: Piece("ba", -2.0)}), "equal scores"),
    ]:
        with pytest.raises(InputError, match=why):
            to_huggingface_pieces(tokenizer)
