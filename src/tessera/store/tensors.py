"""Tensors as bytes: the names of the types, and the safetensors layout written as a stream.

A safetensors file is eight bytes of header length, a JSON header `{name: {dtype, shape, data_offsets}}`, then the raw
little-endian data (huggingface.co/docs/safetensors). Writing it here, tensor by tensor, means that a checkpoint is
never held in memory a second time; `safetensors` itself reads it.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tessera.errors import DamagedError, InputError

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def check_tensors(tensors: Mapping[str, Tensor]) -> None:
    """Raise `InputError` for what cannot be stored, before anything is written.

    A name is `group.rest`: the group ("model", "optimizer", "state") says what the tensor belongs to.
    """
    for name, tensor in tensors.items():
        group, _, rest = name.partition(".")
        if not group.replace("-", "_").isidentifier() or not group.isascii() or not rest or rest == "__metadata__":
            raise InputError(f"tensor {name!r}: expected a name like 'model.embedding.weight'")
        if tensor.layout != torch.strided or tensor.dtype not in DTYPE_NAMES:
            kind = f"{tensor.dtype}, {tensor.layout}"
            raise InputError(f"tensor {name!r} ({kind}) cannot be stored (types: {', '.join(DTYPES)})")


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The tensor's elements in order, as bytes; without a copy where it is contiguous and on the CPU."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]


def tensor_from_bytes(data: bytearray, dtype: str, shape: list[int]) -> Tensor:
    """The inverse of `tensor_bytes`; the tensor owns `data`."""
    if not data:
        return torch.empty(shape, dtype=DTYPES[dtype])
    return torch.frombuffer(data, dtype=DTYPES[dtype]).reshape(shape)


def safetensors_chunks(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """A safetensors file, piece by piece; the widest types first, so every tensor starts at a multiple of its width."""
    order = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    header, offset = {}, 0
    for name in order:
        tensor = tensors[name]
        end = offset + tensor.numel() * tensor.itemsize
        header[name] = {"dtype": DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in order:
        yield tensor_bytes(tensors[name])


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors in a file. They are mapped into memory: a page is read when it is first touched."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is not a dict)
    except (SafetensorError, OSError, RuntimeError) as error:  # torch says RuntimeError for a file that it cannot map
        raise DamagedError(path, f"it is not a safetensors file ({error})") from None
