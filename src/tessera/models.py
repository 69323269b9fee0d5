"""The model at any place: a run, a Hugging Face folder, a GGUF or safetensors file, `hf:OWNER/NAME`.

A run that learned adapters holds nothing of the model below them: that is opened from where it was, checked by its
sha256, and comes with the adapters merged into it: a model like any other.

Opening needs no PyTorch, but for runs of weights in codes and of adapters; what makes modules of it imports it.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tessera.config import Spec, build
from tessera.errors import InputError, SettingError
from tessera.formats import ModelSource, open_model
from tessera.formats.hub import local_path
from tessera.formats.source import check_settings
from tessera.model.settings import DecoderSettings
from tessera.store.checkpoints import Loaded
from tessera.store.folder import is_run
from tessera.store.run import Run
from tessera.tokenizers import Tokenizer, tokenizer_from_json

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from tessera.generate.quantize import QuantizedWeight
    from tessera.model.decoder import Decoder
    from tessera.objectives.reward import ValueHead

Form = Literal["torch", "numpy"]
"""As what a model's tensors are wanted: PyTorch's, or as arrays alone, for which PyTorch is not needed."""


@dataclass
class RunSource(ModelSource):
    """A checkpoint of a run."""

    tensors: "Mapping[str, Tensor]" = field(default_factory=dict)
    """As they were written, mapped into memory: they are read when they are needed, and changes stay in memory. Those
    of a quantized run are made of its codes each time."""
    stored: "Mapping[str, QuantizedWeight]" = field(default_factory=dict)
    """The weights of a quantized run, in their codes."""

    @property
    def stored_as(self) -> str | None:
        """The kind of blocks of GGUF files that most of the run's codes are, or can be as they are; None where none."""
        from tessera.generate.quantize.as_blocks import as_blocks

        sizes: Counter[str | None] = Counter()
        for name, weight in self.stored.items():
            if name.startswith("blocks."):
                found = as_blocks(weight)
                sizes[found and found[0]] += prod(weight.shape)
        return max(sizes, key=lambda kind: sizes[kind], default=None)


def open_any(path: str | Path, *, step: int | None = None, form: Form = "torch") -> ModelSource:
    """The model at any place that `LM.load` takes, not yet read."""
    local = local_path(path)
    if not local.exists():
        raise InputError(f"{path}: no such run, folder or file")
    if holds_run(local):
        return _open_run(local, step, form)
    if local.is_dir() and not (local / "config.json").is_file():
        raise InputError(f"{path} is neither a run (a folder with run.db) nor a model's folder (with config.json)")
    if step is not None:
        raise SettingError("step", step, f"no step: {path} is not a run, so it has one state only")
    return open_model(local)


def build_for_use(source: ModelSource, dtype: "torch.dtype | None" = None) -> "Decoder":
    """The decoder to generate with: the weights of a quantized run stay in their codes, all others are floats (float32
    unless said)."""
    from tessera.formats.torch_tensors import FLOAT_TYPES, put
    from tessera.generate.quantize import put_layer

    stored = source.stored if isinstance(source, RunSource) else {}
    dtype = dtype or FLOAT_TYPES["fp32"]
    if not stored:
        return source.build(dtype)

    def keep(model: "nn.Module", name: str, tensor: "Tensor") -> None:
        if name in stored:
            path = name.removesuffix(".weight")
            put_layer(model, path, model.get_submodule(path), stored[name], dtype)
        else:
            put(model, name, tensor)

    return source.build(dtype, store=keep).requires_grad_(False)


def holds_run(path: Path) -> bool:
    """Whether what is at the path is a run: its folder, or its run.db."""
    return is_run(path) if path.is_dir() else path.suffix == ".db"


def open_base(base: str | Path, *, beside: Path | None = None) -> ModelSource:
    """The model that a run began from; where its place is empty, one of that name in the folder `beside` is taken."""
    if beside is not None and not local_path(base).exists() and (beside / Path(base).name).exists():
        base = beside / Path(base).name
    return open_any(base)


def build_base(source: ModelSource, adapt: Spec | None) -> "Decoder":
    """The model of a source in fp32, with the adapters of `adapt` in it, on a base as that says."""
    from tessera.adapt import ADAPTERS, build_quantized

    if adapt is None:
        return source.build()
    lora = build(ADAPTERS, adapt, path="adapt")
    model = source.build() if lora.base == "fp32" else build_quantized(source, lora.base)
    lora(model)
    return model


def open_tokenizer(base: str | Path) -> Tokenizer:
    """The tokenizer that came with a model."""
    source = open_any(base)
    if source.tokenizer is None:
        raise InputError(f"{base}: there is no tokenizer with the model, so no text can be given to it")
    return source.tokenizer


def open_reward(path: str | Path) -> "tuple[Decoder, ValueHead, Tokenizer]":
    """The model, the head and the tokenizer of a run that has learned a reward."""
    from tessera.objectives.reward import ValueHead

    local = local_path(path)
    if not (local.exists() and holds_run(local)):
        raise InputError(f"{path}: no run; a reward model is one that tessera reward has trained")
    source = open_any(local)
    with Run.open(local) as run:
        loaded = run.checkpoints.read(None, prefix="head")
    found = {name.removeprefix("head."): tensor for name, tensor in loaded.tensors.items()}
    head = ValueHead(d_model=source.settings.d_model)
    if source.tokenizer is None or set(found) != set(head.state_dict()):
        raise InputError(f"{path}: the run has no reward head; a reward model is one that tessera reward has trained")
    head.load_state_dict(found)
    return source.build(), head.eval(), source.tokenizer


