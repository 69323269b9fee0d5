"""A base that is not learned: it is known by its sha256, and checkpoints do not hold it.

While a model is frozen, its `state_dict` has the adapters, what the pieces learn without a gradient, and 32 bytes: the
sha256 of the base. Loading one checks that the base is the same, and leaves it alone. So every run with adapters has
small checkpoints, and none is put on a base that it was not made for.
"""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tessera.errors import InputError
from tessera.store.tensors import tensor_bytes

BASE = "adapted_base"
_ADAPTERS, _INNER = ".adapters.", ".base."


class FrozenBase(nn.Module):
    """Sits in a frozen model as `adapted_base` and carries the sha256 of its base."""

    sha256: Tensor

    def __init__(self, digest: bytes) -> None:
        super().__init__()
        self.register_buffer("sha256", torch.frombuffer(bytearray(digest), dtype=torch.uint8))
        self.handles: list[Any] = []


def base_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The name in the `state_dict` and the tensor of each part of the base: parameters, and codes of quantized maps."""
    for name, param in model.named_parameters():
        if _ADAPTERS not in name:
            yield name, param
    for name, buffer in model.named_buffers():
        if ".stored." in name:
            yield name, buffer


def base_sha256(model: nn.Module) -> bytes:
    """The digest of the base's numbers, their names, types and shapes, in whatever adapters they are wrapped."""
    digest = hashlib.sha256()
    for name, tensor in sorted((name.replace(_INNER, "."), tensor) for name, tensor in base_tensors(model)):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor_bytes(tensor))
    return digest.digest()


def is_frozen(model: nn.Module) -> bool:
    return BASE in model._modules


def frozen_sha256(model: nn.Module) -> str:
    """The sha256 of a frozen model's base, as text; it was made when the base was frozen."""
    base = model.get_submodule(BASE)
    assert isinstance(base, FrozenBase)
    return bytes(base.sha256.tolist()).hex()


def freeze(model: nn.Module) -> None:
    """From now on only adapters learn, and `state_dict` does without the base."""
    for _, tensor in base_tensors(model):
        tensor.requires_grad_(False)
    if is_frozen(model):
        return
    base = FrozenBase(base_sha256(model)).to(next(model.parameters()).device)
    base.handles = [
        model.register_state_dict_post_hook(_leave_out),
        model.register_load_state_dict_pre_hook(_bring_back),
    ]
    model.add_module(BASE, base.train(model.training))


def thaw(model: nn.Module) -> None:
    """All parameters learn, and `state_dict` has all of them again."""
    base = model.get_submodule(BASE)
    assert isinstance(base, FrozenBase)
    for handle in base.handles:
        handle.remove()
    delattr(model, BASE)
    model.requires_grad_(True)


def _leave_out(model: nn.Module, state: dict[str, Any], prefix: str, _: Mapping[str, Any]) -> None:
    for name, _tensor in base_tensors(model):
        state.pop(prefix + name, None)


def _bring_back(model: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """The base is its own answer to what the state does not have."""
    found = state.get(f"{prefix}{BASE}.sha256")
    if found is not None and bytes(found.tolist()).hex() != frozen_sha256(model):
        raise InputError(
            "the adapters were made for another base than this model's: "
            f"sha256 {bytes(found.tolist()).hex()[:12]}..., not {frozen_sha256(model)[:12]}..."
        )
    for name, tensor in base_tensors(model):
        state.setdefault(prefix + name, tensor.detach())
