"""What is in a GGUF file: a header of metadata and tensor descriptions, and the tensors' bytes behind it.

The one idea: a number in the file is a claim. Every length and count is held against the bytes that are left before
anything of that size is made, so that no file, however it is damaged, costs more time or memory than its own size.
Versions 2 and 3, little-endian (the GGUF specification in ggml's docs/gguf.md).
"""

import math
import os
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from io import BufferedReader
from itertools import pairwise, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tessera.errors import FormatError, InputError
from tessera.formats.gguf.blocks import BY_CODE, Kind, dequantize, to_bf16
from tessera.formats.gguf.values import ARRAY, BOOL, MAGIC, NUMBERS, STRING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

ALIGNMENT = "general.alignment"
MOST_METADATA = 2**28  # bytes; a vocabulary of a quarter of a million tokens with its merges takes a twentieth
MOST_DIMENSIONS = 4
MOST_NESTING = 4
MOST_ALIGNMENT = 2**16
LONGEST_KEY = 2**16
CHUNK = 2**16  # numbers that are converted at a time: few, so that what is between leaves small holes in memory
_READ_AHEAD = 2**18
# The least bytes that each can take: an entry (key's length, type, a byte), a string or array in an array, a tensor.
_LEAST_ENTRY, _LEAST_STRING, _LEAST_ARRAY, _LEAST_TENSOR = 8 + 4 + 1, 8, 4 + 8, 8 + 4 + 8 + 4 + 8


@dataclass(frozen=True)
class TensorInfo:
    """A tensor's description: `shape` in torch's order (the last varies fastest, and is cut into blocks)."""

    name: str
    shape: tuple[int, ...]
    kind: Kind
    start: int
    """The place of its first byte in the file."""

    @property
    def n_numbers(self) -> int:
        return math.prod(self.shape)

    @property
    def n_bytes(self) -> int:
        return self.n_numbers // self.kind.block * self.kind.size


