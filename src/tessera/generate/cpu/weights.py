"""The matrices of a model, packed: as they are in a GGUF file where that has blocks, else made from floats.

Of a source only `settings`, `n_vocab`, `array`, `path` and `blocks` are needed (those of `formats.ModelSource`), so
that this floor does not know of files.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from tessera.errors import SettingError
from tessera.generate.cpu.blocks import encode
from tessera.generate.cpu.memory import keep_packed, large_memory, place_of, read_packed
from tessera.generate.cpu.panels import BLOCK, STORAGES, Storage, n_panels, pack_into
from tessera.model.plain import PlainDecoder
from tessera.model.settings import DecoderSettings

MAPS = (
    "attention.query",
    "attention.key",
    "attention.value",
    "attention.output",
    "feed_forward.gate",
    "feed_forward.input",
    "feed_forward.output",
)
"""The matrices of a layer, in the order of the plan."""
NEAREST = {"f32": "fp32", "f16": "fp32", "bf16": "bf16"}
"""The storage of a type of GGUF files that is not one itself; of those in smaller blocks it is q8_0."""
WORTH = 2**24
"""Bytes of packed weights from which on they are kept for the next process."""
FOUR_BITS = ("q4_0", "q4_1")
Say = Callable[[str], None]


class Source(Protocol):
    """What `formats.ModelSource` is."""

    settings: DecoderSettings
    n_vocab: int
    path: Path

    @property
    def array(self) -> Callable[[str], np.ndarray]: ...

    @property
    def blocks(self) -> Callable[[str], tuple[str, Callable[[], np.ndarray]] | None] | None: ...


@dataclass(frozen=True)
class Packed:
    """Where a matrix lies in the memory, and what it is."""

    storage: Storage
    start: int
    n_panels: int
    n_blocks: int

    @property
    def n_bytes(self) -> int:
        return self.n_panels * self.storage.panel_bytes(self.n_blocks)


@dataclass
class Weights:
    """All matrices in one stretch of memory, by name; and the small tensors as floats."""

    memory: np.ndarray
    matrices: dict[str, Packed]
    vectors: dict[str, np.ndarray]


def matrix_names(model: PlainDecoder) -> list[str]:
    """All matrices of a decoder; a tied head is the embedding."""
    names = [f"blocks.{layer}.{each}.weight" for layer in range(model.settings.n_layers) for each in MAPS]
    return [*names, "embedding.weight"] + ([] if model.settings.tied else ["head.weight"])


def check_storage(storage: str | None) -> None:
    if storage is not None and storage not in STORAGES:
        raise SettingError("storage", storage, f"one of {', '.join(STORAGES)}, or none for that of the file")


def of_source(model: PlainDecoder, source: Source, storage: str | None, say: Say) -> Weights:
    """The weights of files; What was packed before is read again."""
    names = matrix_names(model)
    storages = {name: _storage_for(name, storage) if storage else _own_storage(source, name) for name in names}
    layout = _layout(model, storages)
    description = [[name, each.storage.name, each.start, each.n_panels, each.n_blocks] for name, each in layout.items()]
    # Floats are only laid out anew, and what is small is soon packed: that is not worth a second copy on the disk.
    worth = any(each.storage.takes_bytes for each in layout.values()) and _size(layout) >= WORTH
    place = place_of(source.path, storage or "own") if worth else None
    memory = None if place is None else read_packed(place, description)
    if memory is None:
        if worth:
            say(f"packing the weights of {source.path.name}, once")
        memory = large_memory(_size(layout))
        for name, rows in _rows(source, storages):
            _put(memory, layout[name], rows)
        if place is not None:
            keep_packed(place, description, memory)
    return Weights(memory, layout, {name: source.array(name) for name in _small(model, layout)})


def _small(model: PlainDecoder, layout: dict[str, Packed]) -> list[str]:
    """The names of norms and biases, without those of layers that generation ignores."""
    return [name for name in model.shapes() if name not in layout and not name.startswith("future.")]


def _storage_for(name: str, storage: str) -> str:
    """Embedding and head keep 8 bits where the rest has 4: they lose the most by it."""
    return "q8_0" if storage in FOUR_BITS and not name.startswith("blocks.") else storage


def _own_storage(source: Source, name: str) -> str:
    """That of the file; q8_0 for blocks of other kinds, the nearest of all that is here."""
    found = None if source.blocks is None else source.blocks(name)
    kind = "f32" if found is None else found[0]
    return kind if kind in STORAGES else NEAREST.get(kind, "q8_0")


def _layout(model: PlainDecoder, storages: dict[str, str]) -> dict[str, Packed]:
    shapes, start, layout = model.shapes(), 0, {}
    for name, wanted in storages.items():
        n_rows, width = shapes[name]
        layout[name] = Packed(STORAGES[wanted], start, n_panels(n_rows), -(-width // BLOCK))
        start += layout[name].n_bytes
    return layout


def _size(layout: dict[str, Packed]) -> int:
    return sum(each.n_bytes for each in layout.values())


def _rows(source: Source, storages: dict[str, str]) -> Iterator[tuple[str, np.ndarray]]:
    """The rows of each matrix as bytes of the wanted storage."""
    for name, wanted in storages.items():
        found = None if source.blocks is None else source.blocks(name)
        if found is not None and found[0] == wanted:
            yield name, found[1]()
        else:
            yield name, encode(wanted, source.array(name), name)


def _put(memory: np.ndarray, packed: Packed, rows: np.ndarray) -> None:
    panels = memory[packed.start : packed.start + packed.n_bytes].reshape(packed.n_panels, -1)
    pack_into(packed.storage, rows, panels)
