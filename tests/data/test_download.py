import errno
import hashlib
import http.server
import os
import re
import shutil
import threading
from collections import namedtuple

import pytest

import tessera.data.download as room
from tessera.data.catalog import CORPORA, Corpus, Remote
from tessera.data.documents import read_documents
from tessera.data.download import download, file_name
from tessera.errors import DamagedError, InputError, SettingError, StorageError

CONTENT = bytes(range(256)) * 8000  # 2 MB
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """A file server whose habits a test sets."""

    content = CONTENT
    etag: str | None = '"v1"'
    ranges = True  # honours Range
    announce = True  # sends Content-Length
    linked: str | None = None  # redirects, naming this sha256
    drops: list[int]  # the next answers end after so many bytes
    failures: list[int]  # the next answers are these status codes
    requests: list[str | None]  # the Range of each request

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/files/book.txt"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_):
        pass

    def do_GET(self):
        if self.server.linked is not None and not self.path.startswith("/store"):
            self.send_response(302)
            self.send_header("Location", "/store/xyz")
            self.send_header("X-Linked-ETag", f'"{self.server.linked}"')
            self.end_headers()
            return
        self.server.requests.append(self.headers.get("Range"))
        if self.server.failures:
            self.send_error(self.server.failures.pop(0))
            return
        body = self._head()
        if self.server.drops:
            body = body[: self.server.drops.pop(0)]
        self.wfile.write(body)

    def _head(self):
        content = self.server.content
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(wanted[1]) if wanted and self.server.ranges else 0
        if start and start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            body = b""
        elif start:
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            body = content[start:]
        else:
            self.send_response(200)
            body = content
        if self.server.announce:
            self.send_header("Content-Length", str(len(body)))
        if self.server.etag:
            self.send_header("ETag", self.server.etag)
        self.end_headers()
        return body


@pytest.fixture
def server():
    server = Server(("127.0.0.1", 0), Handler)
    server.drops, server.failures, server.requests = [], [], []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def fetch(server, folder, **options):
    return download(server.url, folder, **({"pause": 0.0} | options))


def interrupted(server, folder, size, **options):
    """A download that was given up with `size` bytes there."""
    server.drops = [size] + [0] * room.TRIES
    with pytest.raises(InputError, match=f"goes on from byte {size}"):
        fetch(server, folder, **options)
    server.drops.clear()
    server.requests.clear()
    assert (folder / "book.txt.part").stat().st_size == size
    assert not (folder / "book.txt").exists()


def test_a_file_arrives_whole_with_its_sha256_and_nothing_else(server, tmp_path):
    calls = []
    path = fetch(server, tmp_path, sha256=DIGEST.upper(), progress=lambda done, total: calls.append((done, total)))
    assert path == tmp_path / "book.txt"
    assert path.read_bytes() == CONTENT
    assert (tmp_path / "book.txt.sha256").read_text() == f"{DIGEST}  book.txt\n"
    assert names(tmp_path) == ["book.txt", "book.txt.sha256"]
    assert calls == sorted(calls)
    assert calls[-1] == (len(CONTENT), len(CONTENT))


def test_a_file_that_is_there_and_whole_is_not_asked_for_again(server, tmp_path):
    fetch(server, tmp_path)
    server.requests.clear()
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.requests == []


def test_a_file_that_was_altered_is_downloaded_again(server, tmp_path):
    path = fetch(server, tmp_path)
    path.write_bytes(b"altered")
    assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_dropped_connections_are_resumed_in_one_call(server, tmp_path):
    server.drops = [1000, 0, 500_000, 70_000]
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.requests == [None, "bytes=1000-", "bytes=1000-", "bytes=501000-", "bytes=571000-"]


def test_a_later_call_goes_on_where_the_first_was_given_up(server, tmp_path):
    interrupted(server, tmp_path, 300_000)
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.requests == ["bytes=300000-"]


def test_a_server_without_ranges_starts_again(server, tmp_path):
    server.ranges = False
    server.drops = [700_000, 100]
    assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_a_changed_file_is_not_glued_to_the_old_part(server, tmp_path):
    interrupted(server, tmp_path, 300_000)
    server.content, server.etag = CONTENT[::-1], '"v2"'
    assert fetch(server, tmp_path).read_bytes() == CONTENT[::-1]
    assert server.requests == ["bytes=300000-", None]


def test_a_changed_file_that_is_shorter_than_the_part(server, tmp_path):
    interrupted(server, tmp_path, 300_000)
    server.content, server.etag = b"short", '"v2"'
    assert fetch(server, tmp_path).read_bytes() == b"short"


def test_a_part_that_was_already_whole_is_kept(server, tmp_path):
    interrupted(server, tmp_path, 300_000)
    (tmp_path / "book.txt.part").write_bytes(CONTENT)
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.requests == [f"bytes={len(CONTENT)}-"]


def test_without_a_version_a_part_is_only_trusted_where_the_sha256_is_known(server, tmp_path):
    server.etag = None
    interrupted(server, tmp_path, 300_000)
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.requests == [None]
    interrupted(server, tmp_path / "known", 300_000, sha256=DIGEST)
    fetch(server, tmp_path / "known", sha256=DIGEST)
    assert server.requests == ["bytes=300000-"]


