"""Tokenizers in GGUF files: the same ids in llama.cpp, the same tokenizer again, and a reason where that cannot be."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.formats.gguf.llama_cpp import ask

from tessera.errors import FormatError, SettingError
from tessera.formats.gguf import open_gguf
from tessera.formats.gguf.export import export_gguf
from tessera.formats.gguf.pre_tokenizers import PATTERNS, written_pre
from tessera.formats.gguf.values import write_entry
from tessera.formats.gguf.vocabulary_out import write_vocabulary
from tessera.model.decoder import Decoder, DecoderSettings
from tessera.tokenizers import Tokenizer, import_tokenizer
from tessera.tokenizers.byte import ByteTokenizer
from tessera.tokenizers.char import CharTokenizer
from tessera.tokenizers.framing import Framing
from tessera.tokenizers.regex_bpe import RegexBpe
from tessera.tokenizers.scan import PATTERNS as OURS
from tessera.tokenizers.sentencepiece.normalizer import MARK, Normalizer
from tessera.tokenizers.sentencepiece.piece_bpe import PieceBpe
from tessera.tokenizers.sentencepiece.unigram import UnigramTokenizer

LEARNED = [
    "the cat sat on the mat, and that's all we'll say; it's 1984 or 2024 in the end\n",
    "Über allen Gipfeln ist Ruh, in allen Wipfeln spürest du kaum einen Hauch",
    "def f(x, y):\n    return {'a': x + y, \"b\": [1, 2, 3]}\n",
] * 9
TEXTS = [
    "the cat and the mat",
    " it's 1984, 12345.678 and we'll see",
    "two  spaces   three\n\n\n lines \n",
    "Größe und Maß, naïve façade",
    "你好,世界! Привет мир",
    "emoji 🤷‍♀️ and \t tabs\x01\x7f",
    "x = {'a': [1, 2], \"b\": f(y)}",
]
FRAMINGS = [
    Framing(),
    Framing(begin="<s>", ends=("<end>",), template="{{ messages }}"),
    Framing(ends=("<end>", "<|endoftext|>")),
]
SPECIALS = ["<|endoftext|>", "<s>", "<end>"]


def model_file(tokenizer: Tokenizer, path: Path, *, more: int = 3) -> list[str]:
    """A model of nothing much with this tokenizer, and `more` rows in its tables than that needs."""
    n_vocab = tokenizer.n_vocab + more
    settings = DecoderSettings(context=64, d_model=32, n_layers=1, n_heads=2, d_ff=32, tied=True)
    torch.manual_seed(0)
    model = Decoder.from_settings(settings, n_vocab=n_vocab)
    return export_gguf(settings, n_vocab, model.state_dict(), tokenizer, path)


def check(tokenizer: Tokenizer, path: Path, *, texts: list[str] = TEXTS) -> Tokenizer:
    """The ids of llama.cpp are those here, and of the tokenizer that the file gives."""
    again = open_gguf(path)
    assert again.tokenizer is not None
    answer = ask(path, again.n_vocab, texts=texts)
    expected = [tokenizer.encode(text, specials="none") for text in texts]
    assert answer.tokens == expected
    assert [again.tokenizer.encode(text, specials="none") for text in texts] == expected
    for ids in expected:
        assert again.tokenizer.decode(ids) == tokenizer.decode(ids)
    assert again.tokenizer.specials == tokenizer.specials
    return again.tokenizer


@pytest.mark.parametrize("pattern", [name for name in OURS if name not in ("gpt4", "o200k")])
def test_byte_pairs_with_the_patterns_that_llama_cpp_has(pattern: str, tmp_path: Path) -> None:
    tokenizer = RegexBpe.train(LEARNED, vocab_size=310, pattern=pattern, specials=SPECIALS)
    assert model_file(tokenizer, tmp_path / "m.gguf") == []
    again = check(tokenizer, tmp_path / "m.gguf")
    assert isinstance(again, RegexBpe)
    assert again.pattern == pattern


@pytest.mark.parametrize("pattern", ["gpt4", "o200k"])
def test_patterns_that_are_nearly_the_same_are_said(pattern: str, tmp_path: Path) -> None:
    tokenizer = RegexBpe.train(LEARNED, vocab_size=310, pattern=pattern, specials=SPECIALS)
    (note,) = model_file(tokenizer, tmp_path / "m.gguf")
    assert f"no pattern that is quite {pattern}'s" in note
    check(tokenizer, tmp_path / "m.gguf", texts=[text.rstrip() for text in TEXTS])


@pytest.mark.parametrize("framing", FRAMINGS, ids=["none", "chat", "two ends"])
def test_framing_travels(framing: Framing, tmp_path: Path) -> None:
    tokenizer = RegexBpe.train(LEARNED, vocab_size=300, specials=SPECIALS, pattern="gpt2").with_framing(framing)
    model_file(tokenizer, tmp_path / "m.gguf")
    again = open_gguf(tmp_path / "m.gguf").tokenizer
    assert again is not None
    assert (again.begin_id, again.framing.template) == (tokenizer.begin_id, framing.template)
    assert again.end_ids == tokenizer.end_ids


def test_bytes_alone(tmp_path: Path) -> None:
    tokenizer = ByteTokenizer(specials=SPECIALS)
    model_file(tokenizer, tmp_path / "m.gguf")
    check(tokenizer, tmp_path / "m.gguf")


def test_pieces_with_scores(tmp_path: Path) -> None:
    tokenizer = PieceBpe.train(LEARNED, vocab_size=330, specials=["<s>", "</s>"])
    tokenizer = PieceBpe(
        pieces=tokenizer.pieces,
        specials=tokenizer.specials,
        normalizer=Normalizer(steps=[("sentencepiece", {})]),
        begin="<s>",
        end="</s>",
    )
    model_file(tokenizer, tmp_path / "m.gguf")
    again = check(tokenizer, tmp_path / "m.gguf")
    assert isinstance(again, PieceBpe)
    assert again.pieces == tokenizer.pieces
    assert (again.begin, again.end) == ("<s>", "</s>")


@pytest.mark.parametrize("prefix", [True, False])
def test_pieces_with_merges_as_hugging_face_has_them(prefix: bool, tmp_path: Path) -> None:
    by_score = PieceBpe.train(LEARNED, vocab_size=330, specials=["<s>", "</s>"])
    scores = {piece.text: piece.score for piece in by_score.pieces.values() if piece.role == "normal"}
    falling = sorted((text for text in scores if len(text) > 1), key=lambda text: -scores[text])
    halves = [(text[:cut], text[cut:]) for text in falling for cut in range(1, len(text))]
    steps: list[tuple[str, dict[str, Any]]] = [("replace", {"old": " ", "new": MARK})]
    tokenizer = PieceBpe(
        pieces={id: piece._replace(score=0.0) for id, piece in by_score.pieces.items()},
        specials=by_score.specials,
        merges=[pair for pair in halves if pair[0] in scores and pair[1] in scores],
        normalizer=Normalizer(steps=[("prepend", {"text": MARK}), *steps] if prefix else steps),
    )
    model_file(tokenizer, tmp_path / "m.gguf")
    check(tokenizer, tmp_path / "m.gguf")


def test_the_model_of_sentencepiece(shared_data: Path, tmp_path: Path) -> None:
    tokenizer = import_tokenizer(shared_data / "tokenizers" / "sentencepiece_2000.model")
    assert isinstance(tokenizer, PieceBpe | UnigramTokenizer)
    path = tmp_path / "m.gguf"
    try:
        model_file(tokenizer, path)
    except SettingError as error:
        pytest.skip(f"llama.cpp has no such model: {error}")
    check(tokenizer, path, texts=TEXTS[:3])


def test_unigram(tmp_path: Path) -> None:
    trained = UnigramTokenizer.train(LEARNED, vocab_size=290, specials=["</s>"], byte_fallback=False)
    tokenizer = UnigramTokenizer(
        pieces=trained.pieces,
        specials=trained.specials,
        normalizer=Normalizer(steps=[("sentencepiece", {"remove_extra_whitespaces": True})]),
        end="</s>",
    )
    model_file(tokenizer, tmp_path / "m.gguf")
    assert isinstance(check(tokenizer, tmp_path / "m.gguf"), UnigramTokenizer)


@pytest.mark.slow
def test_qwen_3_from_hugging_face(shared_data: Path, tmp_path: Path) -> None:
    tokenizer = import_tokenizer(shared_data / "tokenizers" / "qwen3" / "tokenizer.json")
    assert isinstance(tokenizer, RegexBpe)
    written = write_vocabulary(tokenizer, tokenizer.n_vocab)
    assert written.entries["tokenizer.ggml.pre"] == "qwen2"
    assert any("NFC" in note for note in written.notes)


def test_names_of_patterns_are_llama_cpps_and_ours() -> None:
    for name, (pattern, whole) in PATTERNS.items():
        tokenizer = RegexBpe(ranks={bytes([b]): b for b in range(256)}, pattern=pattern, whole_pieces=whole)
        assert PATTERNS[written_pre(tokenizer)[0]] == (pattern, whole), name


def bare(**settings: Any) -> RegexBpe:
    return RegexBpe(ranks={bytes([b]): b for b in range(256)} | {b"zq!": 256}, **settings)


REFUSED: dict[str, tuple[Tokenizer, str]] = {
    "characters": (CharTokenizer.train(["abc"]), "expected bpe, byte, bpe-pieces or unigram"),
    "a pattern of one's own": (bare(pattern=r"\S+|\s+"), "one that llama.cpp has"),
    "a token that no merge makes": (bare(pattern="gpt2"), "whole_pieces"),
    "an ordinary token that is a special one": (bare(pattern="llama3", specials=["zq!"]), "a text of its own"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_llama_cpp_has_not_is_refused(case: str) -> None:
    tokenizer, why = REFUSED[case]
    with pytest.raises(SettingError, match=why):
        write_vocabulary(tokenizer, tokenizer.n_vocab)


def test_more_tokens_than_rows_are_refused() -> None:
    with pytest.raises(SettingError, match="at most 200"):
        write_vocabulary(ByteTokenizer(), 200)


def test_a_vocabulary_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    model_file(ByteTokenizer(specials=SPECIALS), path)
    whole = path.read_bytes()
    changes: list[tuple[str, Any, Any, str]] = [
        ("tokenizer.ggml.model", "gpt2", "gpt3", "expected 'gpt2', 'llama' or 't5'"),
        ("tokenizer.ggml.add_bos_token", False, None, "expected true or false"),
    ]
    for key, old, new, why in changes:
        entry = write_entry(key, old) if new is None else write_entry(key, new)
        if new is None:  # the same length, of another type
            entry = entry[:-5] + b"\x00" + entry[-4:]
        assert whole.count(write_entry(key, old)) == 1
        path.write_bytes(whole.replace(write_entry(key, old), entry))
        with pytest.raises(FormatError, match=why):
            open_gguf(path)
