"""A model's parameters in groups that are learned alike: by what kind of tensor they are, with a rate of their own.

The groups are those of the torch engine, in the same order, as a checkpoint lists them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from tessera.errors import InputError, SettingError
from tessera.scratch.parameter import Parameter

TABLES = {"embedding", "positions", "head"}
"""The parts of a model whose matrices are tables, a row a token or a place, and no maps from one space to another."""

KINDS = ("matrix", "table", "vector")


@dataclass(frozen=True)
class Group:
    """Parameters of one kind, of which vectors (gains and biases) are not decayed, and the factor on their rate."""

    kind: str
    names: tuple[str, ...]
    scale: float

    @property
    def is_decayed(self) -> bool:
        return self.kind != "vector"


def groups(params: Mapping[str, Parameter], lr_scale: Mapping[str, float] | None = None) -> list[Group]:
    """All of `params`. `lr_scale` has a factor for each kind or pattern of names (`embedding`, `blocks.0.*`); where
    several match, all of them count."""
    if not params:
        raise InputError("there is nothing to learn: the model has no parameter")
    lr_scale = lr_scale or {}
    kinds = {name: kind_of(name, param) for name, param in params.items()}
    _check(kinds, lr_scale)
    found: dict[tuple[int, bool, float], list[str]] = {}
    for name, kind in kinds.items():
        scale = math.prod(factor for pattern, factor in lr_scale.items() if matches(pattern, name, kind))
        found.setdefault((KINDS.index(kind), scale != 1, float(scale)), []).append(name)
    order = sorted(found, key=lambda key: key[:2])  # stable: other scales in the order of their first parameters
    return [Group(KINDS[key[0]], tuple(found[key]), key[2]) for key in order]


def kind_of(name: str, param: Parameter) -> str:
    """Which of KINDS it is."""
    if len(param.shape) < 2:
        return "vector"
    return "table" if TABLES & set(name.split(".")) else "matrix"


def matches(pattern: str, name: str, kind: str) -> bool:
    """Whether `pattern` is the kind, or matches a run of whole parts of the dotted name."""
    return pattern == kind or fnmatchcase(f".{name}.", f"*.{pattern}.*")


def _check(kinds: Mapping[str, str], lr_scale: Mapping[str, float]) -> None:
    for pattern, scale in lr_scale.items():
        if not 0.0 <= scale < math.inf:
            raise SettingError(f"lr_scale.{pattern}", scale, "a factor on the rate, 0 or greater")
        if not any(matches(pattern, name, kind) for name, kind in kinds.items()):
            parts = {part for name in kinds for part in name.split(".") if not part.isdecimal()}
            raise SettingError.unknown("lr_scale: the model", pattern, parts | set(kinds.values()))
