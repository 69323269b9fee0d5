"""Products under autocast, for operations that choose their types themselves."""

import torch
from torch import Tensor


def autocasts(x: Tensor) -> bool:
    """Whether autocast is on for tensors that are where `x` is; it knows no tensors without numbers."""
    device = x.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def as_multiplied(x: Tensor) -> Tensor:
    """`x` in the type that a product under autocast takes; itself where autocast is off.

    Autocast casts what it meets at every product: what several of them read is cast once by this.
    """
    if not autocasts(x) or x.dtype == torch.float64:
        return x
    return x.to(torch.get_autocast_dtype(x.device.type))


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, without a second matrix where the types allow it."""
    if total.dtype == a.dtype == b.dtype and not torch.is_autocast_enabled(total.device.type):
        total.addmm_(a, b)
    else:
        total += a @ b