@pytest.mark.parametrize("noted", ["", "[]", '{"url": 3}', "\xff"])
def test_a_damaged_note_starts_again(server, tmp_path, noted):
    interrupted(server, tmp_path, 300_000)
    (tmp_path / "book.txt.part.json").write_text(noted, encoding="latin-1")
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.requests == [None]


def test_a_size_that_is_not_announced(server, tmp_path):
    server.announce = False
    calls = []
    path = fetch(server, tmp_path, progress=lambda done, total: calls.append((done, total)))
    assert path.read_bytes() == CONTENT
    assert calls[-1] == (len(CONTENT), None)


def test_wrong_bytes_are_removed(server, tmp_path):
    server.content = b"not the book"
    with pytest.raises(DamagedError, match=f"expected {DIGEST}; it was removed"):
        fetch(server, tmp_path, sha256=DIGEST)
    assert names(tmp_path) == []
    server.content = CONTENT
    assert fetch(server, tmp_path, sha256=DIGEST).read_bytes() == CONTENT


def test_the_sha256_that_a_hub_names_in_its_redirect_is_checked(server, tmp_path):
    server.linked = DIGEST
    server.drops = [1000]
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    server.linked = "0" * 64
    with pytest.raises(DamagedError, match="expected 0000"):
        fetch(server, tmp_path / "other")
    server.linked = "a-git-hash"
    assert fetch(server, tmp_path / "third").read_bytes() == CONTENT


def test_busy_servers_are_asked_again_and_refusals_are_not(server, tmp_path):
    server.failures = [503, 429]
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    server.failures = [404]
    server.requests.clear()
    with pytest.raises(InputError, match="the server says 404 Not Found"):
        fetch(server, tmp_path / "other")
    assert len(server.requests) == 1
    assert not (tmp_path / "other" / "book.txt").exists()


def test_a_server_that_never_answers_well_is_given_up(server, tmp_path):
    server.failures = [500] * 50
    with pytest.raises(InputError, match=r"cannot be downloaded .the server says 500"):
        fetch(server, tmp_path)
    assert len(server.requests) == room.TRIES


def test_no_server_at_all(tmp_path):
    with pytest.raises(InputError, match=r"cannot be downloaded .*refused"):
        download("http://127.0.0.1:9/a.txt", tmp_path, pause=0.0)


def test_waits_grow_between_tries(server, tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(room.time, "sleep", waits.append)
    server.failures = [500] * 4
    fetch(server, tmp_path, pause=1.0)
    assert waits == [1.0, 2.0, 4.0, 8.0]


def test_a_disk_that_is_too_small_is_told_before_the_download(server, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 0, 10**6))
    with pytest.raises(StorageError, match="it needs 2,048,000 bytes, the disk has 1,000,000"):
        fetch(server, tmp_path)
    assert (tmp_path / "book.txt.part").stat().st_size == 0


def test_a_disk_that_fills_up_keeps_the_part(server, tmp_path, monkeypatch):
    def full(self, response, total):
        with room.storage_errors(self.part):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    interrupted(server, tmp_path, 300_000)
    with monkeypatch.context() as patch, pytest.raises(StorageError, match="No space left on device"):
        patch.setattr(room._Transfer, "_receive", full)
        fetch(server, tmp_path)
    assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_two_downloads_of_one_file_do_not_mix(server, tmp_path):
    with (tmp_path / "book.txt.part").open("ab") as file:
        room.fcntl.flock(file, room.fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process is downloading it"):
            fetch(server, tmp_path)


def test_a_named_corpus_is_downloaded_when_it_is_read(server, tmp_path, monkeypatch):
    server.content = b"once<|endoftext|>\nupon"
    corpus = Corpus(about="a test", licence="none", files=(Remote(url=server.url),))
    monkeypatch.setitem(CORPORA, "stories", corpus)
    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path))
    documents = read_documents(["stories"])
    assert server.requests == []
    assert [(d.name, d.text, d.source) for d in documents] == [
        ("book.txt#1", "once", "stories"),
        ("book.txt#2", "upon", "stories"),
    ]
    assert download("stories") == tmp_path / "stories"
    assert len(list(documents)) == 2
    assert server.requests == [None]
    (tmp_path / "stories" / "book.txt").write_text("altered")
    assert len(list(documents)) == 2


def test_what_every_machine_has_is_where_it_lies(tmp_path):
    assert (download("python-stdlib", tmp_path) / "heapq.py").is_file()
    assert names(tmp_path) == []


@pytest.mark.parametrize(("url", "name"), [("http://a/b/c.txt?x=1#y", "c.txt"), ("http://a/b%20c.txt", "b c.txt")])
def test_file_names(url, name):
    assert file_name(url) == name


@pytest.mark.parametrize("url", ["http://a", "http://a/b/", "http://a/..", "http://a/%2e%2e", "http://a/b%2fc"])
def test_a_url_that_names_no_file_is_refused(url, tmp_path):
    with pytest.raises(InputError, match="names no file"):
        download(url, tmp_path)


def test_bad_arguments_are_refused(tmp_path):
    with pytest.raises(SettingError, match="did you mean 'tinystories'"):
        download("tinystorys", tmp_path)
    with pytest.raises(SettingError, match="64 hexadecimal digits"):
        download("http://a/b.txt", tmp_path, sha256="abc")
    with pytest.raises(SettingError, match="the catalog has no 'file:///etc/passwd'"):
        download("file:///etc/passwd", tmp_path)
    assert names(tmp_path) == []
