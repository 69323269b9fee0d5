"""Where a vocabulary comes from: a file, a model's folder or an http(s) URL, and what lies beside it."""

import json
import reprlib
import time
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from tessera.errors import FormatError, InputError

MAX_BYTES = 64 * 2**20
TIMEOUT = 60.0
MISSING = (403, 404, 410)  # some stores answer 403 where there is no file
FOLDER_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model")  # in the order of preference


class _MissingError(InputError):
    """There is nothing there, which for a file beside another is no error."""


def read_source(source: str | Path, *, max_bytes: int = MAX_BYTES, timeout: float = TIMEOUT) -> bytes:
    """The content of a file or of an http(s) URL; more than `max_bytes` or `timeout` seconds is an `InputError`."""
    if is_url(source):
        return _fetch(str(source), max_bytes, timeout)
    path = Path(source)
    try:
        if path.stat().st_size > max_bytes:
            raise InputError(f"{source}: larger than {max_bytes} bytes, which no vocabulary is")
        return path.read_bytes()
    except FileNotFoundError:
        raise _MissingError(f"{source}: no such file") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{source}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def is_url(source: str | Path) -> bool:
    """Whether `source` is fetched and not opened."""
    return str(source).startswith(("http://", "https://"))


def _fetch(url: str, max_bytes: int, timeout: float) -> bytes:
    # Here, as the network's libraries take long to load and few vocabularies come from there.
    import urllib.error
    from http.client import HTTPException

    try:
        return _downloaded(url, max_bytes, timeout)
    except urllib.error.HTTPError as error:
        kind = _MissingError if error.code in MISSING else InputError
        raise kind(f"{url}: the server answers {error.code} {error.reason}") from None
    except (OSError, HTTPException, ValueError) as error:  # URLError and TimeoutError are OSErrors
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise InputError(f"{url}: cannot be read ({reason})") from None


def _downloaded(url: str, max_bytes: int, timeout: float) -> bytes:
    import urllib.request

    deadline = time.monotonic() + timeout
    content = bytearray()
    with urllib.request.urlopen(url, timeout=timeout) as response:
        while chunk := response.read1(2**16):
            content += chunk
            if len(content) > max_bytes:
                raise InputError(f"{url}: larger than {max_bytes} bytes, which no vocabulary is")
            if time.monotonic() > deadline:
                raise InputError(f"{url}: took longer than {timeout:g} seconds")
        expected = response.headers.get("Content-Length")
    if expected is not None and len(content) != int(expected):
        raise InputError(f"{url}: ended after {len(content)} of {expected} bytes")
    return bytes(content)


@dataclass(frozen=True)
class Source:
    """A vocabulary's content and where it is from."""

    name: str
    content: bytes

    @classmethod
    def open(cls, source: str | Path) -> Self:
        """Read `source`; of a folder, the file that says most: `tokenizer.json`, then the others in `FOLDER_FILES`,
        then its only rank file."""
        path = Path(source)
        if not is_url(source) and path.is_dir():
            found = [path / name for name in FOLDER_FILES if (path / name).is_file()] or sorted(path.glob("*.tiktoken"))
            if not found:
                expected = f"{', '.join(FOLDER_FILES)} or a .tiktoken file"
                raise InputError(f"{source}: cannot be read, as the folder has no {expected}")
            if found[0].suffix == ".tiktoken" and len(found) > 1:
                raise InputError(f"{source}: {len(found)} rank files; say which one")
            source = found[0]
        return cls(str(source), read_source(source))

    @property
    def file_name(self) -> str:
        """The last part of `name`."""
        return Path(urllib.parse.urlsplit(self.name).path if is_url(self.name) else self.name).name

    def beside(self, name: str) -> "Source | None":
        """The file called `name` in the same place; None where there is none."""
        other = urllib.parse.urljoin(self.name, name) if is_url(self.name) else str(Path(self.name).with_name(name))
        try:
            return Source(other, read_source(other))
        except _MissingError:
            return None

    @cached_property
    def json(self) -> dict[str, Any] | None:
        """The content as a JSON object of at least one entry; None if it is none."""
        if not self.content.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
            return None
        try:
            found = json.loads(self.content.decode("utf-8-sig"))
        except (ValueError, RecursionError):
            return None
        return found if isinstance(found, dict) and found else None

    def required_json(self) -> dict[str, Any]:
        """`json`, or an `InputError` where there is none."""
        if self.json is None:
            raise FormatError(self.name, "not a whole JSON object")
        return self.json


def member(data: Any, name: str, kind: type, source: str, *, otherwise: Any = None) -> Any:
    """`data[name]`, which must be of `kind` and no other (no bool for a number); absent or null is `otherwise`.

    Without `otherwise` it must be there.
    """
    if not isinstance(data, Mapping):
        raise FormatError(source, f"{reprlib.repr(data)} in place of a JSON object that has {name}")
    value = data.get(name)
    if value is None and otherwise is not None:
        return otherwise
    if type(value) is not kind:
        raise FormatError(source, f"{name} is {reprlib.repr(value)}, expected a JSON {_JSON_NAMES[kind]}")
    return value


_JSON_NAMES = {dict: "object", list: "array", str: "string", bool: "boolean", int: "whole number"}
