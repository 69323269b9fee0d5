"""Checkpoints whose tensors lie in parts, one file a process and group: `model.part-00000.safetensors`, ...

`parts.json` says where each tensor's parts are: its shape and, for each part, the file, where in the tensor it begins
and how much of it there is. What is read are whole tensors, put together when they are asked for, so that a checkpoint
of many processes opens in one, or in any other number. The files are in the manifest like all others.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tessera.errors import DamagedError
from tessera.store.files import read_json
from tessera.store.tensors import DTYPES, read_safetensors

INDEX = "parts.json"


def file_name(group: str, process: int) -> str:
    return f"{group}.part-{process:05d}.safetensors"


class Parts(Mapping[str, Tensor]):
    """The whole tensors of a folder by name; with `prefix`, those of one group.

    A tensor in one part is mapped into memory; others are put together anew each time.
    """

    def __init__(self, folder: Path, prefix: str | None = None) -> None:
        self._folder = folder
        index: dict[str, Any] = read_json(folder / INDEX)
        self._index = {name: entry for name, entry in index.items() if prefix is None or name.startswith(prefix + ".")}
        files = {part["file"] for entry in self._index.values() for part in entry["parts"]}
        self._files = {name: read_safetensors(folder / name) for name in sorted(files)}

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, name: str) -> Tensor:
        entry = self._index[name]
        shape, parts = entry["shape"], entry["parts"]
        if len(parts) == 1 and parts[0]["shape"] == shape:
            return self._part(name, parts[0])
        whole = torch.empty(shape, dtype=DTYPES[entry["dtype"]])
        filled = 0
        for part in parts:
            where = tuple(slice(at, at + size) for at, size in zip(part["offset"], part["shape"], strict=True))
            rows = self._part(name, part)
            whole[where] = rows
            filled += rows.numel()
        if filled != whole.numel():
            raise DamagedError(self._folder / INDEX, f"{filled} of the {whole.numel()} numbers of {name!r} are there")
        return whole

    def _part(self, name: str, part: Mapping[str, Any]) -> Tensor:
        return self._files[part["file"]][name.partition(".")[2]]
