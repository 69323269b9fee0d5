"""Files from the web: resumed where they stopped, checked by sha256, and never half there under their own name.

The bytes go to `NAME.part`. `NAME.part.json` remembers what the server called that version (its ETag or date), so that
a part is only continued with the rest of the same file (RFC 9110, sections 13.1.5 and 14.2). A complete file is hashed,
its sha256 written to `NAME.sha256` (in the form that `sha256sum -c` reads), and only then renamed.
"""

import errno
import fcntl
import hashlib
import http.client
import json
import os
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import IO, Any

from tessera.data.catalog import CORPORA, Remote, cache_folder
from tessera.errors import DamagedError, InputError, SettingError, StorageError
from tessera.store.files import fsync_folder, make_folders, rename, storage_errors, write_bytes_atomic

Progress = Callable[[int, int | None], None]
"""Called with the bytes that are there and the bytes that there will be (None where the server does not say)."""

CHUNK = 1 << 18
TIMEOUT = 30.0
TRIES = 5
RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})


def download(
    url_or_name: str,
    folder: str | Path | None = None,
    *,
    sha256: str | None = None,
    progress: Progress | None = None,
    pause: float = 1.0,
) -> Path:
    """The file behind a URL, or the folder of a named corpus, downloaded unless it is there and whole.

    `folder` is the cache unless given; a corpus that every machine has is not downloaded, its folder is where it lies.
    Lost connections are tried again after `pause`, 2 `pause`, 4 `pause` ... seconds; TRIES failures in a row are an
    `InputError`, and the next call goes on from there. Content with another sha256 than the one given, published by the
    server or recorded earlier is removed: `DamagedError`.
    """
    folder = Path(folder) if folder is not None else cache_folder()
    if url_or_name.startswith(("http://", "https://")):
        remote = Remote(url=url_or_name, sha256=_checked_digest(sha256))
        return _fetch(remote, folder, progress=progress, pause=pause)
    corpus = CORPORA.get(url_or_name)
    if corpus is None:
        raise SettingError.unknown("the catalog", url_or_name, CORPORA)
    if corpus.folder is not None:
        return corpus.folder()
    for remote in corpus.files:
        _fetch(remote, folder / url_or_name, progress=progress, pause=pause)
    return folder / url_or_name


def _checked_digest(sha256: str | None) -> str | None:
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise SettingError("sha256", sha256, "64 hexadecimal digits")
    return sha256.lower() if sha256 else None


def file_name(url: str) -> str:
    """The last part of the URL's path, as a file name."""
    name = urllib.parse.unquote(urllib.parse.urlsplit(url).path.rpartition("/")[2])
    if name in {"", ".", ".."} or "/" in name or "\0" in name:
        raise InputError(f"{url}: the URL names no file")
    return name


def _fetch(remote: Remote, folder: Path, *, progress: Progress | None, pause: float) -> Path:
    path = folder / file_name(remote.url)
    make_folders(folder)
    recorded = remote.sha256 or _recorded_digest(path)
    if path.is_file():
        found = _digest(path)
        if recorded in {None, found}:
            _record_digest(path, found)
            if progress:
                progress(path.stat().st_size, path.stat().st_size)
            return path
    part = path.with_name(path.name + ".part")
    with storage_errors(part), part.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{path}: another process is downloading it") from None
        transfer = _Transfer(url=remote.url, part=part, file=file, known=remote.sha256, progress=progress)
        _persist(transfer, pause)
        _keep(transfer, path, remote.sha256 or transfer.linked)
    return path


def _persist(transfer: "_Transfer", pause: float) -> None:
    """Try until the file is whole; only failures without a new byte count towards TRIES."""
    failures = 0
    while True:
        before = transfer.size
        try:
            if transfer.attempt():
                return
            reason = "the connection was lost"
        except urllib.error.HTTPError as error:
            if error.code not in RETRIED:
                raise InputError(f"{transfer.url}: the server says {error.code} {error.reason}") from None
            reason = f"the server says {error.code} {error.reason}"
        except (http.client.HTTPException, OSError) as error:  # a refusal of the disk is a StorageError
            reason = str(getattr(error, "reason", error) or type(error).__name__)
        failures = 0 if transfer.size > before else failures + 1
        if failures == TRIES:
            again = f"; the next call goes on from byte {transfer.size}" if transfer.size else ""
            raise InputError(f"{transfer.url}: cannot be downloaded ({reason}){again}")
        time.sleep(pause * 2 ** max(failures - 1, 0))


