"""By how much the pairs of a head are turned at each position: the cosines and sines that the kernels read."""

import numpy as np

from tessera.model.plain import PlainDecoder
from tessera.scratch.position import RotaryPosition


def cosines_and_sines(model: PlainDecoder, context: int) -> tuple[np.ndarray, np.ndarray]:
    """Two tables (context, pairs) of float32."""
    turned, d_head = model.position, model.attention.d_head
    if turned.scaling is None:
        plain = RotaryPosition(context=context, d_head=d_head, base=turned.base, share=turned.share)
        return plain.cos_SC, plain.sin_SC
    # Scalings are of the context of the model, whatever part of it is used.
    from tessera.model.position import RotaryPosition as ScaledPosition  # with it comes PyTorch

    scaled = ScaledPosition(
        context=model.settings.context,
        d_head=d_head,
        base=turned.base,
        share=turned.share,
        scaling=turned.scaling,
    )
    return scaled.cos[:context].numpy().copy(), scaled.sin[:context].numpy().copy()
