"""A model's parameters in groups that are learned alike: by what kind of tensor they are, with a rate of their own."""

import math
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from tessera.errors import InputError, SettingError

TABLES = {"embedding", "positions", "head"}
"""The parts of a model whose matrices are tables, a row a token or a place, and no maps from one space to another."""

KINDS = ("matrix", "table", "vector")


def groups(module: nn.Module, weight_decay: float | None = None) -> list[dict[str, Any]]:
    """The module's learned parameters in groups of a `kind`: "matrix" and "table", which are decayed, and "vector"
    (gains and biases), which are not. `names` are the parameters' names in the module.

    A tied matrix appears once. With `weight_decay` None the optimizer's own default is the matrices' decay.
    """
    kinds: dict[str, list[tuple[str, nn.Parameter]]] = {kind: [] for kind in KINDS}
    for name, param in module.named_parameters():
        if param.requires_grad:
            kind = "vector" if param.ndim < 2 else "table" if TABLES & set(name.split(".")) else "matrix"
            kinds[kind].append((name, param))
    if not any(kinds.values()):
        raise InputError("there is nothing to learn: the model has no parameter that requires a gradient")
    decayed = {} if weight_decay is None else {"weight_decay": weight_decay}
    made = [
        {"params": [param for _, param in named], "names": [name for name, _ in named], "kind": kind, **decayed}
        for kind, named in kinds.items()
        if named
    ]
    return [group | {"weight_decay": 0.0} if group["kind"] == "vector" else group for group in made]


def matches(pattern: str, name: str, kind: str) -> bool:
    """Whether `pattern` is the kind, or matches a run of whole parts of the dotted name: `embedding`, `blocks.0.*`."""
    return pattern == kind or fnmatchcase(f".{name}.", f"*.{pattern}.*")


def scale_rates(
    made: Iterable[dict[str, Any]], lr: float, lr_scale: Mapping[str, float] | None
) -> list[dict[str, Any]]:
    """The groups of `groups`, each split by the rate that its parameters have: `lr` times all scales that match them.

    Groups without a scale stay as they are, but for the names, which are not needed any more. A pattern that matches
    no parameter is an error.
    """
    made, lr_scale = list(made), lr_scale or {}
    _check(made, lr_scale)
    result = []
    for group in made:
        rest = {key: value for key, value in group.items() if key not in ("params", "names")}
        if not lr_scale:
            result.append({"params": group["params"], **rest})
            continue
        by_scale: dict[float, list[nn.Parameter]] = {}
        for name, param in zip(group["names"], group["params"], strict=True):
            found = (scale for pattern, scale in lr_scale.items() if matches(pattern, name, group["kind"]))
            by_scale.setdefault(math.prod(found), []).append(param)
        base = rest.get("lr", lr)
        for scale, params in sorted(by_scale.items(), key=lambda item: item[0] != 1):
            result.append({"params": params, **rest} | ({} if scale == 1 else {"lr": base * scale}))
    return result


def _check(made: list[dict[str, Any]], lr_scale: Mapping[str, float]) -> None:
    for pattern, scale in lr_scale.items():
        if not 0.0 <= scale < math.inf:
            raise SettingError(f"lr_scale.{pattern}", scale, "a factor on the rate, 0 or greater")
    if lr_scale and any("names" not in group or "kind" not in group for group in made):
        raise InputError("lr_scale needs the parameters' names: give the optimizer tessera.optim.groups(model)")
    named = [(name, group["kind"]) for group in made for name in group.get("names", ())]
    parts = {part for name, _ in named for part in name.split(".") if not part.isdecimal()}
    for pattern in lr_scale:
        if not any(matches(pattern, name, kind) for name, kind in named):
            raise SettingError.unknown("lr_scale: the model", pattern, parts | {kind for _, kind in named})
