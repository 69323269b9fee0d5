"""Optimizers, schedules and clipping: from gradients to the next weights."""

from typing import Any

from torch import nn

from tessera.errors import InputError
from tessera.optim.adam import Adam, AdamW
from tessera.optim.optimizer import Optimizer
from tessera.optim.sgd import Sgd, SgdDecay

OPTIMIZERS: dict[str, type[Optimizer]] = {"sgd": Sgd, "sgd-decay": SgdDecay, "adam": Adam, "adamw": AdamW}


def groups(module: nn.Module, weight_decay: float | None = None) -> list[dict[str, Any]]:
    """The module's learned parameters in two groups: matrices, which are decayed, and gains and biases, which are not.

    A tied matrix appears once. With `weight_decay` None the optimizer's own default is the matrices' decay.
    """
    learned = [param for param in module.parameters() if param.requires_grad]
    if not learned:
        raise InputError("there is nothing to learn: the model has no parameter that requires a gradient")
    matrices: dict[str, Any] = {"params": [param for param in learned if param.ndim >= 2]}
    if weight_decay is not None:
        matrices["weight_decay"] = weight_decay
    others = {"params": [param for param in learned if param.ndim < 2], "weight_decay": 0.0}
    return [group for group in (matrices, others) if group["params"]]
