"""A model in one safetensors file, in our own names, with its settings and its tokenizer in the header."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tessera.errors import DamagedError, FormatError, InputError, SettingError
from tessera.formats.beside import new_file
from tessera.formats.json_file import parse_json_object
from tessera.formats.safetensors_file import SafetensorsFile, SafetensorsModel
from tessera.formats.source import ModelSource, check_settings, check_shapes, skeleton_shapes
from tessera.model.settings import DecoderSettings
from tessera.tokenizers import Tokenizer, tokenizer_from_json

if TYPE_CHECKING:
    from torch import Tensor

KEY = "tessera"


def open_own(path: Path) -> ModelSource:
    """The model in a file that `export_own` wrote."""
    file = SafetensorsFile(path)
    if KEY not in file.metadata:
        raise FormatError(path, "tensors without the settings of a model: give the folder with the config.json")
    content = parse_json_object(file.metadata[KEY].encode("utf-8", "surrogatepass"), path)
    if set(content) != {"model", "n_vocab", "tokenizer"} or not isinstance(content["model"], dict):
        raise FormatError(path, f"its metadata {KEY!r} is not the settings, vocabulary and tokenizer of a model")
    n_vocab = content["n_vocab"]
    if type(n_vocab) is not int or not 1 <= n_vocab <= 2**31:
        raise FormatError(path, f"n_vocab = {n_vocab!r} is no size of a vocabulary")
    try:
        settings = check_settings(content["model"])
        tokenizer = tokenizer_from_json(str(content["tokenizer"]), path)
    except (SettingError, InputError, DamagedError) as error:
        raise FormatError(path, f"its metadata make no model: {error}") from None
    tensors = SafetensorsModel(path, [file])
    if settings.n_layers + settings.n_future > len(tensors.shapes):
        raise FormatError(path, f"{settings.n_layers + settings.n_future} layers and {len(tensors.shapes)} tensors")
    shapes = skeleton_shapes(path, settings, n_vocab)
    check_shapes(path, tensors.shapes, shapes)
    for name in shapes:
        tensors.check_float(name)
    return ModelSource(
        family=KEY,
        settings=settings,
        n_vocab=n_vocab,
        tokenizer=tokenizer,
        names=list(shapes),
        read=lambda name, dtype: tensors.tensor(name, dtype),
        array=lambda name: tensors.array(name),
        path=path,
    )


def export_own(
    settings: DecoderSettings,
    n_vocab: int,
    tensors: "Mapping[str, Tensor]",
    tokenizer: Tokenizer,
    path: Path,
    *,
    dtype: str,
) -> list[str]:
    """Write the file `path`, which must not exist; returns lines to say about it."""
    from tessera.formats.safetensors_out import Entry, write_safetensors
    from tessera.formats.torch_tensors import check_complete, converted, float_named

    wanted = float_named(dtype)
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: the file's name must end in .safetensors")
    check_complete(settings, n_vocab, tensors)
    content = {"model": settings.model_dump(mode="json"), "n_vocab": n_vocab, "tokenizer": tokenizer.to_json()}
    entries = [Entry(name, wanted, tuple(tensor.shape)) for name, tensor in tensors.items()]
    data = (converted(name, tensor, dtype) for name, tensor in tensors.items())
    with new_file(path) as temporary:
        write_safetensors(temporary, entries, data, {"format": "pt", KEY: json.dumps(content)})
    return [f"{path}: {sum(entry.n_bytes for entry in entries) / 1e6:,.1f} MB in {dtype}, in Tessera's own names"]
