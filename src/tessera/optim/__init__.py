"""Optimizers, schedules and clipping: from gradients to the next weights."""

from tessera.optim.adafactor import Adafactor
from tessera.optim.adam import Adam, AdamW
from tessera.optim.adam_8bit import AdamW8Bit
from tessera.optim.lion import Lion
from tessera.optim.muon import Muon
from tessera.optim.optimizer import Optimizer
from tessera.optim.parameter_groups import TABLES, groups
from tessera.optim.schedule_free import ScheduleFreeAdamW
from tessera.optim.sgd import Sgd, SgdDecay

__all__ = ["OPTIMIZERS", "TABLES", "Optimizer", "groups"]

OPTIMIZERS: dict[str, type[Optimizer]] = {
    "sgd": Sgd,
    "sgd-decay": SgdDecay,
    "adam": Adam,
    "adamw": AdamW,
    "adamw-8bit": AdamW8Bit,
    "adamw-schedule-free": ScheduleFreeAdamW,
    "adafactor": Adafactor,
    "lion": Lion,
    "muon": Muon,
}
