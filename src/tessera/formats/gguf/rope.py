"""Rotary positions in GGUF's metadata: the base, and how angles are scaled beyond the context of the training.

llama.cpp knows linear and YaRN scaling by keys. Llama 3's scaling is not said by keys but by its result, the tensor
`rope_freqs.weight`: what the speed of each pair is divided by. The settings are found from it again.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tessera.errors import FormatError
from tessera.formats.gguf.keys import Keys
from tessera.formats.gguf.values import Value

if TYPE_CHECKING:
    import torch

FREQUENCIES = "rope_freqs.weight"


def usual_gain(factor: float, mscale: float = 1.0) -> float:
    """How much longer YaRN makes queries and keys: 0.1 m ln(factor) + 1 (Peng et al. 2023, eq. 22)."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1.0 else 1.0


def read_scaling(keys: Keys, context: int) -> dict[str, Any] | None:
    """The `scaling` of a rope spec, but for Llama 3's."""
    kind = keys.get("rope.scaling.type")
    factor = keys.optional("rope.scaling.factor") or keys.optional("rope.scale_linear") or 1.0
    original = keys.size("rope.scaling.original_context_length", context)
    if kind in (None, "none", "linear"):
        return None if factor == 1.0 or kind == "none" else {"name": "linear", "factor": factor}
    if kind != "yarn":
        raise keys.refuse("rope.scaling.type", "none, linear or yarn")
    yarn: dict[str, Any] = {"name": "yarn", "factor": factor, "original_context": original}
    for key, usual in (("beta_fast", 32.0), ("beta_slow", 1.0)):
        if keys.number(f"rope.scaling.yarn_{key}", usual) != usual:
            raise keys.refuse(f"rope.scaling.yarn_{key}", f"{usual}, as llama.cpp has it")
    share = keys.optional("rope.scaling.attn_factor") or 1.0
    if share != 1.0:
        yarn["attention_factor"] = share * usual_gain(factor)
    return yarn


def write_scaling(scaling: Mapping[str, Any] | None) -> dict[str, Value]:
    """The entries behind the architecture's name; what they cannot say is missing when they are read back."""
    if not scaling:
        return {}
    kind, factor = scaling["name"], float(scaling["factor"])
    if kind == "llama3":
        return {"rope.scaling.original_context_length": int(scaling["original_context"])}
    if kind not in ("linear", "yarn"):
        return {}
    entries: dict[str, Value] = {"rope.scaling.type": kind, "rope.scaling.factor": factor}
    if kind == "yarn":
        entries["rope.scaling.original_context_length"] = int(scaling["original_context"])
        gain = scaling.get("attention_factor") or usual_gain(factor, scaling.get("mscale", 1.0)) / usual_gain(
            factor, scaling.get("mscale_all_dim", 0.0)
        )
        entries["rope.scaling.attn_factor"] = gain / usual_gain(factor)
    return entries


def llama3_divisors(scaling: Mapping[str, Any], base: float, d_head: int) -> "torch.Tensor":
    """What each pair's speed is divided by, (d_head / 2,)."""
    from tessera.model.rope_scaling import Llama3Scaling, rope_speeds  # with it comes PyTorch

    speeds_C = rope_speeds(d_head, base)
    made = Llama3Scaling(**{name: value for name, value in scaling.items() if name != "name"})
    return speeds_C / made(speeds_C)[0]


def find_llama3(keys: Keys, base: float) -> dict[str, Any]:
    """The settings with which `llama3_divisors` gives what is in the file, to 1e-4."""
    assert keys.divisors is not None
    divisors, original = keys.divisors, keys.get("rope.scaling.original_context_length")
    contexts = [8192, *(2**power for power in range(5, 21))]
    greatest = float(divisors.max())
    if divisors.ndim == 1 and 1.0 <= greatest < 1e6 and np.isfinite(divisors).all():
        for context in [original, *contexts] if type(original) is int and original > 0 else contexts:
            scaling = {"factor": greatest, "low_factor": 1.0, "high_factor": 4.0, "original_context": context}
            if np.allclose(llama3_divisors(scaling, base, 2 * len(divisors)).numpy(), divisors, rtol=1e-4, atol=0.0):
                return {"name": "llama3", **scaling}
    raise FormatError(keys.path, f"{FREQUENCIES} scales the angles in a way that is not Llama 3's")
