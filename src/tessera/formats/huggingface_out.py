"""A model's folder as Hugging Face's libraries have it, out: config.json, safetensors, tokenizer.json."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tessera.errors import InputError, SettingError
from tessera.formats.beside import new_folder
from tessera.formats.choice import Chosen, choose_family
from tessera.formats.families.links import Link, expected_shapes
from tessera.formats.huggingface import CONFIG, INDEX, TENSORS
from tessera.formats.safetensors_out import Entry, write_safetensors
from tessera.formats.torch_tensors import check_complete, converted, float_named
from tessera.model.settings import DecoderSettings
from tessera.store.files import to_readable_json, write_new
from tessera.tokenizers import FORMATS, Tokenizer, export_tokenizer
from tessera.tokenizers.regex_bpe import RegexBpe
from tessera.tokenizers.scan import RULES

GENERATION = "generation_config.json"
MAX_SHARD = 5 * 10**9


def export_huggingface(
    settings: DecoderSettings,
    n_vocab: int,
    tensors: Mapping[str, Tensor],
    tokenizer: Tokenizer,
    path: Path,
    *,
    dtype: str,
) -> list[str]:
    """Write the folder `path`, which must not exist or be empty; it appears when all of it is on the disk.

    The family is the first that holds the settings exactly. Returns lines to say about what was written.
    """
    float_named(dtype)
    _check_tokenizer(tokenizer)
    if tokenizer.n_vocab > n_vocab:
        raise InputError(f"the tokenizer has {tokenizer.n_vocab} ids and the model {n_vocab} rows for them")
    check_complete(settings, n_vocab, tensors)
    chosen = choose_family(settings, n_vocab, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    with new_folder(path) as temporary:
        export_tokenizer(tokenizer, temporary, format="huggingface")  # first: it is small, and may be refused
        ids = token_ids(tokenizer)
        _write_json(temporary / CONFIG, _config(chosen, dtype) | ids)
        _write_json(temporary / GENERATION, {name: id for name, id in ids.items() if id is not None})
        n_bytes = _write_tensors(temporary, chosen, tensors, dtype)
    lines = [f"{path}: a model of the family {chosen.family.name!r}, {n_bytes / 1e6:,.1f} MB in {dtype}"]
    filled = sorted(set(chosen.shapes) - set(tensors))
    if filled:
        lines.append(f"{len(filled)} biases that the model does not have are written as zeros, such as {filled[0]}")
    left = sorted(set(tensors) - set(chosen.shapes))
    if left:
        lines.append(f"{len(left)} tensors that only training uses are left out, such as {left[0]}")
    pattern = tokenizer.pattern if isinstance(tokenizer, RegexBpe) else None
    if chosen.family.name == "qwen2" and RULES.get(str(pattern)) != RULES["qwen2"]:
        lines.append(
            "AutoTokenizer of transformers 5 gives every Qwen 2 that model's own splitting of text, which is not this "
            "tokenizer's: load it by PreTrainedTokenizerFast.from_pretrained"
        )
    return lines


def _check_tokenizer(tokenizer: Tokenizer) -> None:
    kinds = FORMATS["huggingface"].kinds or ()
    if tokenizer.kind not in kinds:
        expected = f"{', '.join(kinds)}: the kinds that have a form in Hugging Face's libraries"
        raise SettingError("tokenizer", tokenizer.kind, expected)


def _config(chosen: Chosen, dtype: str) -> dict[str, Any]:
    name = str(float_named(dtype)).removeprefix("torch.")
    head = {"architectures": [chosen.family.architecture], "model_type": chosen.family.name}
    return head | chosen.config | {"torch_dtype": name, "dtype": name}


def token_ids(tokenizer: Tokenizer) -> dict[str, Any]:
    """The ids that config.json names; several ends are a list, the framing's first."""
    ends = list(dict.fromkeys(tokenizer.specials[name] for name in tokenizer.framing.ends))
    ends += sorted(tokenizer.end_ids - set(ends))
    return {
        "bos_token_id": tokenizer.begin_id,
        "eos_token_id": ends if len(ends) > 1 else next(iter(ends), None),
        "pad_token_id": tokenizer.pad_id,
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_new(path, [to_readable_json(content).encode()])


def _write_tensors(folder: Path, chosen: Chosen, tensors: Mapping[str, Tensor], dtype: str) -> int:
    """model.safetensors, or shards with an index; returns the number of bytes of the tensors."""
    wanted = float_named(dtype)
    links = chosen.family.links(chosen.shapes, chosen.settings.n_layers, chosen.settings.n_heads)
    entries = [Entry(name, wanted, shape) for link in links for name, shape in expected_shapes(link).items()]
    data = _theirs(links, tensors, dtype)
    shards = _shards(entries)
    if len(shards) == 1:
        write_safetensors(folder / TENSORS, entries, data, {"format": "pt"})
    else:
        weight_map: dict[str, str] = {}
        for i, shard in enumerate(shards):
            name = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
            write_safetensors(folder / name, shard, (next(data) for _ in shard), {"format": "pt"})
            weight_map |= {entry.name: name for entry in shard}
        total = {"total_size": sum(entry.n_bytes for entry in entries)}
        _write_json(folder / INDEX, {"metadata": total, "weight_map": weight_map})
    return sum(entry.n_bytes for entry in entries)


def _shards(entries: list[Entry]) -> list[list[Entry]]:
    shards: list[list[Entry]] = [[]]
    n_bytes = 0
    for entry in entries:
        if shards[-1] and n_bytes + entry.n_bytes > MAX_SHARD:
            shards.append([])
            n_bytes = 0
        shards[-1].append(entry)
        n_bytes += entry.n_bytes
    return shards


def _theirs(links: list[Link], tensors: Mapping[str, Tensor], dtype: str) -> Iterator[Tensor]:
    """Their tensors in the order of the links, each made when it is asked for."""
    for link in links:
        ours = [_own(tensors, name, shape) for name, shape in zip(link.ours, link.shapes, strict=True)]
        for name, tensor in zip(link.theirs, link.give(ours), strict=True):
            yield converted(name, tensor, dtype)


def _own(tensors: Mapping[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    """Our tensor; the rows of a vocabulary without its padding, and zeros for a bias that is not there."""
    if name not in tensors:
        return torch.zeros(shape)
    tensor = tensors[name].detach()
    return tensor[: shape[0]] if name in ("embedding.weight", "head.weight") else tensor
