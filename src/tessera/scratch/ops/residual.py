"""The residual sum: what a sublayer found is added to what was there (He et al. 2016).

y = x + f, so dy/dx = dy/df = 1: the gradient goes to both as it is. That is why deep models learn: however small the
gradient through f has become, all of dy reaches the layer below.
"""

import numpy as np


def residual_forward(x: np.ndarray, f: np.ndarray) -> np.ndarray:
    """x + f; nothing need be saved."""
    return x + f


def residual_backward(dy: np.ndarray, df_through: np.ndarray) -> np.ndarray:
    """dx where f was made from x too: dy by the straight way and `df_through`, dy taken back through f."""
    return dy + df_through