@dataclass(frozen=True)
class GgufFile:
    """The header of a file; `array` and `tensor` fetch one. Arrays of numbers are numpy's, arrays of strings lists."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]

    def array(self, name: str, out: np.ndarray | None = None) -> np.ndarray:
        """The tensor `name` as float32, in memory of its own or in `out` (contiguous, of its shape)."""
        info = self.tensors[name]
        out = np.empty(info.shape, np.float32) if out is None else out
        flat = out.reshape(-1)
        for begin, numbers in self._parts(info):
            flat[begin : begin + len(numbers)] = numbers
        return out

    def tensor(self, name: str, dtype: "torch.dtype", out: "Tensor | None" = None) -> "Tensor":
        """The same as PyTorch's tensor of a float type."""
        import torch  # where tensors of it are wanted it is there

        info = self.tensors[name]
        out = torch.empty(info.shape, dtype=dtype) if out is None else out
        flat = out.view(-1)
        # By numpy: the parts are small, and torch would wake all its threads for each.
        rounds = dtype == torch.bfloat16
        memory = flat.view(torch.int16).numpy().view(np.uint16) if rounds else flat.numpy()
        for begin, numbers in self._parts(info):
            part = to_bf16(numbers).view(np.uint16) if rounds else numbers
            memory[begin : begin + len(numbers)] = part
        return out

    def _parts(self, info: TensorInfo) -> Iterator[tuple[int, np.ndarray]]:
        """The numbers part by part in float32, each with its place: little memory beside the result."""
        buffer = bytearray(min(CHUNK, info.n_numbers) // info.kind.block * info.kind.size)
        with _opened(self.path) as file:
            file.seek(info.start)
            for begin in range(0, info.n_numbers, CHUNK):
                count = min(CHUNK, info.n_numbers - begin)
                content = memoryview(buffer)[: count // info.kind.block * info.kind.size]
                if file.readinto(content) != len(content):
                    raise FormatError(self.path, f"it ends within the tensor {info.name!r}")
                with np.errstate(all="ignore"):  # a scale may be infinite, as any number in a file may
                    yield begin, dequantize(info.kind, content)

    def raw(self, name: str) -> np.ndarray:
        """The bytes of the tensor `name`, (rows, bytes of a row), in memory of its own."""
        info = self.tensors[name]
        out = np.empty((info.n_numbers // info.shape[-1], info.n_bytes * info.shape[-1] // info.n_numbers), np.uint8)
        with _opened(self.path) as file:
            file.seek(info.start)
            if file.readinto(out.data) != info.n_bytes:
                raise FormatError(self.path, f"it ends within the tensor {name!r}")
        return out


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _opened(path: Path) -> BufferedReader:
    try:
        return path.open("rb")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None


def read_gguf(path: str | Path, *, passed_over: Collection[str] = ()) -> GgufFile:
    """The header of the file at `path`, checked; a file that is not whole and sound is a `FormatError`.

    Of arrays of strings under the keys `passed_over` nothing is kept: their value is None.
    """
    path = Path(path)
    with _opened(path) as file:
        return _Header(path, file, passed_over).read()


class _Header:
    """Reads on from the beginning; `size` is that of the file, `at` the place of the next byte."""

    def __init__(self, path: Path, file: BufferedReader, passed_over: Collection[str]) -> None:
        self.path, self.file = path, file
        self._passed_over = frozenset(map(repr, passed_over))
        self.size = os.fstat(file.fileno()).st_size
        self.at = 0
        self._buffer, self._place = b"", 0

    def error(self, why: str) -> FormatError:
        return FormatError(self.path, why)

    def need(self, n_bytes: int, what: str) -> None:
        """Raise unless the file has `n_bytes` more."""
        if n_bytes > self.size - self.at:
            raise self.error(f"{what} would need {n_bytes} bytes where {self.size - self.at} are left")
        if self.at + n_bytes > MOST_METADATA:
            raise self.error(f"{what} would end beyond {MOST_METADATA >> 20} MiB of metadata")

    def take(self, n_bytes: int, what: str) -> bytes:
        end = self._place + n_bytes
        if end > len(self._buffer):
            self.need(n_bytes, what)
            rest = self._buffer[self._place :]
            self._buffer = rest + self.file.read(max(n_bytes - len(rest), _READ_AHEAD))
            self._place, end = 0, n_bytes
            if end > len(self._buffer):
                raise self.error(f"it ends within {what}")
        found = self._buffer[self._place : end]
        self._place, self.at = end, self.at + n_bytes
        return found

    def number(self, what: str, format: str = "<I") -> int:
        return int(struct.unpack(format, self.take(struct.calcsize(format), what))[0])

    def text(self, what: str, longest: int | None = None) -> str:
        length = self.number(f"the length of {what}", "<Q")
        if longest is not None and length > longest:
            raise self.error(f"{what} would have {length} bytes, more than {longest}")
        try:
            return self.take(length, what).decode()
        except UnicodeDecodeError as error:
            raise self.error(f"{what} is not UTF-8 text ({error.reason} at its byte {error.start})") from None

    def read(self) -> GgufFile:
        n_tensors, n_entries = self._counts()
        metadata: dict[str, Any] = {}
        for place in range(n_entries):
            key = self.text(f"key {place}", LONGEST_KEY)
            if key in metadata:
                raise self.error(f"the key {key!r} is there twice")
            metadata[key] = self.value(self.number(f"the type of {key!r}"), repr(key))
        alignment = self._alignment(metadata)
        described = [self._tensor(place) for place in range(n_tensors)]
        data = -(-self.at // alignment) * alignment
        tensors: dict[str, TensorInfo] = {}
        for name, shape, kind, offset in described:
            if name in tensors:
                raise self.error(f"the tensor {name!r} is there twice")
            if offset % alignment:
                raise self.error(f"the tensor {name!r} begins at {offset}, which is no multiple of {alignment}")
            tensors[name] = TensorInfo(name, shape, kind, data + offset)
        self._check_places(tensors)
        return GgufFile(self.path, metadata, tensors)

    def _counts(self) -> tuple[int, int]:
        magic = self.take(4, "the magic number")
        if magic != MAGIC:
            raise self.error(f"it begins with {magic!r}, not with {MAGIC!r}: this is no GGUF file")
        version = self.number("the version")
        if version and not version & 0xFFFF:
            raise self.error("it is big-endian; only little-endian GGUF files are read")
        if version not in (2, 3):
            raise self.error(f"it is of version {version}; versions 2 and 3 are read")
        n_tensors, n_entries = self.number("the tensor count", "<Q"), self.number("the entry count", "<Q")
        self.need(n_tensors * _LEAST_TENSOR + n_entries * _LEAST_ENTRY, f"{n_tensors} tensors and {n_entries} entries")
        return n_tensors, n_entries

    def value(self, code: int, what: str, nesting: int = 0) -> Any:
        if code == STRING:
            return self.text(what)
        if code == ARRAY:
            return self._array(what, nesting)
        if code not in NUMBERS:
            raise self.error(f"{what} is of type {code}, which there is not")
        found = self._numbers(code, 1, what)[0]
        return found.item()

    def _array(self, what: str, nesting: int) -> Any:
        code, count = self.number(f"the type of {what}"), self.number(f"the length of {what}", "<Q")
        if code in NUMBERS:
            return self._numbers(code, count, what)
        if code == STRING:
            self.need(count * _LEAST_STRING, f"the {count} strings of {what}")
            return self._pass_over(count, what) if what in self._passed_over else self._strings(count, what)
        if code != ARRAY:
            raise self.error(f"{what} holds values of type {code}, which there is not")
        if nesting == MOST_NESTING:
            raise self.error(f"{what} has arrays in arrays, deeper than {MOST_NESTING}")
        self.need(count * _LEAST_ARRAY, f"the {count} arrays of {what}")
        return [self._array(what, nesting + 1) for _ in range(count)]

    def _strings(self, count: int, what: str) -> list[str]:
        """A vocabulary has hundreds of thousands: those that are in the buffer are cut out of it here."""
        found: list[str] = []
        while len(found) < count:
            found += self._short_strings(count - len(found))
            if len(found) < count:  # one that goes beyond the buffer, is long, or wrong
                found.append(self.text(what))
        return found

    def _pass_over(self, count: int, what: str) -> None:
        while count:
            edges = self._short_edges(count)
            self._go_to(edges[-1])
            count -= len(edges) - 1
            if count:
                self.text(what)
                count -= 1

    def _short_strings(self, most: int) -> list[str]:
        """As many as are whole in the buffer, shorter than 256 bytes, and UTF-8: those at the beginning that are."""
        edges = self._short_edges(most)
        pieces = [self._buffer[begin + 8 : end] for begin, end in pairwise(edges)]
        try:
            found = b"\0".join(pieces).decode().split("\0") if pieces else []
        except UnicodeDecodeError:
            found = []
        if len(found) != len(pieces):
            found = list(map(bytes.decode, takewhile(_is_utf8, pieces)))
        self._go_to(edges[len(found)])
        return found

    def _short_edges(self, most: int) -> list[int]:
        """Where those strings begin in the buffer, and where the last one ends."""
        buffer, place, last = self._buffer, self._place, len(self._buffer) - 8 - 255
        begins = []
        for _ in range(most):
            if place > last:
                break
            begins.append(place)
            place += 8 + buffer[place]  # the lowest byte of the length
        edges = np.array([*begins, place])
        lengths = np.frombuffer(buffer, np.uint8)[edges[:-1, None] + np.arange(1, 8)]
        n = int(np.argmax(np.append(lengths.any(axis=1), True)))  # those before the first that has higher ones
        found: list[int] = edges[: n + 1].tolist()
        return found

    def _go_to(self, place: int) -> None:
        """To a place in the buffer."""
        self.at, self._place = self.at + place - self._place, place

    def _numbers(self, code: int, count: int, what: str) -> np.ndarray:
        self.need(count * NUMBERS[code].itemsize, f"the {count} numbers of {what}")
        found = np.frombuffer(self.take(count * NUMBERS[code].itemsize, what), NUMBERS[code])
        if code != BOOL:
            return found
        if count and found.max() > 1:
            raise self.error(f"{what} holds {found.max()} where only 0 and 1 are truth values")
        return found.view(np.bool_)

    def _alignment(self, metadata: dict[str, Any]) -> int:
        found = metadata.get(ALIGNMENT, 32)
        if type(found) is not int or not 0 < found <= MOST_ALIGNMENT or found & (found - 1):
            raise self.error(f"{ALIGNMENT} = {found!r}: expected a power of two up to {MOST_ALIGNMENT}")
        return found

    def _tensor(self, place: int) -> tuple[str, tuple[int, ...], Kind, int]:
        name = self.text(f"the name of tensor {place}", LONGEST_KEY)
        what = f"the tensor {name!r}"
        n_dimensions = self.number(what)
        if not 1 <= n_dimensions <= MOST_DIMENSIONS:
            raise self.error(f"{what} has {n_dimensions} dimensions: expected 1 to {MOST_DIMENSIONS}")
        sizes = struct.unpack(f"<{n_dimensions}Q", self.take(8 * n_dimensions, what))
        code, offset = self.number(what), self.number(what, "<Q")
        kind = BY_CODE.get(code)
        if kind is None:
            known = ", ".join(f"{kind.name} ({kind.code})" for kind in BY_CODE.values())
            raise self.error(f"{what} is of type {code}; {known} are read")
        if 0 in sizes:
            raise self.error(f"{what} has the shape {list(sizes)}, which is empty")
        if sizes[0] % kind.block:
            raise self.error(f"{what} has rows of {sizes[0]}, which is no multiple of {kind.name}'s {kind.block}")
        return name, tuple(reversed(sizes)), kind, offset

    def _check_places(self, tensors: dict[str, TensorInfo]) -> None:
        """Every tensor lies within the file, and no byte belongs to two."""
        before: TensorInfo | None = None
        for info in sorted(tensors.values(), key=lambda info: info.start):
            if info.start + info.n_bytes > self.size:
                raise self.error(
                    f"the tensor {info.name!r} of {info.n_bytes} bytes at {info.start} ends beyond the file, "
                    f"which has {self.size}"
                )
            if before is not None and before.start + before.n_bytes > info.start:
                raise self.error(f"the tensors {before.name!r} and {info.name!r} overlap")
            before = info
