"""Vocabularies that are kept for the next time: the same, of the same file alone, and only where they are whole."""

import os
from pathlib import Path

import pytest
from tests.formats.gguf.small_files import entry, header, tensor

from tessera.formats.gguf import kept, open_gguf, opening
from tessera.formats.gguf.export import export_gguf
from tessera.formats.gguf.reader import read_gguf
from tessera.model.decoder import Decoder, DecoderSettings
from tessera.tokenizers.regex_bpe import RegexBpe

SETTINGS = DecoderSettings(context=16, d_model=16, n_layers=1, n_heads=2)
TEXT = "a text with words, a text with other words, and words again"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where they are kept, small ones too."""
    monkeypatch.setattr(kept, "WORTH", 0)
    monkeypatch.setattr(kept, "cache_folder", lambda: tmp_path / "cache" / "compiled")
    return tmp_path / "cache" / "vocabularies"


def written(path: Path, vocab_size: int = 270) -> Path:
    tokenizer = RegexBpe.train([TEXT], vocab_size=vocab_size)
    model = Decoder.from_settings(SETTINGS, n_vocab=tokenizer.n_vocab)
    export_gguf(SETTINGS, tokenizer.n_vocab, model.state_dict(), tokenizer, path)
    return path


def test_what_is_kept_is_what_was_read(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "m.gguf")
    first = open_gguf(path)
    with monkeypatch.context() as patch:
        patch.setattr(opening, "read_and_keep", None)
        again = open_gguf(path)
    assert again.tokenizer.state() == first.tokenizer.state() and again.notes == first.notes
    assert again.tokenizer.encode(TEXT) == first.tokenizer.encode(TEXT)
    assert len(list(folder.iterdir())) == 1
    path.unlink()
    assert open_gguf(written(path, 268)).n_vocab == 268, "another file at the same place"
    assert len(list(folder.iterdir())) == 1, "what belongs to no file any more is gone"


def test_what_is_damaged_is_read_anew(tmp_path: Path, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = written(tmp_path / "m.gguf")
    first = open_gguf(path).tokenizer.state()
    (place,) = folder.iterdir()
    whole = place.read_bytes()
    for content in (b"", b"no number\n{}", whole[:-1], whole.replace(b"notes", b"nites")):
        place.write_bytes(content)
        assert open_gguf(path).tokenizer.state() == first
        assert place.read_bytes() == whole
    assert caplog.text.count("is damaged") == 4


def test_where_nothing_can_be_kept_it_is_read(tmp_path: Path, folder: Path) -> None:
    folder.parent.write_text("no folder")
    path = written(tmp_path / "m.gguf")
    assert open_gguf(path).tokenizer.state() == open_gguf(path).tokenizer.state()


def test_lists_that_are_passed_over(tmp_path: Path) -> None:
    """Long strings and lists longer than what is read at once; what comes after them is found."""
    path = tmp_path / "m.gguf"
    lists = {"long": ["x" * 300_000, "", "y" * 255, "z" * 256], "many": [f"{n} ü\0" for n in range(50_000)]}
    entries = [entry(name, value) for name, value in lists.items()]
    path.write_bytes(header(*entries, entry("last", 7), tensors=(tensor("t", 2),), data=os.urandom(8)))
    whole = read_gguf(path)
    assert {name: whole.metadata[name] for name in lists} == lists
    short = read_gguf(path, passed_over=lists)
    assert short.metadata == {"long": None, "many": None, "last": 7} and short.tensors == whole.tensors
