"""Settings with every default filled in, layer by layer: what two models must share to give the same numbers.

`DecoderSettings` can say the same model in many ways (a width that follows from another, a pattern of layers, a default
that is left out). Filled in, two descriptions of one model are equal, and of two others every difference has a name.
What only training knows (dropout, initialisation, the balance of experts) is left out.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tessera.config import Spec
from tessera.model.settings import DecoderSettings

_OF_TRAINING = {"dropout", "balance", "balance_weight", "bias_rate", "z_weight", "capacity"}
_OF_THE_MODEL = {"n_vocab", "context", "d_model", "n_layers", "n_heads", "layer"}


@dataclass(frozen=True)
class Filled:
    """A model's settings; those of the layers by "slot.setting"."""

    n_vocab: int
    model: dict[str, Any]
    layers: list[dict[str, Any]]

    def differences(self, other: "Filled") -> dict[str, tuple[Any, Any]]:
        """The settings that differ, each with both values (of the first layer in which they do)."""
        found = _differences(self.model, other.model)
        for own, others in zip(self.layers, other.layers, strict=False):
            found = _differences(own, others) | found
        return found


def fill(settings: DecoderSettings, n_vocab: int, shapes: Mapping[str, tuple[int, ...]]) -> Filled:
    """`settings` filled in; `shapes`, those of the model's tensors, say the widths that the pieces chose."""
    d_head = settings.d_head or settings.d_model // settings.n_heads
    given = {name: getattr(settings, name) for name in ("context", "d_model", "n_layers", "n_heads", "bias")}
    given |= {"n_vocab": n_vocab, "d_head": d_head, "d_ff": settings.d_ff}
    names = ("context", "d_model", "n_layers", "n_heads", "tied", "placement", "embedding_scale", "logit_cap")
    model = {name: getattr(settings, name) for name in names}
    model |= _piece("embedding", settings.embedding, given) | _piece("norm", settings.norm, given)
    layers = []
    for i in range(settings.n_layers):
        layer: dict[str, Any] = {}
        for slot in ("attention", "position", "feed_forward"):
            pattern = settings.pattern(slot)
            layer |= _piece(slot, pattern[i % len(pattern)], given)
        layers.append(_settle(layer, settings.n_heads, i, shapes))
    return Filled(n_vocab, model, layers)


def _piece(slot: str, spec: Spec, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a piece, as "slot.setting": its defaults, what the decoder gives, and what the spec says."""
    from tessera.model.pieces import SLOTS  # PyTorch's: only who writes a model needs its pieces

    values = _defaults(SLOTS[slot][spec.name])
    values |= {name: value for name, value in given.items() if name in values}
    values |= spec.settings
    filled: dict[str, Any] = {f"{slot}.name": spec.name}
    for name, value in values.items():
        if name == "scaling" and value is not None:
            filled |= _scaling(f"{slot}.scaling", Spec.read(value))
        elif name not in _OF_TRAINING | _OF_THE_MODEL:
            filled[f"{slot}.{name}"] = value
    if values.get("balance") == "bias":
        filled[f"{slot}.balance"] = "bias"  # its bias decides on the experts in use as well
    return filled


def _scaling(path: str, spec: Spec) -> dict[str, Any]:
    from tessera.model.rope_scaling import GIVEN, ROPE_SCALINGS

    values = _defaults(ROPE_SCALINGS[spec.name]) | dict(spec.settings)
    return {path: spec.name} | {f"{path}.{name}": value for name, value in values.items() if name not in GIVEN}


def _defaults(make: Callable[..., Any]) -> dict[str, Any]:
    """The keywords of a constructor with their defaults; None where there is none."""
    parameters = inspect.signature(make).parameters.values()
    return {p.name: None if p.default is p.empty else p.default for p in parameters}


def _settle(layer: dict[str, Any], n_heads: int, i: int, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The values that a piece chooses where it is told None, and without those that have no effect."""
    from tessera.model.latent_attention import latent_widths

    layer.pop("position.d_head", None)
    if layer["attention.name"] == "mla":
        for name, usual in latent_widths(layer.pop("attention.d_head")).items():
            if layer[f"attention.{name}"] is None:
                layer[f"attention.{name}"] = usual
        width = layer["attention.d_nope"] + layer["attention.d_rope"]
    else:
        width = layer["attention.d_head"]
        layer["attention.n_kv_heads"] = layer["attention.n_kv_heads"] or n_heads
        if layer["attention.window"] is None:
            layer.pop("attention.window_keeps", None)
        if not layer["attention.qk_norm"]:
            layer.pop("attention.qk_eps", None)
    if "attention.scale" in layer:
        layer["attention.scale"] = layer["attention.scale"] or width**-0.5
    if "attention.output_bias" in layer and layer["attention.output_bias"] is None:
        layer["attention.output_bias"] = layer["attention.bias"]
    inner = f"blocks.{i}.feed_forward."
    if layer["feed_forward.name"] == "moe":
        layer.pop("feed_forward.d_ff")
        layer["feed_forward.d_expert"] = shapes[f"{inner}experts.input.weight"][1]
        shared = shapes.get(f"{inner}shared.input.weight")
        layer["feed_forward.d_shared"] = None if shared is None else shared[0]
    else:
        layer["feed_forward.d_ff"] = shapes[f"{inner}input.weight"][0]
    return layer


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    names = [*one, *(name for name in other if name not in one)]
    pairs = {name: (one.get(name), other.get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if not _same(*pair)}


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float | int) and isinstance(other, float | int) and not isinstance(one, bool):
        return math.isclose(one, other, rel_tol=1e-6)
    return bool(one == other)


def shortest_pattern(layers: Sequence[Any]) -> Any:
    """The shortest pattern that, repeated, gives these layers; one spec where all are equal."""
    for n in range(1, len(layers) + 1):
        if all(layer == layers[i % n] for i, layer in enumerate(layers)):
            return layers[0] if n == 1 else list(layers[:n])
    raise ValueError("no layers")
