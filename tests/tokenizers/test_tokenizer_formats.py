import base64
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tiktoken.load import load_tiktoken_bpe

from tessera.errors import DamagedError, InputError, SettingError
from tessera.tokenizers import ByteTokenizer, CharTokenizer, RegexBpe, WordTokenizer, load_vocabulary
from tessera.tokenizers.formats import parse_ranks, read_source

BPE = RegexBpe.train(["the cat sat on the mat"], vocab_size=262)
RANKS = b"".join(b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in BPE.ranks.items())


class Server(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/none":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(RANKS)))
        self.end_headers()
        with suppress(ConnectionError):  # a client that has read enough hangs up
            if self.path == "/slow":
                for at in range(20):
                    self.wfile.write(RANKS[at : at + 1])
                    time.sleep(0.05)
            elif self.path == "/half":
                self.wfile.write(RANKS[: len(RANKS) // 2])
            else:
                self.wfile.write(RANKS)

    def log_message(self, format: str, *arguments: object) -> None:
        """Tests are quiet."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_rank_file_from_a_url(url: str) -> None:
    loaded = load_vocabulary("bpe", f"{url}/ranks.tiktoken", pattern="gpt4")
    assert loaded.state() == BPE.state()


def test_urls_that_fail(url: str) -> None:
    with pytest.raises(InputError, match="/none: the server answers 404"):
        read_source(f"{url}/none")
    with pytest.raises(InputError, match="larger than 100 bytes"):
        read_source(f"{url}/ranks", max_bytes=100)
    with pytest.raises(InputError, match=r"longer than 0\.2 seconds"):
        read_source(f"{url}/slow", timeout=0.2)
    with pytest.raises(InputError, match="/half: "):
        read_source(f"{url}/half")
    with pytest.raises(InputError, match=r"cannot be read \(.*refused"):
        read_source("http://127.0.0.1:9/x")
    with pytest.raises(InputError, match="cannot be read"):
        read_source("http://[bad")


def test_files_that_fail(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_vocabulary("char", tmp_path / "none")
    with pytest.raises(InputError, match="cannot be read"):
        load_vocabulary("char", tmp_path)
    (tmp_path / "big").write_bytes(b"x" * 11)
    with pytest.raises(InputError, match="larger than 10 bytes"):
        read_source(tmp_path / "big", max_bytes=10)
    with pytest.raises(InputError, match="no such file"):
        read_source("file:///etc/passwd")


def test_ranks_are_read_as_tiktoken_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    path = tmp_path / "ranks.tiktoken"
    path.write_bytes(RANKS)
    assert parse_ranks(RANKS, "ranks") == load_tiktoken_bpe(str(path)) == BPE.ranks


def test_a_rank_file_needs_a_pattern_and_takes_specials(tmp_path: Path) -> None:
    path = tmp_path / "ranks.tiktoken"
    path.write_bytes(RANKS)
    loaded = load_vocabulary("bpe", path, pattern="gpt2", specials={"<|end|>": 9000})
    assert (loaded.n_vocab, loaded.specials) == (9001, {"<|end|>": 9000})
    with pytest.raises(SettingError, match=r"tokenizer\.pattern = None: expected gpt2, gpt4 or a regular expression"):
        load_vocabulary("bpe", path)
    with pytest.raises(SettingError, match="has no 'patern'; did you mean 'pattern'"):
        load_vocabulary("bpe", path, patern="gpt2")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"YQ== 0\nYQ== 1\n", "line 2: expected a new token"),
        (b"YQ== zero\n", "line 1"),
        (b"YQ\n", "line 1"),
        (b"\n!!!! 1\n", "line 2"),
        (b"YQ== -1\n", "line 1"),
        (b"YQ== 0\n", "lacks 255 of the 256"),
        (b"", "lacks 256"),
    ],
)
def test_damaged_ranks_name_the_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "ranks").write_bytes(content)
    with pytest.raises(InputError, match=rf"ranks(,|:) ?.*{message}"):
        load_vocabulary("bpe", tmp_path / "ranks", pattern="gpt4")


@pytest.mark.parametrize(
    ("kind", "tokenizer"), [("bpe", BPE), ("char", CharTokenizer(alphabet="xy{")), ("word", WordTokenizer(words=["a"]))]
)
def test_a_tokenizer_file_is_a_vocabulary(tmp_path: Path, kind: str, tokenizer: RegexBpe) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    assert load_vocabulary(kind, tmp_path / "tokenizer.json").state() == tokenizer.state()
    with pytest.raises(SettingError, match=r"tokenizer\.specials = .*has its own"):
        load_vocabulary(kind, tmp_path / "tokenizer.json", specials=[])
    text = (tmp_path / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(text.replace('"version": 1', '"version": 2'))
    with pytest.raises(DamagedError, match="sha256"):
        load_vocabulary(kind, tmp_path / "tokenizer.json")


def test_other_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "hf.json").write_text('{"model": {"type": "BPE"}}')
    with pytest.raises(InputError, match=r"no tokenizer\.json that Tessera wrote"):
        load_vocabulary("bpe", tmp_path / "hf.json")
    ByteTokenizer().save(tmp_path / "byte.json")
    with pytest.raises(InputError, match="of kind 'byte', not 'bpe'"):
        load_vocabulary("bpe", tmp_path / "byte.json")
    with pytest.raises(SettingError, match="char, word, bpe: only these"):
        load_vocabulary("byte", tmp_path / "byte.json")


def test_a_list_of_characters(tmp_path: Path) -> None:
    path = tmp_path / "characters.txt"
    path.write_text("\ufeff<unk>\nb\na\n{\n \n\\n\n\\\n日\r\n<|endoftext|>\n", encoding="utf-8", newline="")
    loaded = load_vocabulary("char", path)
    assert loaded.decode(range(loaded.n_vocab)) == "ba{ \n\\日\ufffd<|endoftext|>"


def test_a_list_of_words(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("<pad>\n<unk>\nThe\ncat\nthe\n\nisn't\n", encoding="utf-8")
    loaded = load_vocabulary("word", path, specials=[])
    assert loaded.decode(range(loaded.n_vocab)) == "<pad> <unk> the cat isnt"
    assert loaded.encode("The cat isn't!") == [2, 3, 4]


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
