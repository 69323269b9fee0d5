"""A vocabulary that comes from outside: a file or a URL, in one of three forms.

Our own `tokenizer.json` (any kind), a tiktoken rank file (bpe: a line is a token in base64, a space, its rank), or a
plain list with one token a line (char, word). A rank file holds neither split pattern nor special tokens: those are
settings.
"""

import base64
import binascii
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any

from tessera.errors import InputError, SettingError
from tessera.tokenizers.bpe import RegexBpe
from tessera.tokenizers.char import CharTokenizer
from tessera.tokenizers.contract import Tokenizer, parse_state
from tessera.tokenizers.scan import PATTERNS
from tessera.tokenizers.specials import DEFAULT_SPECIALS, Specials
from tessera.tokenizers.word import PAD, UNKNOWN, WordTokenizer, split_words

MAX_BYTES = 64 * 2**20
TIMEOUT = 60.0
_ESCAPES = {r"\n": "\n", r"\t": "\t", r"\r": "\r"}


def read_source(source: str | Path, *, max_bytes: int = MAX_BYTES, timeout: float = TIMEOUT) -> bytes:
    """The content of a file or of an http(s) URL; more than `max_bytes` or `timeout` seconds is an `InputError`."""
    try:
        if str(source).startswith(("http://", "https://")):
            return _fetch(str(source), max_bytes, timeout)
        path = Path(source)
        if path.stat().st_size > max_bytes:
            raise InputError(f"{source}: larger than {max_bytes} bytes, which no vocabulary is")
        return path.read_bytes()
    except urllib.error.HTTPError as error:
        raise InputError(f"{source}: the server answers {error.code} {error.reason}") from None
    except FileNotFoundError:
        raise InputError(f"{source}: no such file") from None
    except (OSError, HTTPException, ValueError) as error:  # URLError and TimeoutError are OSErrors
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise InputError(f"{source}: cannot be read ({reason})") from None


def _fetch(url: str, max_bytes: int, timeout: float) -> bytes:
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


def parse_ranks(content: bytes, source: str) -> dict[bytes, int]:
    """The ranks in a tiktoken file.

    >>> parse_ranks(b"YQ== 0\\nYWE= 1\\n", "two tokens")
    {b'a': 0, b'aa': 1}
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), start=1):
        if not line:
            continue
        try:
            encoded, rank = line.split()
            token = base64.b64decode(encoded, validate=True)
            if token in ranks or not token or int(rank) < 0:
                raise ValueError
            ranks[token] = int(rank)
        except (ValueError, binascii.Error):
            raise InputError(f"{source}, line {number}: expected a new token in base64 and its rank") from None
    return ranks


def _lines(content: bytes, source: str) -> list[tuple[int, str]]:
    """The lines that hold a token, numbered; `<pad>`, `<unk>` are every tokenizer's own and left out."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{source}: not UTF-8 text (byte {error.start})") from None
    lines = (line.removesuffix("\r") for line in text.split("\n"))
    return [(number, line) for number, line in enumerate(lines, start=1) if line and line not in (PAD, UNKNOWN)]


def _chars(content: bytes, source: str, *, specials: Specials = DEFAULT_SPECIALS) -> CharTokenizer:
    r"""One character a line; a line break is written \n, a tab may be written \t."""
    characters: list[str] = []
    for number, line in _lines(content, source):
        if line in specials:
            continue
        character = _ESCAPES.get(line, line)
        if len(character) != 1 or character in characters:
            raise InputError(f"{source}, line {number}: {line!r} is not one new character")
        characters.append(character)
    if not characters:
        raise InputError(f"{source}: there is no character in it")
    return CharTokenizer(alphabet="".join(characters), specials=specials)


def _words(content: bytes, source: str, *, specials: Specials = DEFAULT_SPECIALS) -> WordTokenizer:
    """One word a line, made lower-case and bare as text is; of equal words the first counts."""
    words: dict[str, None] = {}
    for number, line in _lines(content, source):
        if line in specials:
            continue
        found = split_words(line)
        if len(found) != 1:
            raise InputError(f"{source}, line {number}: {line!r} is not one word")
        words.setdefault(found[0])
    if not words:
        raise InputError(f"{source}: there is no word in it")
    return WordTokenizer(words=list(words), specials=specials)


def _ranks(
    content: bytes, source: str, *, pattern: str | None = None, specials: Specials = DEFAULT_SPECIALS
) -> RegexBpe:
    """A tiktoken file with the pattern and the special tokens that it does not hold."""
    ranks = parse_ranks(content, source)
    if pattern is None:
        expected = f"{', '.join(PATTERNS)} or a regular expression: {source} holds ranks and no split pattern"
        raise SettingError("tokenizer.pattern", pattern, expected)
    try:
        return RegexBpe(ranks=ranks, pattern=pattern, specials=specials)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None


_PLAIN: dict[str, tuple[type[Tokenizer], Callable[..., Tokenizer], tuple[str, ...]]] = {
    "char": (CharTokenizer, _chars, ("specials",)),
    "word": (WordTokenizer, _words, ("specials",)),
    "bpe": (RegexBpe, _ranks, ("pattern", "specials")),
}


def load_vocabulary(kind: str, source: str | Path, **settings: Any) -> Tokenizer:
    """A tokenizer of `kind` with the vocabulary at `source`, a path or an http(s) URL.

    `settings` are what a plain vocabulary does not hold: `specials`, and for "bpe" the `pattern`. A `tokenizer.json`
    holds both, and takes none.
    """
    if kind not in _PLAIN:
        raise SettingError("tokenizer", kind, f"{', '.join(_PLAIN)}: only these take a vocabulary")
    make, read, known = _PLAIN[kind]
    for name in settings:
        if name not in known:
            raise SettingError.unknown(f"tokenizer ({kind}, from a vocabulary)", name, known)
    content = read_source(source)
    found = _json(content)
    if found is None:
        return read(content, str(source), **settings)
    if "tokenizer" not in found:
        raise InputError(f"{source}: JSON, but no tokenizer.json that Tessera wrote")
    if settings:
        name, value = next(iter(settings.items()))
        raise SettingError(f"tokenizer.{name}", value, f"no value: {source} has its own")
    return make.from_state(parse_state(content, source))


def _json(content: bytes) -> dict[str, Any] | None:
    """The content as a JSON object of at least one entry; None if it is none."""
    if not content.lstrip().startswith(b"{"):
        return None
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and found else None
