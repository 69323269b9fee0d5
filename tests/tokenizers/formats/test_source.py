import base64
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tessera.errors import InputError
from tessera.tokenizers import RegexBpe, import_tokenizer, load_vocabulary
from tessera.tokenizers.formats.gpt2 import write_gpt2
from tessera.tokenizers.formats.source import Source, member, read_source

BPE = RegexBpe.train(["the cat sat on the mat"], vocab_size=262)
RANKS = b"".join(b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in BPE.ranks.items())
FILES = write_gpt2(RegexBpe(ranks=BPE.ranks, pattern="gpt2", specials=[]))


class Server(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/none" or self.path.endswith(("config.json", "added_tokens.json")):
            self.send_error(404)
            return
        content = FILES.get(self.path.removeprefix("/gpt2/").partition("?")[0], RANKS)
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        with suppress(ConnectionError):  # a client that has read enough hangs up
            if self.path == "/slow":
                for at in range(20):
                    self.wfile.write(content[at : at + 1])
                    time.sleep(0.05)
            elif self.path == "/half":
                self.wfile.write(content[: len(content) // 2])
            else:
                self.wfile.write(content)

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


def test_what_lies_beside_a_url_is_found(url: str) -> None:
    loaded = import_tokenizer(f"{url}/gpt2/vocab.json?download=true")
    assert isinstance(loaded, RegexBpe) and loaded.ranks == BPE.ranks


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
    with pytest.raises(InputError, match=r"cannot be read, as the folder has no tokenizer\.json, vocab\.json"):
        load_vocabulary("char", tmp_path)
    (tmp_path / "big").write_bytes(b"x" * 11)
    with pytest.raises(InputError, match="larger than 10 bytes"):
        read_source(tmp_path / "big", max_bytes=10)
    with pytest.raises(InputError, match="no such file"):
        read_source("file:///etc/passwd")


def test_the_file_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.tiktoken").write_bytes(b"a")
    assert Source.open(tmp_path).file_name == "a.tiktoken"
    (tmp_path / "b.tiktoken").write_bytes(b"b")
    with pytest.raises(InputError, match="2 rank files; say which one"):
        Source.open(tmp_path)
    for name in ("tokenizer.model", "vocab.json", "tokenizer.json"):
        (tmp_path / name).write_bytes(name.encode())
        assert Source.open(tmp_path).content == name.encode()
    assert Source.open(tmp_path).beside("b.tiktoken") == Source(str(tmp_path / "b.tiktoken"), b"b")
    assert Source.open(tmp_path).beside("none") is None


def test_json_with_a_byte_order_mark_and_json_that_is_too_deep() -> None:
    assert Source("x", b'\xef\xbb\xbf {"a": 1}').json == {"a": 1}
    for content in (b"{}", b"[1]", b"{", b'{"a": "\xff"}', b'{"a":' + b"[" * 100_000):
        assert Source("x", content).json is None


def test_a_member_is_of_its_kind() -> None:
    assert member({"n": 3}, "n", int, "x") == 3
    assert member({"n": None}, "n", int, "x", otherwise=7) == 7
    with pytest.raises(InputError, match="x: n is True, expected a JSON whole number"):
        member({"n": True}, "n", int, "x")
    with pytest.raises(InputError, match="x: m is None, expected a JSON object"):
        member({}, "m", dict, "x")
    with pytest.raises(InputError, match=r"x: \[1\] in place of a JSON object that has m"):
        member([1], "m", dict, "x")
