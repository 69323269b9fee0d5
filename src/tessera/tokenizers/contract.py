"""What every tokenizer promises: text to ids and back, and never a special token by accident.

A tokenizer is a table of tokens (id -> bytes) and a rule that cuts ordinary text into them. Special tokens such as
`<|endoftext|>` stand outside that rule: `encode` sees them only where the caller allows it, so that the text of a
stranger cannot end a document. Their ids may be sparse, far above the ordinary ones.

A kind adds three methods: `encode_ordinary`, `settings` and `restore`; and a class method `train`.
"""

import codecs
import hashlib
import json
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from functools import cached_property
from operator import index
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from tessera.errors import DamagedError, InputError, SettingError, StorageError
from tessera.tokenizers.specials import END, Specials, assign_specials, check_text, split_specials

VERSION = 1


class Tokenizer(ABC):
    """A table of tokens, and a rule that cuts ordinary text into them."""

    kind: ClassVar[str]
    separator: ClassVar[bytes] = b""  # what `decode` writes between two tokens
    unknown: ClassVar[bytes] = "\ufffd".encode()  # what an id that is not in the table decodes to

    def __init__(self, *, tokens: Mapping[int, bytes], specials: Specials) -> None:
        self.specials: dict[str, int] = assign_specials(specials, tokens)
        self._bytes = {**tokens, **{id: name.encode() for name, id in self.specials.items()}}

    @property
    def n_vocab(self) -> int:
        """One more than the largest id: the rows that an embedding needs."""
        return max(self._bytes) + 1

    @property
    def end_id(self) -> int | None:
        """The id of `<|endoftext|>`, which separates documents; None without one."""
        return self.specials.get(END)

    @property
    def unk_id(self) -> int | None:
        """What an unknown character or word becomes; None where nothing is unknown."""
        return None

    @property
    def pad_id(self) -> int | None:
        """What fills short rows up; None where the kind has none."""
        return None

    @property
    def dtype(self) -> type[np.uint16] | type[np.uint32]:
        """The smallest array type that holds every id."""
        return np.uint16 if self.n_vocab <= 2**16 else np.uint32

    @abstractmethod
    def encode_ordinary(self, text: str) -> list[int]:
        """The ids of `text`, in which nothing is special."""

    def encode(self, text: str, *, specials: str | Collection[str] = "none") -> list[int]:
        """The ids of `text`.

        Where `specials` is "none", a special token that is spelled out is ordinary text; with "all" it becomes its id;
        a set of names allows only those.
        """
        check_text(text)
        allowed = self._allowed(specials)
        if not allowed:
            return self.encode_ordinary(text)
        ids: list[int] = []
        for part, special in split_specials(text, allowed):
            ids += [self.specials[part]] if special else self.encode_ordinary(part)
        return ids

    def encode_batch(self, texts: Iterable[str], *, specials: str | Collection[str] = "none") -> list[np.ndarray]:
        """Each text's ids as an array of `dtype`."""
        return [np.array(self.encode(text, specials=specials), dtype=self.dtype) for text in texts]

    def _allowed(self, specials: str | Collection[str]) -> frozenset[str]:
        if specials == "none":
            return frozenset()
        if specials == "all":
            return frozenset(self.specials)
        if isinstance(specials, str):
            raise SettingError("specials", specials, "'none', 'all' or a set of special tokens")
        for name in specials:
            if name not in self.specials:
                raise SettingError.unknown("specials", name, self.specials)
        return frozenset(specials)

    def token_bytes(self, id: int) -> bytes:
        """One token's bytes; of an id that is not in the table, `unknown`."""
        return self._bytes.get(index(id), self.unknown)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that `ids` stand for, which need not be whole characters."""
        return self.separator.join(map(self.token_bytes, ids))

    def decode(self, ids: Iterable[int]) -> str:
        """The text that `ids` stand for; bytes that are no character become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def stream(self) -> "StreamDecoder":
        """A decoder that takes ids one at a time."""
        return StreamDecoder(self)

    def vocabulary(self) -> list[tuple[int, bytes]]:
        """Every (id, bytes), special tokens too, by id."""
        return sorted(self._bytes.items())

    @classmethod
    @abstractmethod
    def train(cls, texts: Iterable[str]) -> Self:
        """A tokenizer made from `texts`; each kind adds its own settings as keywords."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What `restore` makes the tokenizer from again, as JSON can hold it."""

    @classmethod
    @abstractmethod
    def restore(cls, settings: Mapping[str, Any]) -> Self:
        """The tokenizer whose `settings()` these are."""

    def state(self) -> dict[str, Any]:
        """All that the tokenizer is, as JSON can hold it; `from_state` gives the tokenizer back."""
        return {"kind": self.kind, "version": VERSION, **self.settings()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """The tokenizer whose `state()` this is."""
        if state.get("version") != VERSION:
            raise InputError(f"a tokenizer of version {state.get('version')!r}; this Tessera reads version {VERSION}")
        if state.get("kind") != cls.kind:
            raise InputError(f"a tokenizer of kind {state.get('kind')!r}, not {cls.kind!r}")
        try:
            return cls.restore(state)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"not the state of a tokenizer of kind {cls.kind!r} ({error!r})") from None

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 of the state: two tokenizers that share it give the same ids."""
        return state_sha256(self.state())

    def to_json(self) -> str:
        """The state with its sha256, as the text of a tokenizer.json."""
        content = {"sha256": self.fingerprint, "tokenizer": self.state()}
        return json.dumps(content, ensure_ascii=False, indent=0) + "\n"

    def save(self, path: str | Path) -> None:
        """Write one JSON file, whole or not at all."""
        _write_atomic(Path(path), self.to_json().encode())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The tokenizer that `save` wrote; `load_tokenizer` reads every kind."""
        return cls.from_state(read_state(path))


class StreamDecoder:
    """Ids in, text out, one at a time; together the pieces are exactly `decode` of all the ids.

    Bytes wait until their character is whole.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")
        self._started = False

    def push(self, id: int) -> str:
        """The text that `id` completes, often one piece, sometimes none."""
        separator = self._tokenizer.separator if self._started else b""
        self._started = True
        return self._characters.decode(separator + self._tokenizer.token_bytes(id))

    def finish(self) -> str:
        """What is left: U+FFFD for a character that never became whole. The decoder is then as new."""
        rest = self._characters.decode(b"", final=True)
        self._started = False
        return rest


def state_sha256(state: Mapping[str, Any]) -> str:
    """The sha256, in hex, of the state as canonical JSON (sorted keys, no spaces, UTF-8)."""
    text = json.dumps(state, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def read_state(path: str | Path) -> dict[str, Any]:
    """The state in a file that `save` wrote, proved by its sha256."""
    try:
        return parse_state(Path(path).read_bytes(), path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def parse_state(text: str | bytes, path: str | Path) -> dict[str, Any]:
    """The state in what `to_json` gave; `path` says in errors where it is from."""
    try:
        content = json.loads(text)
        state, sha256 = content["tokenizer"], content["sha256"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DamagedError(path, "it is not a whole tokenizer file") from None
    if not isinstance(state, dict) or state_sha256(state) != sha256:
        raise DamagedError(path, "its content does not match its sha256")
    return state


def _write_atomic(path: Path, content: bytes) -> None:
    """A reader sees the old file or the new one, whole: temporary file, fsync, rename, fsync of the folder."""
    temporary: Path | None = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f"{path.name}.", suffix=".tmp", delete=False) as file:
            temporary = Path(file.name)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise StorageError(path, error) from error
