"""Safetensors files, read: bounded, and without a second copy. `safetensors_out.py` writes them.

A file is eight bytes of header length, a JSON header `{name: {dtype, shape, data_offsets}}` and the raw little-endian
data (huggingface.co/docs/safetensors). Nothing that the header claims is believed: its length is checked against the
file before it is read, and the tensors must lie side by side from the first byte of the data to the last. A tensor is
then read straight into the memory where it stays; one of another float type is converted on the way, a piece at a time.
"""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tessera.errors import FormatError
from tessera.formats.json_file import parse_json_object, read_json_object
from tessera.store.files import Buffer
from tessera.store.tensors import NUMPY_DTYPES, array_from

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MAX_HEADER = 100 * 10**6  # what the format itself allows
MAX_DIMENSIONS = 8
_CHUNK = 2**22
_FLOATS = ("F64", "F32", "F16", "BF16")
WIDTHS = {name: dtype.itemsize for name, dtype in NUMPY_DTYPES.items()} | {"BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
"""The types of the format, and the bytes of a number."""


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies in a file, in bytes from the file's start, and what it is."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class SafetensorsFile:
    """One file, its header read and proved."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors: dict[str, Stored] = {}
        self.metadata: dict[str, str] = {}
        try:
            with path.open("rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                length = _header_length(path, file.read(8), size)
                header = _read_exactly(path, file.fileno(), bytearray(length), 8)
        except OSError as error:
            raise FormatError(path, f"it cannot be read ({error.strerror or error})") from None
        content = parse_json_object(bytes(header), path)
        self.metadata = _metadata(path, content.pop("__metadata__", {}))
        for name, entry in content.items():
            self.tensors[name] = _stored(path, name, entry, 8 + length)
        _check_side_by_side(path, self.tensors, 8 + length, size)

    def array_into(self, name: str, out: np.ndarray) -> None:
        """Fill `out` (one dimension, contiguous, float32) with the tensor's elements."""
        stored = self.tensors[name]
        width, begin = WIDTHS[stored.dtype], 0
        if stored.dtype == "F32":
            self._read_at(stored.start, out.view(np.uint8).data)
            return
        for piece in self.pieces(name):
            part = array_from(np.frombuffer(piece, np.uint8), stored.dtype, [len(piece) // width])
            with np.errstate(over="ignore"):  # a number of 64 bits may be too large: it becomes infinite
                out[begin : begin + len(part)] = part
            begin += len(part)

    def tensor_into(self, name: str, out: "Tensor") -> None:
        """Fill `out` (one dimension, contiguous, of a float type) with the tensor's elements."""
        import torch  # where tensors of it are wanted it is there

        from tessera.store.torch_types import DTYPES

        stored, begin = self.tensors[name], 0
        if DTYPES[stored.dtype] == out.dtype:
            self._read_at(stored.start, memoryview(out.view(torch.uint8).numpy()))  # type: ignore[arg-type]
            return
        for piece in self.pieces(name):
            part = torch.frombuffer(piece, dtype=DTYPES[stored.dtype])
            out[begin : begin + len(part)] = part
            begin += len(part)

    def _read_at(self, start: int, into: Buffer) -> None:
        with self.path.open("rb", buffering=0) as file:
            _read_exactly(self.path, file.fileno(), into, start)

    def pieces(self, name: str) -> Iterator[bytearray]:
        """The tensor's bytes, a piece at a time."""
        stored = self.tensors[name]
        with self.path.open("rb", buffering=0) as file:
            for start in range(stored.start, stored.end, _CHUNK):
                piece = bytearray(min(_CHUNK, stored.end - start))
                _read_exactly(self.path, file.fileno(), piece, start)
                yield piece


class SafetensorsModel:
    """The tensors of one file or of many, by name."""

    def __init__(self, path: Path, files: Sequence[SafetensorsFile]) -> None:
        self.path = path
        self._holder = {name: file for file in files for name in file.tensors}
        self.shapes = {name: file.tensors[name].shape for name, file in self._holder.items()}

    def array(self, name: str, out: np.ndarray | None = None) -> np.ndarray:
        """The tensor as float32, in new memory or in `out` (contiguous, of its shape)."""
        out = np.empty(self.shapes[name], np.float32) if out is None else out
        self._holder[name].array_into(name, out.reshape(-1))
        return out

    def tensor(self, name: str, dtype: "torch.dtype", out: "Tensor | None" = None) -> "Tensor":
        """The same as PyTorch's tensor of the type `dtype`."""
        import torch

        out = torch.empty(self.shapes[name], dtype=dtype) if out is None else out
        self._holder[name].tensor_into(name, out.view(-1))
        return out

    def check_float(self, name: str) -> None:
        """Raise `FormatError` for a tensor of whole numbers, or of eight bits whose scale is elsewhere."""
        file = self._holder[name]
        dtype = file.tensors[name].dtype
        if dtype not in _FLOATS:
            raise FormatError(file.path, f"the tensor {name!r} is of the type {dtype}: read are {', '.join(_FLOATS)}")

    def same(self, one: str, other: str) -> bool:
        """Whether two tensors have the same bytes."""
        pieces = (self._holder[name].pieces(name) for name in (one, other))
        return all(a == b for a, b in zip_longest(*pieces))


def open_shards(index: Path) -> SafetensorsModel:
    """The model of a `model.safetensors.index.json`: which names lie in which files of the same folder."""
    listed = read_json_object(index, max_bytes=MAX_HEADER).get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(isinstance(name, str) for name in listed.values()):
        raise FormatError(index, "it has no weight_map of tensors and file names")
    files = {}
    for file_name in sorted(set(listed.values())):
        if Path(file_name).name != file_name or file_name in ("", ".", "..") or not file_name.isprintable():
            raise FormatError(index, f"the shard {file_name!r} is not the name of a file beside it")
        if not file_name.endswith(".safetensors"):
            raise FormatError(index, f"the shard {file_name!r} is not a .safetensors file; no other kind is read")
        files[file_name] = SafetensorsFile(index.parent / file_name)
    for name, file_name in listed.items():
        if name not in files[file_name].tensors:
            raise FormatError(index, f"the tensor {name!r} is not in {file_name}, where the index says it is")
    for file_name, file in files.items():
        for name in file.tensors:
            if listed.get(name) != file_name:
                raise FormatError(index, f"the tensor {name!r} of {file_name} is not listed for that file")
    return SafetensorsModel(index, list(files.values()))


def _header_length(path: Path, first: bytes, size: int) -> int:
    length = int.from_bytes(first, "little")
    if len(first) < 8 or length < 2:
        raise FormatError(path, f"{size} bytes are not a safetensors file")
    if length > size - 8:
        raise FormatError(path, f"a header of {length} bytes is claimed in a file of {size}")
    if length > MAX_HEADER:
        raise FormatError(path, f"a header of {length} bytes, where {MAX_HEADER} are allowed")
    return length


def _metadata(path: Path, found: Any) -> dict[str, str]:
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise FormatError(path, "its __metadata__ is not a map of names and texts")
    return found


def _stored(path: Path, name: str, entry: Any, data_start: int) -> Stored:
    """The header's entry of one tensor, checked by itself."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise FormatError(path, f"the entry of the tensor {name!r} is not its dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in WIDTHS:
        raise FormatError(path, f"the tensor {name!r} has the dtype {dtype!r} (known: {', '.join(WIDTHS)})")
    if not _are_sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise FormatError(path, f"the tensor {name!r} has the shape {str(shape)[:80]}")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise FormatError(path, f"the tensor {name!r} has the data_offsets {str(offsets)[:80]}")
    start, end = offsets
    if math.prod(shape) * WIDTHS[dtype] != end - start:
        raise FormatError(path, f"the tensor {name!r} of {dtype} {shape} does not fill its {end - start} bytes")
    return Stored(dtype, tuple(shape), data_start + start, data_start + end)


def _are_sizes(values: Any) -> bool:
    """Whether it is a list of whole numbers that a file could have: none below 0, none of 2^48 or more."""
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**48 for value in values)


def _check_side_by_side(path: Path, tensors: Mapping[str, Stored], start: int, size: int) -> None:
    """The format's own rule: the data has no holes, no overlaps, and nothing after it."""
    for name, stored in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if stored.start != start:
            kind = "overlaps the one before it" if stored.start < start else "leaves a hole before it"
            raise FormatError(path, f"the tensor {name!r} {kind}")
        start = stored.end
    if start != size:
        raise FormatError(path, f"its tensors end at byte {start} and the file at byte {size}")


def _read_exactly(path: Path, descriptor: int, into: Buffer, offset: int) -> Buffer:
    """Fill `into` from byte `offset` of the file on; returns it."""
    rest = memoryview(into)
    while rest:
        n = os.preadv(descriptor, [rest[: 2**30]], offset)  # the system takes less than 2 GiB at once
        if n == 0:
            raise FormatError(path, f"it ended at byte {offset} while it was read")
        rest, offset = rest[n:], offset + n
    return into
