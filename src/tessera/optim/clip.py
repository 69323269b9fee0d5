"""Clipping by the global norm: one scale for all gradients, so that their direction stays.

g = g * min(1, max_norm / (norm + 1e-6)), where norm is over all gradients as one vector (Pascanu et al. 2013, "On the
Difficulty of Training Recurrent Neural Networks", algorithm 1).
"""

import math
from collections.abc import Iterable
from functools import reduce

import torch
from torch import Tensor

from tessera.errors import SettingError


@torch.no_grad()
def clip_grad_norm(params: Iterable[Tensor] | Tensor, max_norm: float) -> Tensor:
    """Scale the gradients of `params` in place to a global norm of at most `max_norm`; returns the norm before.

    It is 0 without any gradient; `max_norm` = infinity measures and changes nothing. Half-precision gradients are
    summed up in float32. A norm that is not finite is returned as it is, with the gradients spoilt: look at it before
    the update.
    """
    if not max_norm > 0.0:
        raise SettingError("max_norm", max_norm, "a number greater than 0, or infinity")
    params = [params] if isinstance(params, Tensor) else list(params)
    grads = [param.grad for param in params if param.grad is not None]
    if not grads:
        return torch.zeros(())
    dtype = reduce(torch.promote_types, {grad.dtype for grad in grads}, torch.float32)
    norms = [norm.to(grads[0].device) for norm in torch._foreach_norm(grads, 2, dtype=dtype)]
    norm = torch.linalg.vector_norm(torch.stack(norms))
    if math.isfinite(max_norm):
        scale = (max_norm / (norm + 1e-6)).clamp_(max=1.0)
        for device in {grad.device for grad in grads}:
            torch._foreach_mul_([grad for grad in grads if grad.device == device], scale.to(device))
    return norm
