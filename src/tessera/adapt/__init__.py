"""Adapters: a model that learns a little beside its frozen weights, which may be stored in 4 or 8 bits.

They replace linear maps of a built model; `ADAPTERS` has the kinds, by the name of a recipe's `adapt`.
"""

from tessera.adapt.adapted import (
    AdaptedLinear,
    active_adapter,
    adapted,
    adapter_names,
    add_adapter,
    check_plain,
    disabled,
    is_merged,
    merge,
    merge_and_remove,
    remove,
    switch,
    unmerge,
)
from tessera.adapt.frozen import base_sha256, frozen_sha256, is_frozen
from tessera.adapt.lora import ADAPTERS, Lora
from tessera.adapt.quantized import base_bytes, build_quantized, dequantize_base, quantize_base

__all__ = [
    "ADAPTERS",
    "AdaptedLinear",
    "Lora",
    "active_adapter",
    "adapted",
    "adapter_names",
    "add_adapter",
    "base_bytes",
    "base_sha256",
    "build_quantized",
    "check_plain",
    "dequantize_base",
    "disabled",
    "frozen_sha256",
    "is_frozen",
    "is_merged",
    "merge",
    "merge_and_remove",
    "quantize_base",
    "remove",
    "switch",
    "unmerge",
]