def _open_run(path: Path, step: int | None, form: Form) -> ModelSource:
    with Run.open(path) as run:
        tokenizer = tokenizer_from_json(run.tokenizer_json)
        recipe, folder = run.recipe, run.path
        if recipe.get("adapt") is not None:
            form = "torch"
        loaded = run.checkpoints.read(step, prefix="model", engine=form)
        if form == "numpy" and any(_PARTS in name for name in loaded.tensors):
            form, loaded = "torch", run.checkpoints.read(step, prefix="model")
    given: dict[str, Any] = {
        "family": "tessera",
        "settings": check_settings(recipe["model"]),
        "n_vocab": recipe.get("n_vocab") or tokenizer.n_vocab,
        "tokenizer": tokenizer,
        "path": path,
        "notes": [f"skipped {line}" for line in loaded.skipped],
    }
    if form == "numpy":
        return _array_source({name.removeprefix("model."): array for name, array in loaded.tensors.items()}, given)
    return _tensor_source(recipe, loaded, folder, given)


_PARTS = ".weight."
"""In the names of what a weight in codes is made of (`generate/quantize/saved.py`)."""


def _array_source(arrays: Mapping[str, np.ndarray], given: Mapping[str, Any]) -> ModelSource:
    """A run whose weights are floats, as arrays."""

    def read(name: str, dtype: "torch.dtype") -> "Tensor":
        import torch

        tensor = torch.from_numpy(arrays[name])
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    def array(name: str) -> np.ndarray:
        return arrays[name].astype(np.float32, copy=False)

    return ModelSource(**given, names=list(arrays), read=read, array=array)


def _tensor_source(recipe: Mapping[str, Any], loaded: Loaded, folder: Path, given: Mapping[str, Any]) -> RunSource:
    """A run as PyTorch's tensors, those of its adapters merged into those of their base."""
    from tessera.generate.quantize import PlainTensors, matrices

    stored: Mapping[str, QuantizedWeight] = {}
    tensors: Mapping[str, Tensor]
    if recipe.get("adapt") is not None:
        tensors = _Merged(recipe, loaded, folder)
    else:
        plain, stored = matrices({name.removeprefix("model."): tensor for name, tensor in loaded.tensors.items()})
        tensors = PlainTensors(plain, stored)

    def read(name: str, dtype: "torch.dtype") -> "Tensor":
        tensor = tensors[name]
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    def array(name: str) -> np.ndarray:
        found: np.ndarray = tensors[name].detach().float().numpy()
        return found

    return RunSource(
        **given, names=list(tensors), read=read, array=array, tensors=tensors, stored=stored, blocks=_blocks(stored)
    )


def _blocks(stored: "Mapping[str, QuantizedWeight]") -> Callable[[str], tuple[str, Callable[[], np.ndarray]] | None]:
    """The matrices whose codes are those of blocks of GGUF files."""
    from tessera.generate.quantize.as_blocks import as_blocks

    def blocks(name: str) -> tuple[str, Callable[[], np.ndarray]] | None:
        return as_blocks(stored[name]) if name in stored else None

    return blocks


def open_adapted(path: str | Path, *, step: int | None = None) -> "tuple[Decoder, DecoderSettings, str]":
    """The model of a run with the adapters that it has learned, not merged; its shape, and where its base is."""
    local = local_path(path)
    if not (local.exists() and holds_run(local)):
        raise InputError(f"{path}: no run, so it has no adapters of its own")
    with Run.open(local) as run:
        if run.recipe.get("adapt") is None:
            raise InputError(f"{path}: the run has learned all weights, and no adapters")
        loaded = run.checkpoints.read(step, prefix="model")
        return _adapted(run.recipe, loaded, run.path), check_settings(run.recipe["model"]), run.recipe["base"]


class _Merged(Mapping[str, Any]):
    """The weights of a run's base with what its adapters have learned: made when the first one is asked for."""

    def __init__(self, recipe: Mapping[str, Any], loaded: Loaded, folder: Path) -> None:
        self._recipe, self._loaded, self._folder = recipe, loaded, folder
        self._names = _base_of(recipe, folder).names

    @cached_property
    def _tensors(self) -> "dict[str, Tensor]":
        from tessera.adapt import merge_and_remove

        model = _adapted(self._recipe, self._loaded, self._folder)
        merge_and_remove(model)
        return dict(model.state_dict())

    def __getitem__(self, name: str) -> "Tensor":
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _base_of(recipe: Mapping[str, Any], folder: Path) -> ModelSource:
    try:
        return open_base(recipe["base"], beside=folder.parent)
    except InputError as error:
        raise InputError(f"{folder} has adapters only, and the model below them cannot be opened: {error}") from None


def _adapted(recipe: Mapping[str, Any], loaded: Loaded, folder: Path) -> "Decoder":
    model = build_base(_base_of(recipe, folder), Spec.read(recipe["adapt"]))
    model.load_state_dict({name.removeprefix("model."): tensor for name, tensor in loaded.tensors.items()})
    return model
