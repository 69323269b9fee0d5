"""Activation checkpointing: keep what goes into a few blocks, and make the rest again when its gradients are due.

Memory for one more forward pass (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost"). The random draws
of the second pass are those of the first, so that the gradients are the same.
"""

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tessera.model.flow import Flow


def recomputed(run: Callable[[Tensor, Flow], Tensor], x_BTD: Tensor, flow: Flow) -> Tensor:
    """`run(x_BTD, flow)`, which keeps nothing of its inside for the backward pass.

    What `run` leaves in the flow it leaves there once; the second pass has a flow of its own, and is told so.
    """
    passes = 0

    def segment(x_BTD: Tensor, first_value_BTGK: Tensor | None) -> tuple[Tensor, Flow]:
        nonlocal passes
        # What the layers share is made in each segment, as what one leaves for another would not be made again.
        own = replace(flow, losses=[], figures={}, _made={}, first_value_BTGK=first_value_BTGK, again=passes > 0)
        passes += 1
        return run(x_BTD, own), own

    y_BTD, own = checkpoint(segment, x_BTD, flow.first_value_BTGK, use_reentrant=False)
    flow.first_value_BTGK, flow.layer = own.first_value_BTGK, own.layer
    flow.losses += own.losses
    flow.figures |= own.figures
    return y_BTD
