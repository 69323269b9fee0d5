"""adapter_config.json as peft writes it: what is read of it, what is refused, and how ours is written.

What would change the numbers in a way that is not done here is refused by name, as is an adapter whose training began
by changing the base (PiSSA and its kin): without that base its numbers are wrong.
"""

import re
import reprlib
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from tessera.adapt.peft_names import Matrices
from tessera.errors import FormatError

_REFUSED = {
    "alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication", "lora_bias", "megatron_config",
    "modules_to_save", "monteclora_config", "target_parameters", "trainable_token_indices", "use_bdlora", "use_qalora",
}  # fmt: skip
_SILENT = {
    "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config", "exclude_modules",
    "fan_in_fan_out", "inference_mode", "layers_pattern", "layers_to_transform", "loftq_config", "lora_ga_config",
    "megatron_core", "peft_version", "qalora_group_size", "revision", "runtime_config", "target_modules", "task_type",
    "velora_config",
}  # fmt: skip
"""What only training knows, or what the tensors say themselves."""
_READ = {
    "peft_type", "r", "lora_alpha", "lora_dropout", "bias", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern",
    "init_lora_weights",
}  # fmt: skip
_INITS = (None, True, False, "gaussian", "eva", "orthogonal")
"""Beginnings that leave the base as it is."""
_PATTERN = re.compile(r"[\w.\\*+^$|-]{1,300}")
"""Without brackets no pattern can take long to match."""


@dataclass(frozen=True)
class PeftConfig:
    """What an adapter_config.json says of its adapters."""

    rank: int
    alpha: float
    dropout: float
    rslora: bool
    dora: bool
    ranks: Mapping[str, int] = field(default_factory=dict)
    """By patterns of modules, where they differ."""
    alphas: Mapping[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def rank_of(self, module: str) -> int:
        return _found(self.ranks, module, self.rank)

    def alpha_of(self, module: str) -> float:
        return _found(self.alphas, module, self.alpha)


def _found(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """What the first pattern says that matches the end of the module's name, as in peft."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), default)


def read_config(path: Path, content: Mapping[str, Any]) -> PeftConfig:
    """The content of the file at `path`; `FormatError` for what is not done here."""
    _check_kind(path, content)
    rank, alpha, dropout = content.get("r"), content.get("lora_alpha", 8), content.get("lora_dropout", 0.0)
    if not _is_positive(rank, whole=True):
        raise _refused(path, "r", rank, "a whole number above 0")
    if not _is_positive(alpha, whole=False):
        raise _refused(path, "lora_alpha", alpha, "a number above 0")
    if type(dropout) not in (int, float) or not 0 <= dropout < 1:
        raise _refused(path, "lora_dropout", dropout, "a share from 0 to less than 1")
    unknown = sorted(key for key, value in content.items() if key not in _SILENT | _READ | _REFUSED and value)
    return PeftConfig(
        rank=int(rank),
        alpha=float(alpha),
        dropout=float(dropout),
        rslora=_flag(path, content, "use_rslora"),
        dora=_flag(path, content, "use_dora"),
        ranks=_patterns(path, content, "rank_pattern", whole=True),
        alphas=_patterns(path, content, "alpha_pattern", whole=False),
        notes=[f"{path.name}: {key!r} is not known and left out" for key in unknown],
    )


def _refused(path: Path, key: str, value: Any, expected: str) -> FormatError:
    return FormatError(path, f"{key} = {reprlib.repr(value)}: expected {expected}")


def _check_kind(path: Path, content: Mapping[str, Any]) -> None:
    if content.get("peft_type") != "LORA":
        raise _refused(path, "peft_type", content.get("peft_type"), "LORA, the one kind of adapters that is read")
    for key in sorted(_REFUSED):
        if content.get(key) not in (None, False, [], {}):
            raise _refused(path, key, content[key], "no such thing: Tessera does not do it")
    if content.get("bias", "none") != "none":
        raise _refused(path, "bias", content["bias"], "'none': biases that were trained beside are not read")
    if content.get("init_lora_weights") not in _INITS:
        raise _refused(
            path, "init_lora_weights", content["init_lora_weights"], "a beginning that leaves the base alone"
        )


def _flag(path: Path, content: Mapping[str, Any], key: str) -> bool:
    value = content.get(key, False)
    if type(value) is not bool:
        raise _refused(path, key, value, "true or false")
    return value


def _is_positive(value: Any, *, whole: bool) -> TypeGuard[float]:
    return type(value) in ((int,) if whole else (int, float)) and 0 < value < 2**24


def _patterns(path: Path, content: Mapping[str, Any], key: str, *, whole: bool) -> dict[str, Any]:
    found = content.get(key) or {}
    if not isinstance(found, dict) or not all(_is_positive(value, whole=whole) for value in found.values()):
        raise FormatError(path, f"{key} = {reprlib.repr(found)}: expected patterns of modules with numbers above 0")
    for pattern in found:
        if not _PATTERN.fullmatch(pattern) or not _is_expression(pattern):
            raise FormatError(path, f"{key}: {reprlib.repr(pattern)} is no pattern that is read")
    return found


def _is_expression(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


def write_config(
    adapters: Mapping[str, Matrices],
    *,
    modules: Collection[str],
    dropout: float,
    rslora: bool,
    turned: bool,
    base: str | None,
) -> dict[str, Any]:
    """The content for adapters by their modules; `modules` are all maps of the model that could have one."""
    kinds = {module: (each.rank, each.alpha(rslora=rslora)) for module, each in adapters.items()}
    (rank, alpha), _ = Counter(kinds.values()).most_common(1)[0]
    return {
        "alpha_pattern": {module: kind[1] for module, kind in kinds.items() if kind[1] != alpha},
        "auto_mapping": None,
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": turned,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": None,
        "layers_to_transform": None,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": dropout,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": {module: kind[0] for module, kind in kinds.items() if kind[0] != rank},
        "target_modules": target_modules(adapters, modules),
        "task_type": "CAUSAL_LM",
        "use_dora": any(each.magnitude_F is not None for each in adapters.values()),
        "use_rslora": rslora,
    }


def target_modules(adapted: Collection[str], modules: Collection[str]) -> list[str]:
    """The adapted modules as peft finds them: by their last name, where all of that name are adapted, else in full."""
    named: dict[str, set[str]] = {}
    for module in modules:
        named.setdefault(module.rpartition(".")[2], set()).add(module)
    short = {name for name, found in named.items() if found <= set(adapted)}
    return sorted({name if (name := module.rpartition(".")[2]) in short else module for module in adapted})
