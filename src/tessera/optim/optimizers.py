"""Every optimizer by its name in a recipe."""

from tessera.optim.adafactor import Adafactor
from tessera.optim.adam import Adam, AdamW
from tessera.optim.adam_8bit import AdamW8Bit
from tessera.optim.lion import Lion
from tessera.optim.muon import Muon
from tessera.optim.optimizer import Optimizer
from tessera.optim.schedule_free import ScheduleFreeAdamW
from tessera.optim.sgd import Sgd, SgdDecay

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
