"""Token ids on disk: a header, then nothing but ids. A shard of any size is opened at once and read as an array.

bytes   0-8    magic b"TESSERA\\0"
        8-12   version of this format                      (all numbers little-endian)
       12-16   bytes an id: 2 (uint16, up to 65,536 entries in the vocabulary) or 4 (uint32)
       16-24   number of ids
       24-56   sha256 of the ids
       56-88   fingerprint of the tokenizer that made them
       88-96   reserved, zero
       96-128  sha256 of bytes 0-96
      128-     the ids
"""

import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from tessera.data.durable import DurableFile
from tessera.errors import DamagedError, InputError

MAGIC = b"TESSERA\0"
VERSION = 1
HEADER = struct.Struct("<8sIIQ32s32s8x")
HEADER_BYTES = 128
DTYPES: dict[int, np.dtype[Any]] = {2: np.dtype("<u2"), 4: np.dtype("<u4")}
HASH_CHUNK = 1 << 24


def _sealed(header: bytes) -> bytes:
    return header + hashlib.sha256(header).digest()


class ShardWriter:
    """Writes one shard; the file appears when the block is left without an error, and not before.

    `with ShardWriter(path, n_vocab=4096, fingerprint=tokenizer.fingerprint) as writer: writer.write(ids)`
    """

    def __init__(self, path: str | Path, *, n_vocab: int, fingerprint: str) -> None:
        self.n_vocab = n_vocab
        self.n_tokens = 0
        self._dtype = DTYPES[2 if n_vocab <= 2**16 else 4]
        self._fingerprint = bytes.fromhex(fingerprint)
        self._digest = hashlib.sha256()
        self._file = DurableFile(path)
        self._file.write(bytes(HEADER_BYTES))

    def write(self, ids: np.ndarray) -> None:
        """Append ids; one outside the vocabulary is an error, as it would wrap around without a word."""
        if ids.size == 0:
            return
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= self.n_vocab:
            raise InputError(
                f"the tokenizer made the id {low if low < 0 else high}; its vocabulary ends at {self.n_vocab - 1}"
            )
        data = ids.astype(self._dtype, copy=False).tobytes()
        self._digest.update(data)
        self._file.write(data)
        self.n_tokens += ids.size

    @property
    def sha256(self) -> str:
        """Of the ids so far."""
        return self._digest.hexdigest()

    def __enter__(self) -> Self:
        self._file.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            try:
                self._file.write_at_start(self._header())
            except BaseException as refused:
                self._file.__exit__(type(refused), refused, refused.__traceback__)
                raise
        self._file.__exit__(kind, error, trace)

    def _header(self) -> bytes:
        return _sealed(
            HEADER.pack(MAGIC, VERSION, self._dtype.itemsize, self.n_tokens, self._digest.digest(), self._fingerprint)
        )


@dataclass(frozen=True, eq=False)
class Shard:
    """Token ids in one long row: the documents one after another, each closed by the tokenizer's end token."""

    tokens: np.ndarray
    sha256: str = ""
    fingerprint: str = ""
    path: Path | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def open(cls, path: str | Path, *, fingerprint: str | None = None, verify: bool = False) -> "Shard":
        """The shard at `path`, mapped, not read.

        Header and size are always checked; `verify` reads the ids once and compares their sha256. With `fingerprint`, a
        shard that another tokenizer made is an `InputError`.
        """
        path = Path(path)
        itemsize, count, sha256, made_by = _read_header(path)
        if fingerprint is not None and made_by != fingerprint:
            raise InputError(
                f"{path} was made by another tokenizer ({made_by[:12]}, not {fingerprint[:12]}): prepare the data again"
            )
        dtype = DTYPES[itemsize]
        if count == 0:
            tokens = np.empty(0, dtype=dtype)
        else:
            tokens = np.memmap(path, dtype=dtype, mode="r", offset=HEADER_BYTES, shape=(count,))
        shard = cls(tokens=tokens, sha256=sha256, fingerprint=made_by, path=path)
        if verify:
            shard.verify()
        return shard

    def verify(self) -> None:
        """Compare the ids with the sha256 in the header; `DamagedError` if they are not what was written."""
        digest = hashlib.sha256()
        step = HASH_CHUNK // self.tokens.itemsize
        for start in range(0, len(self.tokens), step):
            digest.update(self.tokens[start : start + step].tobytes())
        if digest.hexdigest() != self.sha256:
            raise DamagedError(self.path or "shard", "the token ids do not match the sha256 in its header")


def _read_header(path: Path) -> tuple[int, int, str, str]:
    """(bytes an id, number of ids, their sha256, tokenizer fingerprint), checked against the file's size."""
    try:
        with path.open("rb") as file:
            header = file.read(HEADER_BYTES)
        size = path.stat().st_size
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    if not header.startswith(MAGIC):
        raise DamagedError(path, "it does not begin as a shard does")
    if len(header) < HEADER_BYTES:
        raise DamagedError(path, f"it ends within its header, after {len(header)} of {HEADER_BYTES} bytes")
    if _sealed(header[: HEADER.size]) != header:
        raise DamagedError(path, "its header does not match its own sha256")
    _, version, itemsize, count, sha256, fingerprint = HEADER.unpack(header[: HEADER.size])
    if version != VERSION or itemsize not in DTYPES:
        raise InputError(f"{path}: shard format {version} is not known here (this is {VERSION}); update Tessera")
    expected = HEADER_BYTES + count * itemsize
    if size != expected:
        raise DamagedError(path, f"{size} bytes where {expected} were written")
    return itemsize, count, sha256.hex(), fingerprint.hex()
