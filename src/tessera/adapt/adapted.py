"""A linear map with adapters around it, and what is done to all such maps of a model at once.

The map itself stays as it is, whatever happens: a merged map is a second matrix beside it, and unmerging drops that. So
the model without its adapters is there at any time, and is the reference model of preference learning (`disabled`).
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tessera.adapt.frozen import freeze, is_frozen, thaw
from tessera.adapt.low_rank import Frozen, LowRank
from tessera.adapt.places import put_module
from tessera.adapt.quantized import QuantizedLinear, dequantize_base
from tessera.errors import InputError, SettingError
from tessera.model.linear import Linear

DEFAULT = "default"


class AdaptedLinear(nn.Module):
    """`base` with adapters by name, of which `active` is in use, or none."""

    merged: Tensor | None

    def __init__(self, *, base: Frozen) -> None:
        super().__init__()
        self.base = base
        self.adapters = nn.ModuleDict()
        self.active: str | None = None
        self.enabled = True
        self.learns = False
        """Whether the merged adapter did."""
        self.register_buffer("merged", None, persistent=False)

    @property
    def current(self) -> LowRank | None:
        """The adapter that is in use here."""
        if not self.enabled or self.active is None or self.active not in self.adapters:
            return None
        found = self.adapters[self.active]
        assert isinstance(found, LowRank)
        return found

    @property
    def weight(self) -> Tensor:
        """The one matrix that does what map and adapter do, for who reads it; gradients go to the adapter."""
        adapter = self.current
        if adapter is None:
            return self.base.weight
        return adapter.weight(self.base) if self.merged is None else self.merged

    @property
    def bias(self) -> nn.Parameter | None:
        return self.base.bias

    def forward(self, x: Tensor) -> Tensor:
        adapter = self.current
        if adapter is None:
            return self.base(x)
        y = adapter(x, self.base) if self.merged is None else x @ self.merged.T
        return y if self.bias is None else y + self.bias.to(y.dtype)


def adapted(model: nn.Module) -> dict[str, AdaptedLinear]:
    """The maps of the model that have adapters, by path."""
    return {path: part for path, part in model.named_modules() if isinstance(part, AdaptedLinear)}


def adapter_names(model: nn.Module) -> list[str]:
    """The names of its adapters, in the order in which they came."""
    return list(dict.fromkeys(name for layer in adapted(model).values() for name in layer.adapters))


def active_adapter(model: nn.Module) -> str | None:
    """The name of the adapter in use."""
    return next((layer.active for layer in adapted(model).values()), None)


def add_adapter(model: nn.Module, adapters: Mapping[str, LowRank], name: str = DEFAULT) -> None:
    """Put an adapter around the maps at the paths, and use it. All else in the model is frozen from then on."""
    _check_new(model, name)
    for path, adapter in adapters.items():
        layer = model.get_submodule(path)
        if not isinstance(layer, AdaptedLinear):
            assert isinstance(layer, Frozen), path
            base, layer = layer, AdaptedLinear(base=layer)
            put_module(model, path, layer)
            layer.train(base.training)
        adapter.train(layer.training)
        layer.adapters[name] = adapter
    freeze(model)
    switch(model, name)


def _check_new(model: nn.Module, name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or hasattr(nn.ModuleDict, name):
        raise SettingError("adapter", name, "a name of letters, digits, _ and -")
    if name in adapter_names(model):
        raise SettingError("adapter", name, f"another name than {', '.join(adapter_names(model))}")
    _check_not_merged(model)


def switch(model: nn.Module, name: str | None, *, trainable: bool = True) -> None:
    """Use the adapter `name`, or none. Only its numbers learn, if any do."""
    known = adapter_names(model)
    if name is not None and name not in known:
        raise SettingError.unknown("the model's adapters", name, known)
    _check_not_merged(model)
    for layer in adapted(model).values():
        layer.active = name
        for each, adapter in layer.adapters.items():
            adapter.requires_grad_(trainable and each == name)


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Within the block the model is what it was without adapters, merged or not."""
    layers = [layer for layer in adapted(model).values() if layer.enabled]
    for layer in layers:
        layer.enabled = False
    try:
        yield
    finally:
        for layer in layers:
            layer.enabled = True


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """One matrix for each adapted map, so that the adapter costs no time; it does not learn until `unmerge`.

    A matrix takes as much memory as the map in floats, which stays beside it.
    """
    _need_active(model)
    _check_not_merged(model)
    for layer in adapted(model).values():
        adapter = layer.current
        if adapter is not None:
            layer.merged, layer.learns = _merged(layer, adapter), adapter.up.requires_grad
            adapter.requires_grad_(False)


def unmerge(model: nn.Module) -> None:
    """The maps are what they were, bit for bit, with the adapter beside them again."""
    for layer in adapted(model).values():
        if layer.merged is not None:
            layer.merged = None
            if layer.active is not None:
                layer.adapters[layer.active].requires_grad_(layer.learns)


def is_merged(model: nn.Module) -> bool:
    return any(layer.merged is not None for layer in adapted(model).values())


@torch.no_grad()
def merge_and_remove(model: nn.Module) -> None:
    """The model becomes a plain one, which does what it did with the adapter in use: to save, export or train it whole.

    The other adapters are lost, and a quantized base becomes floats.
    """
    for path, layer in adapted(model).items():
        adapter = layer.current
        if adapter is None:
            put_module(model, path, layer.base)
            continue
        weight = _merged(layer, adapter)
        with torch.device("meta"):
            plain = Linear(d_in=weight.shape[1], d_out=weight.shape[0])
        plain.weight, plain.bias = nn.Parameter(weight), layer.bias
        put_module(model, path, plain)
    _make_plain(model)


def remove(model: nn.Module) -> None:
    """The model becomes what it was before it had adapters; they are lost. A quantized base stays quantized."""
    for path, layer in adapted(model).items():
        put_module(model, path, layer.base)
    if is_frozen(model):
        thaw(model)


def check_plain(model: nn.Module) -> None:
    """Raise `InputError` unless the model is a plain one, that can be written whole."""
    if adapted(model):
        names = ", ".join(adapter_names(model))
        raise InputError(f"the model has adapters ({names}): save them alone, or merge_and_remove(model) first")
    if any(isinstance(part, QuantizedLinear) for part in model.modules()):
        raise InputError("the model's weights are stored in 4 or 8 bits: dequantize_base(model) first")


def _merged(layer: AdaptedLinear, adapter: LowRank) -> Tensor:
    weight = adapter.weight(layer.base)
    return weight if isinstance(layer.base, QuantizedLinear) else weight.to(layer.base.weight.dtype)


def _make_plain(model: nn.Module) -> None:
    dequantize_base(model)
    if is_frozen(model):
        thaw(model)


def _need_active(model: nn.Module) -> None:
    if active_adapter(model) is None:
        raise InputError("no adapter is in use: switch(model, name) first")


def _check_not_merged(model: nn.Module) -> None:
    if is_merged(model):
        raise InputError("the adapter is merged: unmerge(model) first")
