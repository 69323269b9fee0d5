"""Activation checkpointing: keep what goes into a few blocks, and make the rest again when its gradients are due.

Memory for one more forward pass (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost"). The random draws
of the second pass are those of the first, so that the gradients are the same.

Or keep the dear as well, and make only the cheap again (Korthikanti et al. 2022, "Reducing Activation Recomputation in
Large Transformer Models", section 5): the results of the products and of attention stay, the norms, the rotations,
the activations and the residual sums do not. A block's memory shrinks by less, and the second pass costs little.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from tessera.model.flow import Flow

aten = torch.ops.aten
DEAR = frozenset(
    (
        aten.mm.default,
        aten.addmm.default,
        aten._scaled_mm.default,
        aten._scaled_dot_product_flash_attention_for_cpu.default,
        aten._scaled_dot_product_flash_attention.default,
        aten._scaled_dot_product_efficient_attention.default,
        aten._scaled_dot_product_cudnn_attention.default,
        torch.ops.higher_order.flex_attention,
    )
)
"""What is not made twice. Batched products are not among them: in attention by its formula they are the scores, the
very thing that is too large to keep."""


def recomputed(
    run: Callable[[Tensor, Flow], Tensor], x_BTD: Tensor, flow: Flow, *, keep_products: bool = False
) -> Tensor:
    """`run(x_BTD, flow)`, which keeps nothing of its inside for the backward pass, or only its products.

    What `run` leaves in the flow it leaves there once; the second pass has a flow of its own, and is told so.
    """
    passes = 0

    def segment(x_BTD: Tensor, first_value_BTGK: Tensor | None) -> tuple[Tensor, Flow]:
        nonlocal passes
        # What the layers share is made in each segment, as what one leaves for another would not be made again.
        own = replace(flow, losses=[], figures={}, _made={}, first_value_BTGK=first_value_BTGK, again=passes > 0)
        passes += 1
        return run(x_BTD, own), own

    contexts: dict[str, Any] = {}
    if keep_products:
        contexts["context_fn"] = partial(create_selective_checkpoint_contexts, keep_the_dear)
    y_BTD, own = checkpoint(segment, x_BTD, flow.first_value_BTGK, use_reentrant=False, **contexts)
    flow.first_value_BTGK, flow.layer = own.first_value_BTGK, own.layer
    flow.losses += own.losses
    flow.figures |= own.figures
    return y_BTD


def keep_the_dear(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """PyTorch's question about each operation of a first pass."""
    return CheckpointPolicy.MUST_SAVE if operation in DEAR else CheckpointPolicy.PREFER_RECOMPUTE
