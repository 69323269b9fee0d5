"""A model of ours as a GGUF file that llama.cpp and all that is built on it load.

Which architecture holds it is found by trying: each writes its entries and reads them back, and whatever differs is
what it cannot hold. The first that loses nothing is taken.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tessera.errors import FormatError, SettingError
from tessera.formats.families.filled import Filled, fill
from tessera.formats.families.links import Joined, Link, expected_shapes
from tessera.formats.gguf.architecture import Architecture, scaling_of
from tessera.formats.gguf.keys import Keys
from tessera.formats.gguf.names import Regrouped
from tessera.formats.gguf.opening import ARCHITECTURES
from tessera.formats.gguf.rope import FREQUENCIES, llama3_divisors, usual_gain
from tessera.formats.gguf.values import Value
from tessera.formats.gguf.vocabulary_out import write_vocabulary
from tessera.formats.gguf.writer import Outgoing, write_gguf
from tessera.formats.source import Blocks
from tessera.model.rope_scaling import ROPE_SCALINGS
from tessera.model.settings import DecoderSettings
from tessera.tokenizers import Tokenizer

_VOCABULARY_TABLES = ("embedding.weight", "head.weight")
_FUTURE = "future."  # the blocks that predict further tokens, in training only
# Said by feed_forward.d_shared as well.
_IDLE = ("feed_forward.n_shared",)


def export_gguf(
    settings: DecoderSettings,
    n_vocab: int,
    tensors: Mapping[str, Tensor],
    tokenizer: Tokenizer,
    path: str | Path,
    *,
    dtype: str = "fp32",
    blocks: Blocks | None = None,
) -> list[str]:
    """Write the file; returns what the user should hear. A `SettingError` names what no architecture can hold.

    `dtype` is fp32, fp16, bf16, q8_0, q4_0 or q4_1: that of all matrices whose rows are a multiple of its block,
    but for those that `blocks` has: they are written as they are.
    """
    path = Path(path)
    held = {
        name: tensor[:n_vocab] if name in _VOCABULARY_TABLES else tensor  # no padding: every row has a token there
        for name, tensor in tensors.items()
        if not name.startswith(_FUTURE)
    }
    shapes = {name: tuple(tensor.shape) for name, tensor in held.items()}
    filled = _settled(fill(settings, n_vocab, shapes))
    architecture, entries, links = _hold(filled, shapes, path)
    vocabulary = write_vocabulary(tokenizer, n_vocab)
    metadata: dict[str, Value] = {
        "general.architecture": architecture.name,
        "general.type": "model",
        "general.name": path.stem,
        **{f"{architecture.name}.{key}": value for key, value in entries.items()},
        **vocabulary.entries,
    }
    outgoing = [_outgoing(link, held, blocks) for link in links] + _frequencies(filled)
    notes = write_gguf(path, metadata, outgoing, dtype=dtype)
    left = (
        []
        if len(held) == len(tensors)
        else [f"{len(tensors) - len(held)} tensors that only training uses are left out"]
    )
    return [*_window_note(architecture, filled), *vocabulary.notes, *left, *notes]


def _hold(
    filled: Filled, shapes: Mapping[str, tuple[int, ...]], path: Path
) -> tuple[Architecture, dict[str, Value], list[Link]]:
    """The first architecture that loses nothing, its entries, and the links to its tensors."""
    refusals: list[tuple[int, str]] = []
    for name, architecture in ARCHITECTURES.items():
        entries = architecture.write(filled)
        try:
            links = _links(architecture, filled, shapes)
            there = {theirs for link in links for theirs in link.theirs}
            lost = _read_back(architecture, entries, there, filled, shapes, path)
        except (FormatError, SettingError) as error:
            refusals.append((1000, f"{name}: {str(error).removeprefix(f'{path}: ')}"))
            continue
        if not lost:
            return architecture, entries, links
        named = [f"{setting} = {own!r} (there {other!r})" for setting, (own, other) in lost.items()]
        refusals.append((len(lost), f"{name}: {'; '.join(named[:4])}"))
    nearest = min(refusals, key=lambda each: (each[0], "feed_forward" in each[1]))[1]
    expected = f"a model that an architecture of llama.cpp holds; what is in the way of the nearest, {nearest}"
    raise SettingError("to", "gguf", expected)


def _links(architecture: Architecture, filled: Filled, shapes: Mapping[str, tuple[int, ...]]) -> list[Link]:
    layer = filled.layers[0]
    return architecture.naming.links(
        shapes,
        n_heads=filled.model["n_heads"],
        n_kv_heads=layer.get("attention.n_kv_heads", 1),
        interleaved=[i for i, each in enumerate(filled.layers) if each.get("position.layout") == "interleaved"],
    )


def _read_back(
    architecture: Architecture,
    entries: Mapping[str, Value],
    tensors: set[str],
    filled: Filled,
    shapes: Mapping[str, tuple[int, ...]],
    path: Path,
) -> dict[str, tuple[Any, Any]]:
    """What differs between `filled` and what the file would say."""
    divisors = _divisors(filled) if architecture.divides else None
    metadata = {f"{architecture.name}.{key}": value for key, value in entries.items()}
    keys = Keys(path, architecture.name, metadata, tensors, None if divisors is None else divisors.numpy())
    settings = DecoderSettings(**architecture.read(keys))
    keys.finish()
    names = [spec.name for spec in settings.pattern("feed_forward")]
    for i, layer in enumerate(filled.layers):
        own, other = layer["feed_forward.name"], names[i % len(names)]
        if (own == "moe") != (other == "moe"):
            raise SettingError("model.feed_forward", own, other)
    again = _settled(fill(settings, filled.n_vocab, shapes))
    if architecture.naming.pairs is not None:  # rows are moved to the layout that is turned there
        filled, again = _without(filled, "position.layout"), _without(again, "position.layout")
    return filled.differences(again)


def _settled(filled: Filled) -> Filled:
    """Without what says nothing: a window that no text can leave, a scaling's defaults, groups that exclude none."""
    layers = []
    for layer in filled.layers:
        kept = {name: value for name, value in layer.items() if name not in _IDLE}
        if kept.get("attention.window") and kept["attention.window"] >= filled.model["context"]:
            kept["attention.window"] = None
            kept.pop("attention.window_keeps", None)
        if kept.get("feed_forward.n_groups") == kept.get("feed_forward.n_active_groups"):
            for name in ("n_groups", "n_active_groups", "group_score"):
                kept.pop(f"feed_forward.{name}", None)
        layers.append(kept | _settled_scaling(kept))
    return replace(filled, layers=layers)


