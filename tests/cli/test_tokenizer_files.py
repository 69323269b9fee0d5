"""`tessera tokenizer train` on files that it reads in parts."""

from pathlib import Path
from typing import Any

from tessera.tokenizers import RegexBpe, load_tokenizer


def test_counts_are_kept_and_gone_on_from(tessera: Any, text: Path, tmp_path: Path) -> None:
    out, counts = tmp_path / "t.json", tmp_path / "counts"
    arguments = ("tokenizer", "train", text, "--vocab-size", 290, "--counts", counts, "--out", out, "threads=2")
    assert tessera(*arguments).code == 0
    first = load_tokenizer(out)
    assert first.fingerprint == RegexBpe.train([text.read_text()], vocab_size=290).fingerprint
    assert tessera(*arguments, "--force").code == 0
    assert load_tokenizer(out).fingerprint == first.fingerprint
    counts.write_bytes(counts.read_bytes()[:-5])
    done = tessera(*arguments, "--force")
    assert done.code == 2
    assert "counts is damaged" in done.err


def test_counts_need_plain_files(tessera: Any, text: Path, tmp_path: Path) -> None:
    counts = tmp_path / "counts"
    for more in ((text, "--kind", "word"), (text.parent,), (text, "normalize=NFC")):
        done = tessera("tokenizer", "train", *more, "--counts", counts, "--out", tmp_path / "t.json")
        assert done.code == 2
        assert "only with kind bpe and files in .txt, .md, .py" in done.err
    assert not counts.exists()
