"""Tensors as bytes: the names of the types, and the safetensors layout written as a stream.

A safetensors file is eight bytes of header length, a JSON header `{name: {dtype, shape, data_offsets}}`, then the raw
little-endian data (huggingface.co/docs/safetensors). Writing it here, tensor by tensor, means that a checkpoint is
never held in memory a second time.

A tensor may be torch's or a NumPy array: the same numbers are the same bytes. Who reads says which of them is wanted.
torch is imported only where its tensors are.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tessera.config import EngineName
from tessera.errors import DamagedError, InputError

NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
"""What NumPy has of the types; torch's are in `tessera.store.torch_types`."""
NUMPY_NAMES = {dtype: name for name, dtype in NUMPY_DTYPES.items()}
HEADER_SIZE = 8
LONGEST_HEADER = 100_000_000


def dtype_name(tensor: Any) -> str | None:
    """What safetensors calls the type of a tensor; None where it has none."""
    if isinstance(tensor, np.ndarray):
        return NUMPY_NAMES.get(tensor.dtype.newbyteorder("<"))
    from tessera.store.torch_types import DTYPE_NAMES

    return DTYPE_NAMES.get(tensor.dtype)


def check_tensors(tensors: Mapping[str, Any]) -> None:
    """Raise `InputError` for what cannot be stored, before anything is written.

    A name is `group.rest`: the group ("model", "optimizer", "state") says what the tensor belongs to.
    """
    for name, tensor in tensors.items():
        group, _, rest = name.partition(".")
        if not group.replace("-", "_").isidentifier() or not group.isascii() or not rest or rest == "__metadata__":
            raise InputError(f"tensor {name!r}: expected a name like 'model.embedding.weight'")
        layout = "strided" if isinstance(tensor, np.ndarray) else str(tensor.layout).removeprefix("torch.")
        if layout != "strided" or dtype_name(tensor) is None:
            known = ", ".join([*NUMPY_DTYPES, "BF16", "F8_E4M3", "F8_E5M2"])
            raise InputError(f"tensor {name!r} ({tensor.dtype}, {layout}) cannot be stored (types: {known})")


def tensor_bytes(tensor: Any) -> memoryview:
    """The tensor's elements in order, as bytes; without a copy where it is contiguous and on the CPU."""
    if isinstance(tensor, np.ndarray):
        array = np.ascontiguousarray(tensor, dtype=tensor.dtype.newbyteorder("<"))
        return memoryview(array.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy())


def tensor_from_bytes(data: bytearray, dtype: str, shape: list[int], *, engine: EngineName = "torch") -> Any:
    """The inverse of `tensor_bytes`; the tensor owns `data`. NumPy has no bfloat16: it comes as float32."""
    if engine == "numpy":
        return array_from(np.frombuffer(data, dtype=np.uint8), dtype, shape)
    import torch

    from tessera.store.torch_types import DTYPES

    if not data:
        return torch.empty(shape, dtype=DTYPES[dtype])
    return torch.frombuffer(data, dtype=DTYPES[dtype]).reshape(shape)


def array_from(raw: np.ndarray, dtype: str, shape: list[int]) -> np.ndarray:
    """The bytes `raw` as an array of a type; bfloat16, the upper half of a float32, as float32."""
    if dtype == "BF16":
        return (raw.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32).reshape(shape)
    if dtype not in NUMPY_DTYPES:
        raise InputError(f"NumPy has no numbers of the type {dtype}: open it with torch")
    return raw.view(NUMPY_DTYPES[dtype]).reshape(shape)


def safetensors_chunks(tensors: Mapping[str, Any]) -> Iterator[bytes | memoryview]:
    """A safetensors file, piece by piece; the widest types first, so every tensor starts at a multiple of its width."""
    order = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    header, offset = {}, 0
    for name in order:
        tensor = tensors[name]
        end = offset + math.prod(tensor.shape) * tensor.itemsize
        header[name] = {"dtype": dtype_name(tensor), "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % HEADER_SIZE)
    yield len(text).to_bytes(HEADER_SIZE, "little") + text
    for name in order:
        yield tensor_bytes(tensors[name])


def read_safetensors(path: Path, *, engine: EngineName = "torch") -> dict[str, Any]:
    """The tensors in a file. They are mapped into memory: a page is read when it is first touched, and what is changed
    stays there. NumPy has no bfloat16: it comes as float32, which is a copy."""
    if engine == "numpy":
        return _read_arrays(path)
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is not a dict)
    except (SafetensorError, OSError, RuntimeError) as error:  # torch says RuntimeError for a file that it cannot map
        raise DamagedError(path, f"it is not a safetensors file ({error})") from None


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(HEADER_SIZE), "little")
            header = json.loads(file.read(size)) if size <= LONGEST_HEADER else None
        raw = np.memmap(path, dtype=np.uint8, mode="c")[HEADER_SIZE + size :].view(np.ndarray)
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}  # type: ignore[union-attr]
        return {name: _array(raw, entry) for name, entry in entries.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(path, f"it is not a safetensors file ({error})") from None


def _array(raw: np.ndarray, entry: Mapping[str, Any]) -> np.ndarray:
    """An entry of the header; whatever does not fit is a ValueError."""
    start, end = entry["data_offsets"]
    if not 0 <= start <= end <= len(raw):
        raise ValueError(f"the places {start} to {end} of {len(raw)}")
    return array_from(raw[start:end], entry["dtype"], entry["shape"])
