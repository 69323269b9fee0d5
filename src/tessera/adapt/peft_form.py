"""An adapter alone, as peft has it: a folder with adapter_config.json and adapter_model.safetensors; in and out.

What is written here loads in peft on the exported model, and what peft wrote loads here on the imported one. A model of
no family of Hugging Face's has its adapters written in the same form by its own names, which only Tessera reads.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from tessera.adapt.adapted import DEFAULT, adapted, adapter_names, add_adapter, switch
from tessera.adapt.frozen import frozen_sha256
from tessera.adapt.lora import frozen_at, linear_maps
from tessera.adapt.low_rank import Decomposed, LowRank, shape_of
from tessera.adapt.peft_config import PeftConfig, read_config, write_config
from tessera.adapt.peft_names import (
    WEIGHT,
    Matrices,
    from_theirs,
    is_turned,
    map_links,
    our_modules,
    their_module,
    to_theirs,
)
from tessera.errors import FormatError, InputError, SettingError
from tessera.formats.beside import new_folder
from tessera.formats.choice import choose_family
from tessera.formats.families.links import Link, Stacked
from tessera.formats.json_file import read_json_object
from tessera.formats.safetensors_file import SafetensorsFile, SafetensorsModel
from tessera.formats.safetensors_out import Entry, write_safetensors
from tessera.formats.source import skeleton_shapes
from tessera.formats.torch_tensors import is_finite
from tessera.model.decoder import Decoder
from tessera.model.settings import DecoderSettings
from tessera.store.files import to_readable_json, write_new

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
SHA256 = "tessera_base_sha256"
_PREFIX = "base_model.model."
_NAME = re.compile(re.escape(_PREFIX) + r"(.+)\.(lora_A\.weight|lora_B\.weight|lora_magnitude_vector)")


def save_adapter(
    model: Decoder, path: str | Path, *, settings: DecoderSettings, name: str = DEFAULT, base: str | None = None
) -> list[str]:
    """Write the adapter `name` into the folder `path`, which must not exist or be empty.

    `base` is where the base model is, for programs that look it up. Returns lines to say about what was written.
    """
    path = Path(path)
    ours = _adapters(model, name)
    links, lines = _links(settings, model)
    matrices = {place: Matrices.of(adapter) for place, adapter in ours.items()}
    theirs = matrices if links is None else to_theirs(matrices, links, lambda place: _lengths(model, place))
    modules = list(linear_maps(model)) if links is None else [their_module(link) for link in map_links(links)]
    one = next(iter(ours.values()))
    config = write_config(
        theirs,
        modules=modules,
        dropout=one.dropout,
        rslora=one.rslora,
        turned=any(is_turned(link) for link in links or () if their_module(link) in theirs),
        base=base,
    )
    tensors = _tensors(theirs)
    for each, tensor in tensors.items():
        if not is_finite(tensor):
            raise InputError(f"the tensor {each!r} holds numbers that are NaN or infinite: it is not written")
    entries = [Entry(each, tensor.dtype, tuple(tensor.shape)) for each, tensor in tensors.items()]
    mistaken = sorted({module.rpartition(".")[2] for module in theirs} & _expert_names(links or ()))
    if mistaken:
        lines.append(
            f"peft takes the adapters of {', '.join(mistaken)} for those of the experts, and will not load them"
        )
    with new_folder(path) as temporary:
        write_new(temporary / CONFIG, [to_readable_json(config).encode()])
        metadata = {"format": "pt", SHA256: frozen_sha256(model)}
        write_safetensors(temporary / TENSORS, entries, tensors.values(), metadata)
    size = sum(entry.n_bytes for entry in entries) / 1e6
    return [f"{path}: {len(theirs)} adapted maps, {size:,.1f} MB", *lines]


def load_adapter(
    model: Decoder, path: str | Path, *, settings: DecoderSettings, name: str = DEFAULT, trainable: bool = False
) -> list[str]:
    """Put the adapter in the folder `path` into the model as `name`, and use it. Returns lines to say about it.

    An error leaves the model as it was.
    """
    folder = Path(path)
    config = read_config(folder / CONFIG, read_json_object(folder / CONFIG))
    file = SafetensorsFile(folder / TENSORS)
    found = _read(file, config)
    links, _ = _links(settings, model)
    ours = _placed(model, found, links, file.path)
    add_adapter(model, {place: _made(model, place, each, config) for place, each in ours.items()}, name)
    switch(model, name, trainable=trainable)
    lines = list(config.notes)
    sha256 = file.metadata.get(SHA256)
    if sha256 is not None and sha256 != frozen_sha256(model):
        lines.append(
            f"the adapter was trained on a base with other numbers (sha256 {sha256[:12]}...): the same in "
            "another precision, or another model"
        )
    return lines


def _adapters(model: Decoder, name: str) -> dict[str, LowRank]:
    found = {place: layer.adapters[name] for place, layer in adapted(model).items() if name in layer.adapters}
    if not found:
        raise SettingError.unknown("the model's adapters", name, adapter_names(model))
    return found  # type: ignore[return-value]


def _links(settings: DecoderSettings, model: Decoder) -> tuple[list[Link] | None, list[str]]:
    """The links to the modules of the model's family, or None and why there is none."""
    shapes = skeleton_shapes(Path("model"), settings, model.n_vocab)
    try:
        chosen = choose_family(settings, model.n_vocab, shapes)
    except SettingError as error:
        return None, [f"the names are Tessera's own, and peft cannot read them: {error}"]
    return chosen.family.links(chosen.shapes, chosen.settings.n_layers, chosen.settings.n_heads), []


