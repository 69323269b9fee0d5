"""Writes a GGUF file: the header is known before any tensor is, and then the tensors stream through.

A tensor's place follows from its shape and type alone, so the whole header is written first, and of the tensors only
one is in memory at a time. The file gets its name when it is whole and on the disk (`formats/beside.py`).
"""

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tessera.errors import SettingError
from tessera.formats.beside import new_file
from tessera.formats.gguf.blocks import KINDS, Kind, quantize
from tessera.formats.gguf.values import MAGIC, VERSION, Value, write_entry, write_string
from tessera.formats.source import not_finite, too_large
from tessera.store.files import Buffer, write_new

ALIGNMENT = 32
CHUNK = 2**20
DTYPES = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "q8_0": "q8_0", "q4_0": "q4_0", "q4_1": "q4_1"}
"""What a model can be written in -> what GGUF calls it."""
# general.file_type: what most of the tensors are.
_FILE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "bf16": 32}
QUANTIZATION_VERSION = 2
_EXACT = ("ffn_gate_inp.weight", "position_embd.weight")


@dataclass(frozen=True)
class Outgoing:
    """A tensor to be written: `make` gives it, in `shape`, when its turn comes."""

    name: str
    shape: tuple[int, ...]
    make: Callable[[], Tensor]
    stored: str | None = None
    """The type of the blocks that `make` gives as bytes, (rows, bytes of a row), where it gives no numbers."""


def kind_for(name: str, shape: Sequence[int], dtype: str) -> Kind:
    """The type that a tensor is written in where the model's is `dtype`: vectors (norms, biases), routers and positions
    in F32; rows that are no multiple of the block in F16."""
    if dtype not in DTYPES:
        raise SettingError("dtype", dtype, f"one of {', '.join(DTYPES)}")
    kind = KINDS[DTYPES[dtype]]
    if len(shape) < 2 or name.endswith(_EXACT):
        return KINDS["f32"]
    return kind if shape[-1] % kind.block == 0 else KINDS["f16"]


def write_gguf(path: Path, metadata: Mapping[str, Value], tensors: Sequence[Outgoing], *, dtype: str) -> list[str]:
    """Write the file `path`, which must not exist, whole or not at all; the lines to say name what could not be written
    as `dtype`."""
    kinds = [KINDS[each.stored] if each.stored else kind_for(each.name, each.shape, dtype) for each in tensors]
    given = {
        **metadata,
        "general.alignment": ALIGNMENT,
        "general.file_type": _FILE_TYPES[DTYPES[dtype]],
        "general.quantization_version": QUANTIZATION_VERSION,
    }
    with new_file(path) as temporary:
        write_new(temporary, _content(given, tensors, kinds, dtype))
    as_said = (DTYPES[dtype], "f32")
    pairs = zip(tensors, kinds, strict=True)
    fallen = [tensor for tensor, kind in pairs if tensor.stored is None and kind.name not in as_said]
    if not fallen:
        return []
    first = fallen[0]
    return [
        f"{len(fallen)} of {len(tensors)} tensors are in F16: their rows, {first.shape[-1]} numbers in {first.name}, "
        f"are no multiple of {dtype}'s block of {KINDS[DTYPES[dtype]].block}"
    ]


def _content(
    metadata: Mapping[str, Value], tensors: Sequence[Outgoing], kinds: Sequence[Kind], dtype: str
) -> Iterator[Buffer]:
    header = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    header += [write_entry(key, value) for key, value in metadata.items()]
    place = 0
    for tensor, kind in zip(tensors, kinds, strict=True):
        sizes = tensor.shape[::-1]
        described = struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind.code, place)
        header.append(write_string(tensor.name) + described)
        place += _aligned(prod(tensor.shape) // kind.block * kind.size)
    start = sum(map(len, header))
    yield b"".join(header) + bytes(_aligned(start) - start)
    for tensor, kind in zip(tensors, kinds, strict=True):
        yield from _tensor_content(tensor, kind, dtype)


def _tensor_content(tensor: Outgoing, kind: Kind, dtype: str) -> Iterator[Buffer]:
    made = tensor.make()
    if tensor.stored is not None:
        content = made.contiguous().numpy()
        assert content.nbytes == prod(tensor.shape) // kind.block * kind.size, tensor.name
        yield content.data
        yield bytes(_aligned(content.nbytes) - content.nbytes)
        return
    assert tuple(made.shape) == tensor.shape, f"{tensor.name}: {tuple(made.shape)}, not {tensor.shape}"
    flat = made.detach().reshape(-1)
    written = 0
    for begin in range(0, len(flat), CHUNK):
        numbers = flat[begin : begin + CHUNK].to("cpu", torch.float32).numpy()
        if not np.isfinite(numbers).all():
            raise not_finite(tensor.name)
        try:
            content = quantize(kind, numbers)
        except ValueError:
            raise too_large(tensor.name, dtype) from None
        written += len(content)
        yield content.data
    yield bytes(_aligned(written) - written)


def _aligned(place: int) -> int:
    return -(-place // ALIGNMENT) * ALIGNMENT
