"""Products under autocast, for operations that choose their types themselves."""

import torch
from torch import Tensor


def as_multiplied(x: Tensor) -> Tensor:
    """`x` in the type that a product under autocast takes; itself where autocast is off.

    Autocast casts what it meets at every product: what several of them read is cast once by this.
    """
    device = x.device.type
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return x
    return x if x.dtype == torch.float64 else x.to(torch.get_autocast_dtype(device))


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, without a second matrix where the types allow it."""
    if total.dtype == a.dtype == b.dtype and not torch.is_autocast_enabled(total.device.type):
        total.addmm_(a, b)
    else:
        total += a @ b