def _expert_names(links: Sequence[Link]) -> set[str]:
    """The last names of the maps of experts: peft knows them by these alone, whatever else is called so."""
    return {
        name.removesuffix(WEIGHT).rpartition(".")[2] for link in links for name in link.theirs if type(link) is Stacked
    }


def _lengths(model: Decoder, place: str) -> Tensor:
    return frozen_at(model, place).weight.detach().float().norm(dim=1)


def _tensors(theirs: dict[str, Matrices]) -> dict[str, Tensor]:
    made: dict[str, Tensor] = {}
    for module, each in theirs.items():
        made[f"{_PREFIX}{module}.lora_A.weight"] = each.down_RD
        made[f"{_PREFIX}{module}.lora_B.weight"] = each.up_FR
        if each.magnitude_F is not None:
            made[f"{_PREFIX}{module}.lora_magnitude_vector"] = each.magnitude_F
    return made


def _read(file: SafetensorsFile, config: PeftConfig) -> dict[str, Matrices]:
    """The adapters of a file by the names of its modules, each whole."""
    tensors = SafetensorsModel(file.path, [file])
    parts: dict[str, dict[str, Tensor]] = {}
    for name in tensors.shapes:
        named = _NAME.fullmatch(name)
        if named is None:
            raise FormatError(file.path, f"the tensor {name!r} is no part of a LoRA adapter of a linear map")
        tensors.check_float(name)
        tensor = tensors.tensor(name, torch.float32)
        if not is_finite(tensor):
            raise FormatError(file.path, f"the tensor {name!r} holds numbers that are NaN or infinite")
        parts.setdefault(named[1], {})[named[2].removesuffix(".weight")] = tensor
    if not parts:
        raise FormatError(file.path, "it holds no tensors")
    return {module: _whole(file.path, module, found, config) for module, found in parts.items()}


def _whole(path: Path, module: str, found: dict[str, Tensor], config: PeftConfig) -> Matrices:
    wanted = {"lora_A": 2, "lora_B": 2} | ({"lora_magnitude_vector": 1} if config.dora else {})
    if set(found) != set(wanted):
        raise FormatError(path, f"{module!r} has {', '.join(sorted(found))}, where {', '.join(wanted)} were expected")
    rank = config.rank_of(module)
    down, up, magnitude = found["lora_A"], found["lora_B"], found.get("lora_magnitude_vector")
    right = all(found[key].ndim == n for key, n in wanted.items()) and len(down) == rank and up.shape[1] == rank
    if not right or (magnitude is not None and len(magnitude) != len(up)):
        shapes = ", ".join(f"{key} {list(tensor.shape)}" for key, tensor in sorted(found.items()))
        raise FormatError(path, f"{module!r} has {shapes}: they do not fit together, or not to the rank {rank}")
    scale = config.alpha_of(module) / (rank**0.5 if config.rslora else rank)
    return Matrices(down, up, magnitude, scale)


def _placed(
    model: Decoder, found: dict[str, Matrices], links: Sequence[Link] | None, path: Path
) -> dict[str, Matrices]:
    """The adapters by our paths; `FormatError` for a module that the model does not have, or of another shape."""
    known = {their_module(link): link for link in map_links(links or ())}
    maps = linear_maps(model)
    ours: dict[str, Matrices] = {}
    for module, each in found.items():
        link = known.get(module)
        places = [module] if link is None else our_modules(link)
        if any(place not in maps for place in places):
            raise FormatError(path, f"{module!r} is not a linear map of this model")
        shapes = [shape_of(frozen_at(model, place)) for place in places]
        expected = sum(height for height, _ in shapes), shapes[0][1]
        if (len(each.up_FR), each.down_RD.shape[1]) != expected:
            wrong = [len(each.up_FR), each.down_RD.shape[1]]
            raise FormatError(path, f"{module!r} is {list(expected)} in this model, and the adapter is for {wrong}")
        ours |= {module: each} if link is None else from_theirs(link, each)
    return ours


def _made(model: Decoder, place: str, each: Matrices, config: PeftConfig) -> LowRank:
    kind = LowRank if each.magnitude_F is None else Decomposed
    alpha = each.alpha(rslora=config.rslora)
    base = frozen_at(model, place)
    adapter = kind(base=base, rank=each.rank, alpha=alpha, dropout=config.dropout, rslora=config.rslora)
    with torch.no_grad():
        adapter.down.copy_(each.down_RD)
        adapter.up.copy_(each.up_FR)
        if isinstance(adapter, Decomposed) and each.magnitude_F is not None:
            adapter.magnitude.copy_(each.magnitude_F)
    return adapter
