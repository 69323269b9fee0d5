"""Checkpoints whose tensors lie in parts, one file a process and group: `model.part-00000.safetensors`, ...

`parts.json` says where each tensor's parts are: its shape and, for each part, the file, where in the tensor it begins
and how much of it there is. What is read are whole tensors, put together when they are asked for, so that a checkpoint
of many processes opens in one, or in any other number. The files are in the manifest like all others.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tessera.config import EngineName
from tessera.errors import DamagedError
from tessera.store.files import read_json
from tessera.store.tensors import NUMPY_DTYPES, read_safetensors

INDEX = "parts.json"


def file_name(group: str, process: int) -> str:
    return f"{group}.part-{process:05d}.safetensors"


class Parts(Mapping[str, Any]):
    """The whole tensors of a folder by name; with `prefix`, those of one group.

    A tensor in one part is mapped into memory; others are put together anew each time.
    """

    def __init__(self, folder: Path, prefix: str | None = None, *, engine: EngineName = "torch") -> None:
        self._folder, self._engine = folder, engine
        index: dict[str, Any] = read_json(folder / INDEX)
        self._index = {name: entry for name, entry in index.items() if prefix is None or name.startswith(prefix + ".")}
        files = {part["file"] for entry in self._index.values() for part in entry["parts"]}
        self._files = {name: read_safetensors(folder / name, engine=engine) for name in sorted(files)}

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, name: str) -> Any:
        entry = self._index[name]
        shape, parts = entry["shape"], entry["parts"]
        if len(parts) == 1 and parts[0]["shape"] == shape:
            return self._part(name, parts[0])
        whole = self._empty(shape, entry["dtype"])
        filled = 0
        for part in parts:
            where = tuple(slice(at, at + size) for at, size in zip(part["offset"], part["shape"], strict=True))
            rows = self._part(name, part)
            whole[where] = rows
            filled += math.prod(rows.shape)
        n = math.prod(shape)
        if filled != n:
            raise DamagedError(self._folder / INDEX, f"{filled} of the {n} numbers of {name!r} are there")
        return whole

    def _empty(self, shape: list[int], dtype: str) -> Any:
        if self._engine == "numpy":
            return np.empty(shape, NUMPY_DTYPES.get(dtype, np.dtype("<f4")))  # what NumPy lacks comes as float32
        import torch

        from tessera.store.torch_types import DTYPES

        return torch.empty(shape, dtype=DTYPES[dtype])

    def _part(self, name: str, part: Mapping[str, Any]) -> Any:
        return self._files[part["file"]][name.partition(".")[2]]
