"""A GGUF file as a model of ours: its settings, its tokenizer, and its tensors by our names."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tessera.errors import FormatError, InputError, SettingError
from tessera.formats.families.links import Link, Read, expected_shapes
from tessera.formats.gguf.architecture import Architecture
from tessera.formats.gguf.deepseek import DEEPSEEK2
from tessera.formats.gguf.gemma import GEMMA2, GEMMA3
from tessera.formats.gguf.kept import LISTS, kept_vocabulary, place_of, read_and_keep
from tessera.formats.gguf.keys import Keys
from tessera.formats.gguf.llama import GPT2, LLAMA, QWEN2, QWEN3
from tessera.formats.gguf.names import Regrouped
from tessera.formats.gguf.reader import GgufFile, read_gguf
from tessera.formats.gguf.rope import FREQUENCIES
from tessera.formats.source import ModelSource, check_settings, check_shapes, skeleton_shapes
from tessera.model.settings import DecoderSettings

if TYPE_CHECKING:
    import torch
    from torch import Tensor

ARCHITECTURES: dict[str, Architecture] = {
    each.name: each for each in (QWEN2, LLAMA, QWEN3, GPT2, GEMMA2, GEMMA3, DEEPSEEK2)
}
EMBEDDING = "token_embd.weight"
_MOST_DIVISORS = 2**16


def open_gguf(path: str | Path) -> ModelSource:
    """The model in the file at `path`, of which only the header is read; `FormatError` where it is none of ours."""
    place = place_of(Path(path))
    vocabulary = kept_vocabulary(place)
    file = read_gguf(path, passed_over=() if vocabulary is None else LISTS)
    architecture = _architecture(file)
    divisors = _divisors(file) if architecture.divides else None
    keys = Keys(file.path, architecture.name, file.metadata, file.tensors, divisors)
    settings = _settings(file.path, keys, architecture)
    n_vocab = _n_vocab(file)
    shapes = skeleton_shapes(file.path, settings, n_vocab)
    links = _links(file, architecture, settings, shapes)
    wanted = {name: shape for link in links for name, shape in expected_shapes(link).items()}
    found = {name: info.shape for name, info in file.tensors.items() if name != FREQUENCIES or divisors is None}
    check_shapes(file.path, found, wanted)
    vocabulary = vocabulary or read_and_keep(file, n_vocab, place)
    places = {name: (link, i) for link in links for i, name in enumerate(link.ours)}

    def read(name: str, dtype: "torch.dtype") -> "Tensor":
        from tessera.formats.torch_tensors import TorchRead

        link, which = places[name]
        return link.take(which, TorchRead(file.tensor, dtype))

    def array(name: str) -> np.ndarray:
        link, which = places[name]
        found: np.ndarray = link.take(which, Read(file.array))
        return found

    def blocks(name: str) -> tuple[str, Callable[[], np.ndarray]] | None:
        link, _ = places[name]
        if type(link) not in (Link, Regrouped):
            return None
        kind = file.tensors[link.theirs[0]].kind.name
        return kind, lambda: link.take(0, Read(lambda theirs, out: file.raw(theirs)))

    return ModelSource(
        family="mixtral" if keys.get("expert_count") and architecture is LLAMA else architecture.name,
        settings=settings,
        n_vocab=n_vocab,
        tokenizer=vocabulary.tokenizer,
        names=list(shapes),
        read=read,
        array=array,
        path=file.path,
        notes=[*keys.notes, *vocabulary.notes],
        blocks=blocks,
    )


def _architecture(file: GgufFile) -> Architecture:
    kind, name = file.metadata.get("general.type", "model"), file.metadata.get("general.architecture")
    if kind != "model":
        raise FormatError(file.path, f"general.type = {kind!r}: expected 'model'")
    if file.metadata.get("split.count", 0) not in (0, 1):
        raise FormatError(file.path, f"one of {file.metadata['split.count']} parts: join them first (llama-gguf-split)")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise FormatError(file.path, f"general.architecture = {name!r}: expected one of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def _divisors(file: GgufFile) -> Any:
    info = file.tensors.get(FREQUENCIES)
    if info is None:
        return None
    if info.n_numbers > _MOST_DIVISORS:
        raise FormatError(file.path, f"{FREQUENCIES} has {info.n_numbers} numbers, more than a head has pairs")
    return file.array(FREQUENCIES)


def _settings(path: Path, keys: Keys, architecture: Architecture) -> DecoderSettings:
    try:
        read = architecture.read(keys)
        keys.finish()
        return check_settings(read)
    except FormatError:
        raise
    except (InputError, SettingError) as error:
        raise FormatError(path, f"its settings make no model: {error}") from None


def _n_vocab(file: GgufFile) -> int:
    info = file.tensors.get(EMBEDDING)
    if info is None or len(info.shape) != 2:
        raise FormatError(file.path, f"the matrix {EMBEDDING} is missing")
    return info.shape[0]


def _links(
    file: GgufFile, architecture: Architecture, settings: DecoderSettings, shapes: dict[str, tuple[int, ...]]
) -> list[Link]:
    n_kv_heads = settings.pattern("attention")[0].settings.get("n_kv_heads") or settings.n_heads
    try:
        return architecture.naming.links(shapes, n_heads=settings.n_heads, n_kv_heads=n_kv_heads, held=file.tensors)
    except SettingError as error:
        raise FormatError(file.path, str(error)) from None