def _keep(transfer: "_Transfer", path: Path, expected: str | None) -> None:
    """Check the whole part, record its sha256, and give it its name."""
    found = _digest(transfer.part)
    if expected not in {None, found}:
        transfer.part.unlink()
        transfer.note.unlink(missing_ok=True)
        raise DamagedError(path, f"the download's sha256 is {found}, expected {expected}; it was removed, try again")
    os.fsync(transfer.file.fileno())
    _record_digest(path, found)
    rename(transfer.part, path)
    fsync_folder(path.parent)
    transfer.note.unlink(missing_ok=True)


def _digest(path: Path) -> str:
    with storage_errors(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_file(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _recorded_digest(path: Path) -> str | None:
    with suppress(OSError, UnicodeDecodeError):
        match = re.match(r"[0-9a-f]{64}(?= )", _digest_file(path).read_text(encoding="ascii"))
        return match.group() if match else None
    return None


def _record_digest(path: Path, digest: str) -> None:
    if _recorded_digest(path) != digest:
        write_bytes_atomic(_digest_file(path), f"{digest}  {path.name}\n".encode())


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects and keeps the sha256 that a hub names in the answer that redirects."""

    linked: str | None = None

    def redirect_request(self, req: Any, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str) -> Any:
        self.linked = _linked_digest(headers) or self.linked
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _linked_digest(headers: Message) -> str | None:
    """The sha256 in `X-Linked-ETag`, which is how Hugging Face names the content of a large file."""
    value = headers.get("X-Linked-ETag", "").removeprefix("W/").strip('"').lower()
    return value if re.fullmatch(r"[0-9a-f]{64}", value) else None


@dataclass
class _Transfer:
    """One file on its way: `part` holds the first bytes of what the server calls `version`."""

    url: str
    part: Path
    file: IO[bytes]
    known: str | None
    progress: Progress | None
    linked: str | None = None
    version: str | None = field(init=False)

    def __post_init__(self) -> None:
        self.version = None
        with suppress(OSError, ValueError, TypeError, KeyError):
            note = json.loads(self.note.read_bytes())
            if note["url"] == self.url:
                self.version = str(note["version"]) if note["version"] else None
                self.linked = _checked_digest(note["linked"])
        if self.version is None and self.known is None:
            self.restart()  # nothing would tell a changed file from the old one

    @property
    def note(self) -> Path:
        return self.part.with_name(self.part.name + ".json")

    @property
    def size(self) -> int:
        return self.part.stat().st_size

    def restart(self) -> None:
        with storage_errors(self.part):
            self.file.truncate(0)

    def attempt(self) -> bool:
        """Ask for what is missing and write what comes; whether the file is now whole."""
        redirects = _Redirects()
        headers = {"User-Agent": "tessera-lm", "Accept-Encoding": "identity"}
        if self.size:
            headers["Range"] = f"bytes={self.size}-"
        request = urllib.request.Request(self.url, headers=headers)
        try:
            response = urllib.request.build_opener(redirects).open(request, timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not self.size:
                raise
            return self._past_the_end(error.headers)
        with response:
            total = self._begin(response, _linked_digest(response.headers) or redirects.linked)
            return total is not None and self._receive(response, total)

    def _past_the_end(self, headers: Message) -> bool:
        """Nothing lies after our bytes: the file is whole if that is its size, and another one if not."""
        whole = headers.get("Content-Range", "").strip() == f"bytes */{self.size}" and self._same_version(headers)
        if not whole:
            self.restart()
        return whole

    def _same_version(self, headers: Message) -> bool:
        named = _version(headers)
        return self.version is None or named is None or named == self.version

    def _begin(self, response: Any, linked: str | None) -> int | None:
        """The size that the file will have (-1 if unsaid); None where our part is of another file and was dropped."""
        length = response.headers.get("Content-Length")
        if response.status == http.HTTPStatus.PARTIAL_CONTENT:
            place = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip())
            if not place or int(place[1]) != self.size or not self._same_version(response.headers):
                self.restart()
                return None
            total = -1 if place[2] == "*" else int(place[2])
        else:
            self.restart()
            total = int(length) if length else -1
        self.version, self.linked = _version(response.headers), linked
        note = {"url": self.url, "version": self.version, "linked": self.linked}
        write_bytes_atomic(self.note, json.dumps(note).encode())
        needed, free = total - self.size, shutil.disk_usage(self.part.parent).free
        if needed > free:
            raise StorageError(self.part, OSError(errno.ENOSPC, f"it needs {needed:,} bytes, the disk has {free:,}"))
        return total

    def _receive(self, response: Any, total: int) -> bool:
        done = self.size
        while chunk := response.read(CHUNK):
            with storage_errors(self.part):
                self.file.write(chunk)
                self.file.flush()
            done += len(chunk)
            if self.progress:
                self.progress(done, None if total < 0 else total)
        return total < 0 or done == total


def _version(headers: Message) -> str | None:
    """What tells this content from another under the same URL: a strong ETag, else the date of its last change."""
    tag = headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified")
