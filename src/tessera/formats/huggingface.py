"""A model's folder as Hugging Face's libraries have it: config.json, safetensors, tokenizer.json. `huggingface_out.py`
writes one."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tessera.errors import DamagedError, FormatError, InputError, SettingError
from tessera.formats.families import FAMILIES, Family
from tessera.formats.families.config import Config
from tessera.formats.families.links import Link, Read, expected_shapes
from tessera.formats.json_file import read_json_object
from tessera.formats.pickles import is_pickle, pickle_error
from tessera.formats.safetensors_file import SafetensorsFile, SafetensorsModel, open_shards
from tessera.formats.source import ModelSource, check_settings, check_shapes, skeleton_shapes
from tessera.model.settings import DecoderSettings
from tessera.tokenizers import Tokenizer, import_tokenizer

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CONFIG, TENSORS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")


def open_huggingface(folder: Path) -> ModelSource:
    """The model in `folder`; whatever is missing, contradictory or not done here is a `FormatError`."""
    path = folder / CONFIG
    config = Config(path, read_json_object(path))
    family = _family(config)
    settings = _settings(config, family)
    n_vocab = config.size("vocab_size")
    notes = [f"{CONFIG}: {key!r} is not known to the family {family.name!r} and left out" for key in config.finish()]
    tensors = _open_tensors(folder)
    if settings.n_layers > len(tensors.shapes):
        raise FormatError(path, f"num_hidden_layers = {settings.n_layers} and {len(tensors.shapes)} tensors")
    shapes = skeleton_shapes(path, settings, n_vocab)
    n_experts = sum(shape[0] for name, shape in shapes.items() if name.endswith(".experts.input.weight"))
    if n_experts > len(tensors.shapes):
        raise FormatError(path, f"{n_experts} experts and {len(tensors.shapes)} tensors")
    reader = _Reader(family, family.links(shapes, settings.n_layers, settings.n_heads), tensors, tied=settings.tied)
    tokenizer = _open_tokenizer(folder, notes)
    if tokenizer is not None and tokenizer.n_vocab > n_vocab:
        raise FormatError(path, f"vocab_size = {n_vocab}, and the tokenizer has {tokenizer.n_vocab} ids")
    return ModelSource(
        family=family.name,
        settings=settings,
        n_vocab=n_vocab,
        tokenizer=tokenizer,
        names=list(shapes),
        read=reader.tensor,
        array=reader.array,
        path=folder,
        notes=notes,
    )


def _family(config: Config) -> Family:
    name = config.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        why = f"one of the families {', '.join(FAMILIES)}"
        if isinstance(config.get("text_config"), dict):
            why += "; of a model that also sees, only the text part as a model of its own is read"
        raise config.refuse("model_type", name, why)
    return FAMILIES[name]


def _settings(config: Config, family: Family) -> DecoderSettings:
    try:
        return check_settings(family.read(config))
    except SettingError as error:
        raise FormatError(config.path, f"its settings make no model: {error}") from None


def _open_tensors(folder: Path) -> SafetensorsModel:
    if (folder / INDEX).exists():
        return open_shards(folder / INDEX)
    if (folder / TENSORS).exists():
        return SafetensorsModel(folder / TENSORS, [SafetensorsFile(folder / TENSORS)])
    pickles = sorted(found for found in folder.glob("*.*") if is_pickle(found))
    if pickles:
        raise pickle_error(pickles[0])
    raise FormatError(folder, f"it has neither {TENSORS} nor {INDEX}")


class _Reader:
    """Reads our tensors out of their files, once it is sure that all are there and nothing else."""

    def __init__(self, family: Family, links: list[Link], tensors: SafetensorsModel, *, tied: bool) -> None:
        self._tensors = tensors
        self._link = {name: (link, which) for link in links for which, name in enumerate(link.ours)}
        bare = not any(name.startswith(family.prefix) for name in tensors.shapes)
        self._strip = family.prefix if bare else ""
        held = {name: shape for name, shape in tensors.shapes.items() if not self._is_ignored(family, name)}
        expected = {self._named(name): shape for link in links for name, shape in expected_shapes(link).items()}
        self._copies: dict[str, tuple[str, str]] = {}
        head, embedding = "lm_head.weight", self._named(family.rows[0].theirs + ".weight")
        if tied and head in held and held[head] == held.get(embedding):
            self._copies["embedding.weight"] = (embedding, head)
            del held[head]
        check_shapes(tensors.path, held, expected)
        for name in expected:
            tensors.check_float(name)

    def _named(self, name: str) -> str:
        return name.removeprefix(self._strip) if self._strip else name

    def _is_ignored(self, family: Family, name: str) -> bool:
        whole = self._strip + name
        return any(re.fullmatch(pattern, whole) for pattern in family.ignored)

    def tensor(self, name: str, dtype: "torch.dtype") -> "Tensor":
        """Our tensor as PyTorch's, in memory of its own."""
        from tessera.formats.torch_tensors import TorchRead

        def fetch(theirs: str, dtype: "torch.dtype", out: "Tensor | None") -> "Tensor":
            return self._tensors.tensor(self._named(theirs), dtype, out)

        link, which = self._found(name)
        return link.take(which, TorchRead(fetch, dtype))

    def array(self, name: str) -> np.ndarray:
        """The same as an array of float32."""
        link, which = self._found(name)
        found: np.ndarray = link.take(which, Read(lambda theirs, out: self._tensors.array(self._named(theirs), out)))
        return found

    def _found(self, name: str) -> tuple[Link, int]:
        """Where our tensor is; a `FormatError` where a copy in the files is none."""
        if name in self._copies and not self._tensors.same(*self._copies[name]):
            raise FormatError(
                self._tensors.path,
                f"{self._copies[name][1]!r} is not {self._copies[name][0]!r}, though tie_word_embeddings says so",
            )
        return self._link[name]


def _open_tokenizer(folder: Path, notes: list[str]) -> Tokenizer | None:
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        notes.append(f"there is no tokenizer: the folder has none of {', '.join(_TOKENIZERS)}")
        return None
    try:
        return import_tokenizer(folder)
    except (InputError, SettingError, DamagedError) as error:
        raise FormatError(folder, f"its tokenizer cannot be read: {error}") from None
