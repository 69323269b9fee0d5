"""`tessera data`: prepare once and train from it, count, download."""

import hashlib
import json
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tessera.data.catalog import CORPORA
from tessera.data.prepared import Prepared
from tessera.tokenizers import load_tokenizer

RECIPES = Path(__file__).parents[2] / "recipes"


def test_prepare_once_train_many(tessera: Any, text: Path, tmp_path: Path, small: Sequence[str]) -> None:
    folder = tmp_path / "shards"
    done = tessera("data", "prepare", text, "tokenizer=char", "data.validation=0.2", "--out", folder)
    assert done.code == 0, done.err
    assert f"tessera train {folder}" in done.out
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    prepared = Prepared.open(folder, fingerprint=tokenizer.fingerprint, verify=True)
    assert tokenizer.kind == "char"
    assert prepared.held_out_share == pytest.approx(0.2, abs=0.05)
    assert f"{prepared.counts['train'].n_tokens:,}" in done.out
    for number in (1, 2):
        arguments = [argument for argument in small if not argument.startswith("tokenizer")]
        done = tessera("train", folder, "--out", tmp_path / f"run{number}", "--json", *arguments)
        assert done.code == 0, done.err
    assert load_tokenizer(tmp_path / "run2" / "tokenizer.json").fingerprint == tokenizer.fingerprint


def test_prepare_takes_the_data_and_tokenizer_of_a_recipe(tessera: Any, text: Path, tmp_path: Path) -> None:
    arguments = ("-c", RECIPES / "shakespeare-char.toml", "--out", tmp_path / "shards", "--json")
    said = json.loads(tessera("data", "prepare", text, *arguments).out)
    assert said.keys() == {"train", "validation"}
    assert load_tokenizer(tmp_path / "shards" / "tokenizer.json").kind == "char"
    assert sum(part["n_bytes"] for part in said.values()) == text.stat().st_size


def test_stats_count(tessera: Any, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one two\nthree äö\n", encoding="utf-8")
    (tmp_path / "b.jsonl").write_text('{"text": "four"}\n{"text": "five six"}\n', encoding="utf-8")
    said = json.loads(tessera("data", "stats", tmp_path / "a.txt", tmp_path / "b.jsonl", "--json").out)
    first, second = said[str(tmp_path / "a.txt")], said[str(tmp_path / "b.jsonl")]
    assert (first["n_documents"], first["n_bytes"], first["n_characters"], first["n_lines"]) == (1, 19, 17, 2)
    assert (second["n_documents"], second["n_bytes"]) == (2, 12)
    done = tessera("data", "stats", tmp_path)
    assert done.code == 0
    assert "31 bytes" in done.out


def test_stats_count_tokens_too(tessera: Any, text: Path, run: Path) -> None:
    tokenizer = load_tokenizer(run / "tokenizer.json")
    done = tessera("data", "stats", text, "--tokenizer", run / "tokenizer.json", "--json")
    (counts,) = json.loads(done.out).values()
    assert counts["n_tokens"] >= len(tokenizer.encode(text.read_text(encoding="utf-8")))
    prepared = json.loads(tessera("data", "stats", run / "data", "--json").out)
    assert prepared.keys() == {"train", "validation"}


def test_download_without_a_name_lists_the_corpora(tessera: Any) -> None:
    done = tessera("data", "download")
    assert done.code == 0
    assert [line.split()[0] for line in done.out.splitlines()] == list(CORPORA)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """The folder `served` over http."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "text.txt").write_bytes(b"some text\n" * 1000)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "served")))
    threading.Thread(target=partial(server.serve_forever, poll_interval=0.05), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_download_checks_what_comes(tessera: Any, tmp_path: Path, served: str) -> None:
    content = (tmp_path / "served" / "text.txt").read_bytes()
    arguments = ("data", "download", f"{served}/text.txt", "--out", tmp_path / "got", "--sha256")
    wrong = tessera(*arguments, "0" * 64)
    assert wrong.code == 2
    assert wrong.err.startswith("error: ")
    assert wrong.err.count("\n") == 1
    assert not list((tmp_path / "got").rglob("text.txt"))
    done = tessera(*arguments, hashlib.sha256(content).hexdigest())
    assert done.code == 0, done.err
    path = Path(done.out.splitlines()[-1])
    assert path.read_bytes() == content


@pytest.mark.parametrize("path", ["missing.txt", None])
def test_a_download_that_fails_is_one_line(tessera: Any, tmp_path: Path, served: str, path: str | None) -> None:
    url = f"{served}/{path}" if path else "tiny-shakespear"
    done = tessera("data", "download", url, "--out", tmp_path / "got")
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert ("404" if path else "did you mean 'tiny-shakespeare'") in done.err
