"""Clipping by the global norm: one scale for all gradients, so that their direction stays.

g = g * min(1, max_norm / (norm + 1e-6)), where norm is over all gradients as one vector (Pascanu et al. 2013, "On the
Difficulty of Training Recurrent Neural Networks", algorithm 1).
"""

import math
from collections.abc import Iterable

import numpy as np

from tessera.errors import SettingError


def clip_grad_norm(grads: Iterable[np.ndarray], max_norm: float = math.inf) -> float:
    """Scale `grads` in place to a global norm of at most `max_norm`; returns the norm before.

    Infinity measures and changes nothing. A norm that is not finite is returned as it is: look at it before the update.
    """
    if not max_norm > 0.0:
        raise SettingError("max_norm", max_norm, "a number greater than 0, or infinity")
    grads = list(grads)
    norm = math.sqrt(sum(float(np.vdot(grad, grad)) for grad in grads))
    if norm > max_norm - 1e-6 and math.isfinite(norm):
        for grad in grads:
            grad *= max_norm / (norm + 1e-6)
    return norm
