"""Optimizers, schedules and clipping: from gradients to the next weights.

The names below are imported when they are first used, so that `tessera.optim.schedule` loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tessera.optim.adam import AdamW
    from tessera.optim.optimizer import Optimizer
    from tessera.optim.optimizers import OPTIMIZERS
    from tessera.optim.parameter_groups import TABLES, groups

__all__ = ["OPTIMIZERS", "TABLES", "AdamW", "Optimizer", "groups"]

_HOME = {
    "AdamW": "adam",
    "OPTIMIZERS": "optimizers",
    "Optimizer": "optimizer",
    "TABLES": "parameter_groups",
    "groups": "parameter_groups",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tessera.optim' has no attribute {name!r}")
    return getattr(import_module(f"tessera.optim.{_HOME[name]}"), name)
