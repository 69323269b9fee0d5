"""The settings of low-rank adapters, as a piece: made of a recipe's `adapt`, and called with a model.

adapt = {name = "lora", rank = 8, alpha = 16, targets = ["attention.query", "attention.value"], base = "nf4"}
"""

from typing import Literal

from torch import nn

from tessera.adapt.adapted import DEFAULT, AdaptedLinear, add_adapter
from tessera.adapt.low_rank import Decomposed, Frozen, LowRank, check_sizes
from tessera.adapt.places import in_blocks, matches, without_numbers
from tessera.adapt.quantized import QuantizedLinear, quantize_base
from tessera.errors import InputError, SettingError
from tessera.model.linear import Linear

Base = Literal["fp32", "nf4", "int8"]


class Lora:
    """Low-rank adapters: LoRA, rsLoRA, DoRA, on a base of floats or (QLoRA) of 4 or 8 bits.

    - `targets`: patterns of the paths of linear maps, each a run of whole parts, where `*` stands for anything:
      `query`, `blocks.0.attention`, `blocks.*.feed_forward.output`. Without any: all maps of the blocks.
    - `rank` and `alpha`: the adapter is scaled by alpha / rank, with `rslora` by alpha / sqrt(rank).
    - `dropout` falls on what the adapter reads, while it trains. `dora` learns the lengths of the rows beside.
    - `base`: how the weights of the blocks are kept (`quantize_base`); "fp32" leaves them as they are.
    """

    def __init__(
        self,
        *,
        rank: int = 8,
        alpha: float = 16.0,
        dropout: float = 0.0,
        targets: tuple[str, ...] | None = None,
        rslora: bool = False,
        dora: bool = False,
        base: Base = "fp32",
    ) -> None:
        check_sizes(rank=rank, alpha=alpha, dropout=dropout)
        if base not in ("fp32", "nf4", "int8"):
            raise SettingError("base", base, "one of fp32, nf4, int8")
        if targets is not None and not targets:
            raise SettingError("targets", targets, "at least one pattern, or none for all maps of the blocks")
        self.rank, self.alpha, self.dropout, self.rslora = rank, float(alpha), dropout, rslora
        self.targets, self.dora, self.base = targets, dora, base

    def __call__(self, model: nn.Module, name: str = DEFAULT) -> None:
        """Give the model an adapter `name` and use it; all else in the model is frozen.

        Draws come from torch's global generator, in the order of `model.modules()`.
        """
        paths = find_targets(model, self.targets)
        if self.base != "fp32" and not is_quantized(model):
            quantize_base(model, self.base)
        add_adapter(model, {path: self.make(frozen_at(model, path)) for path in paths}, name)

    def learned(self, model: nn.Module) -> nn.Module:
        """What a plain model would learn, apart from it; also of one without memory, on `meta`."""
        return nn.ModuleList(self.make(frozen_at(model, path)) for path in find_targets(model, self.targets))

    def make(self, base: Frozen) -> LowRank:
        """The adapter of one map."""
        kind = Decomposed if self.dora else LowRank
        return kind(base=base, rank=self.rank, alpha=self.alpha, dropout=self.dropout, rslora=self.rslora)


def is_quantized(model: nn.Module) -> bool:
    return any(isinstance(part, QuantizedLinear) for part in model.modules())


def frozen_at(model: nn.Module, path: str) -> Frozen:
    """The map at the path, without the adapters that it may have already."""
    part = model.get_submodule(path)
    part = part.base if isinstance(part, AdaptedLinear) else part
    assert isinstance(part, Frozen), path
    return part


def linear_maps(model: nn.Module) -> dict[str, nn.Module]:
    """All maps that may have an adapter, by path."""
    kinds = Linear | QuantizedLinear | AdaptedLinear
    inside = {f"{path}.base" for path, part in model.named_modules() if isinstance(part, AdaptedLinear)}
    found = model.named_modules()
    return {path: part for path, part in found if isinstance(part, kinds) and path not in inside}


def find_targets(model: nn.Module, patterns: tuple[str, ...] | None) -> list[str]:
    """The paths of the maps that the patterns mean; one that means none is a `SettingError` that says what there is.

    A router of experts is meant only by a pattern that ends in its name.
    """
    maps = linear_maps(model)
    if patterns is None:
        found = [path for path in maps if in_blocks(path) and not path.startswith("future.")]
        if not found:
            raise InputError("the model's blocks have no linear map to adapt")
        return found
    chosen: set[str] = set()
    for pattern in patterns:
        meant = {path for path in maps if _means(pattern, path)}
        if not meant:
            raise SettingError.unknown("adapt.targets: the model", pattern, {without_numbers(path) for path in maps})
        chosen |= meant
    return [path for path in maps if path in chosen]


def _means(pattern: str, path: str) -> bool:
    return matches(pattern, path) and (not path.endswith(".router") or pattern.endswith("router"))


ADAPTERS = {"lora": Lora}