def _settled_scaling(layer: Mapping[str, Any]) -> dict[str, Any]:
    """The scaling with its defaults, and YaRN's gain as the one number that it comes to."""
    scaling = scaling_of(layer)
    if scaling is None:
        return {}
    parameters = inspect.signature(ROPE_SCALINGS[scaling.pop("name")]).parameters.values()
    whole = {p.name: p.default for p in parameters if p.default is not p.empty} | scaling
    if "mscale" in whole:
        factor = float(whole["factor"])
        own = usual_gain(factor, whole["mscale"]) / usual_gain(factor, whole["mscale_all_dim"])
        whole["attention_factor"] = whole["attention_factor"] or own
        if layer["attention.name"] != "mla":
            whole |= {"mscale": 1.0, "mscale_all_dim": 0.0}
    return {f"position.scaling.{name}": value for name, value in whole.items()}


def _without(filled: Filled, setting: str) -> Filled:
    layers = [{name: value for name, value in layer.items() if name != setting} for layer in filled.layers]
    return replace(filled, layers=layers)


def _outgoing(link: Link, held: Mapping[str, Tensor], blocks: Blocks | None) -> Outgoing:
    ((name, shape),) = expected_shapes(link).items()
    kind, make = _stored(link, blocks) or (None, lambda: link.give([held[ours] for ours in link.ours])[0])
    return Outgoing(name, shape, make, kind)


def _stored(link: Link, blocks: Blocks | None) -> tuple[str, Callable[[], Tensor]] | None:
    """The kind of the blocks that ours are, and what puts them together, where rows change their places only."""
    if blocks is None or type(link) not in (Link, Regrouped, Joined):
        return None
    found = [blocks(ours) for ours in link.ours]
    kinds = {each[0] if each is not None else None for each in found}
    if len(kinds) != 1 or None in kinds:
        return None

    def make() -> Tensor:
        heights = [prod(shape[:-1]) for shape in link.shapes]  # without the padding of a vocabulary
        made = [each[1]()[:rows] for each, rows in zip(found, heights, strict=True) if each is not None]
        return link.give([torch.from_numpy(each) for each in made])[0]

    return str(kinds.pop()), make


def _divisors(filled: Filled) -> Tensor | None:
    layer = filled.layers[0]
    scaling = scaling_of(layer)
    if scaling is None or scaling["name"] != "llama3" or "attention.d_head" not in layer:
        return None
    return llama3_divisors(scaling, layer["position.base"], layer["attention.d_head"])


def _frequencies(filled: Filled) -> list[Outgoing]:
    divisors = _divisors(filled)
    return [] if divisors is None else [Outgoing(FREQUENCIES, tuple(divisors.shape), lambda: divisors)]


def _window_note(architecture: Architecture, filled: Filled) -> list[str]:
    window = filled.layers[0].get("attention.window")
    if not window or architecture.name != "llama":
        return []
    return [
        f"llama.cpp has no sliding window for the architecture llama: its answers are the same up to {window} tokens, "
        "and not beyond"
    ]
