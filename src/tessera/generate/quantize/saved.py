"""A quantized model as named tensors, and back.

A weight in codes is written as its parts, which say by their names what they are:

    blocks.0.attention.query.weight.q4_0.blocks
    blocks.0.attention.query.weight.int4.codes      ...scales      ...offsets

Their last dimension is the row's, those before it are the weight's own; so nothing beside the tensors has to be known
to read them.
"""

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from tessera.errors import InputError
from tessera.generate.quantize.kinds import BLOCK, KINDS, Kind, Parts
from tessera.generate.quantize.stored import Quantized, QuantizedWeight

_WEIGHT = ".weight."


def stored_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a model by the names that they are written under; of a plain one its `state_dict`."""
    layers = {path: part for path, part in model.named_modules() if isinstance(part, Quantized)}
    inside = tuple(f"{path}.stored." for path in layers)
    tensors = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(inside or ("\0",))}
    for path, layer in layers.items():
        stored = layer.stored
        for name, part in stored.parts.items():
            tensors[f"{path}{_WEIGHT}{stored.kind.name}.{name}"] = part.view(*stored.shape[:-1], part.shape[-1])
    return tensors


def matrices(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, QuantizedWeight]]:
    """(the tensors that are as they were, the weights in codes by their own names)."""
    plain: dict[str, Tensor] = {}
    found: dict[str, tuple[str, Parts]] = {}
    for name, tensor in tensors.items():
        path, _, rest = name.partition(_WEIGHT)
        kind, _, part = rest.partition(".")
        if kind not in KINDS or part not in KINDS[kind].parts:
            plain[name] = tensor
            continue
        weight = f"{path}.weight"
        if found.setdefault(weight, (kind, {}))[0] != kind:
            raise InputError(f"{weight!r} is there as {kind} and as {found[weight][0]}")
        found[weight][1][part] = tensor
    return plain, {name: _weight(name, kind, parts) for name, (kind, parts) in found.items()}


def _weight(name: str, kind: str, parts: Parts) -> QuantizedWeight:
    missing = [part for part in KINDS[kind].parts if part not in parts]
    if missing:
        raise InputError(f"of the weight {name!r} the {missing[0]} are missing")
    leading = {tuple(part.shape[:-1]) for part in parts.values()}
    if len(leading) != 1:
        raise InputError(f"the parts of the weight {name!r} have different numbers of rows")
    shape = (*leading.pop(), _width(KINDS[kind], parts))
    rows = {part: tensor.reshape(-1, tensor.shape[-1]) for part, tensor in parts.items()}
    return QuantizedWeight(kind=kind, shape=shape, parts=rows)


def _width(kind: Kind, parts: Parts) -> int:
    """Numbers in a row."""
    if not kind.is_block:
        return parts["codes"].shape[-1] * (8 // kind.bits)
    return parts["blocks"].shape[-1] // kind.block_bytes * BLOCK


def is_stored(tensors: Mapping[str, Tensor]) -> bool:
    """Whether any of the tensors is part of a weight in codes."""
    return any(name.partition(_WEIGHT)[2].partition(".")[0] in KINDS for name in tensors)


class PlainTensors(Mapping[str, Tensor]):
    """All tensors of a model as floats by their own names; those in codes are made when they are asked for."""

    def __init__(self, plain: Mapping[str, Tensor], stored: Mapping[str, QuantizedWeight]) -> None:
        self.plain, self.stored = plain, stored

    def __getitem__(self, name: str) -> Tensor:
        return self.stored[name].whole() if name in self.stored else self.plain[name]

    def __iter__(self) -> Iterator[str]:
        yield from self.plain
        yield from self.stored

    def __len__(self) -> int:
        return len(self.plain) + len(self.stored)
