"""SimPO: preferences without a reference (Meng et al. 2024, eq. 6).

loss = -log s(beta (mean log pi(chosen) - mean log pi(rejected)) - gamma): the reward is the mean log-probability of a
token, which is what generation follows, and the better answer has to lead by gamma.
"""

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from tessera.data.preferences import PairBatch
from tessera.errors import SettingError
from tessera.model.decoder import Decoder
from tessera.objectives.objective import Metrics, Source
from tessera.objectives.preference import Answers, Preference, check_positive, margins


def simpo_loss(
    chosen_B: Tensor, rejected_B: Tensor, *, beta: float, gamma: float, label_smoothing: float = 0.0
) -> Tensor:
    """The loss of each pair from the mean log-probability of a token."""
    h_B = beta * (chosen_B - rejected_B) - gamma
    return -(1 - label_smoothing) * F.logsigmoid(h_B) - label_smoothing * F.logsigmoid(-h_B)


class SimPO(Preference):
    """The paper's beta is 2 to 10, and its gamma 0.3 to 1.6 (table 8)."""

    needs_reference: ClassVar[bool] = False

    def __init__(
        self, *, model: Decoder, data: Source, beta: float = 2.0, gamma: float = 1.0, label_smoothing: float = 0.0
    ) -> None:
        super().__init__(model=model, data=data)
        check_positive(beta=beta)
        if not 0 <= gamma < float("inf"):
            raise SettingError("gamma", gamma, "a number, 0 or greater")
        if not 0 <= label_smoothing < 0.5:
            raise SettingError("label_smoothing", label_smoothing, "at least 0 and below 0.5")
        self.beta, self.gamma, self.label_smoothing = beta, gamma, label_smoothing

    def compare(self, batch: PairBatch, first: Answers, second: Answers) -> tuple[Tensor, Metrics]:
        settings = {"beta": self.beta, "gamma": self.gamma, "label_smoothing": self.label_smoothing}
        losses_B = simpo_loss(first.mean_logps, second.mean_logps, **settings)
        return losses_B, margins(self.beta * first.mean_logps, self.beta * second.mean_logps)
