"""A safetensors file that is written as a stream: of the tensors only one is in memory at a time."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tessera.store.files import Buffer, write_new
from tessera.store.tensors import tensor_bytes
from tessera.store.torch_types import DTYPE_NAMES


@dataclass(frozen=True)
class Entry:
    """What the header says of a tensor to be written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_safetensors(
    path: Path, entries: Sequence[Entry], tensors: Iterable[Tensor], metadata: Mapping[str, str]
) -> None:
    """Write a file that does not exist yet: `tensors` are asked for one at a time, in the order of `entries`."""
    write_new(path, _chunks(entries, tensors, metadata))


def _chunks(entries: Sequence[Entry], tensors: Iterable[Tensor], metadata: Mapping[str, str]) -> Iterator[Buffer]:
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for entry in entries:
        start, end = end, end + entry.n_bytes
        shape = list(entry.shape)
        header[entry.name] = {"dtype": DTYPE_NAMES[entry.dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for entry, tensor in zip(entries, tensors, strict=True):
        assert tensor.dtype == entry.dtype and tuple(tensor.shape) == entry.shape, entry.name
        yield tensor_bytes(tensor)
