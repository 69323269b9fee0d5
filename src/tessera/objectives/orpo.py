"""ORPO: fine-tuning and preferences in one stage, without a reference (Hong et al. 2024).

loss = -mean log pi(chosen) + beta L_OR                                         eq. 6
L_OR = -log s(log odds(chosen) - log odds(rejected)), odds(y) = P / (1 - P)        eq. 4 and 7

with P(y) the geometric mean of the token's probabilities: log P = mean log pi.
"""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tessera.data.preferences import PairBatch
from tessera.model.decoder import Decoder
from tessera.objectives.objective import Metrics, Source
from tessera.objectives.preference import Answers, Preference, check_positive, margins

NEAREST = -1e-6
"""A mean log-probability nearer to 0 than this counts as this: the odds of what is certain are infinite."""


def log_odds(logp_B: Tensor) -> Tensor:
    """log(p / (1 - p)) from log p, exact at both ends."""
    logp_B = logp_B.clamp(max=NEAREST)
    likely_B = logp_B > -math.log(2)
    # Each branch gets values that it can be differentiated at, as `where` sends a gradient through both.
    near_B = torch.log(-torch.expm1(torch.where(likely_B, logp_B, -0.5)))
    far_B = torch.log1p(-torch.exp(torch.where(likely_B, -1.0, logp_B)))
    return logp_B - torch.where(likely_B, near_B, far_B)


def odds_ratio_loss(chosen_B: Tensor, rejected_B: Tensor) -> Tensor:
    """L_OR of each pair from the mean log-probability of a token."""
    return -F.logsigmoid(log_odds(chosen_B) - log_odds(rejected_B))


def orpo_loss(chosen_B: Tensor, rejected_B: Tensor, *, beta: float) -> Tensor:
    return -chosen_B + beta * odds_ratio_loss(chosen_B, rejected_B)


class ORPO(Preference):
    """`beta` is the paper's lambda."""

    needs_reference: ClassVar[bool] = False

    def __init__(self, *, model: Decoder, data: Source, beta: float = 0.1) -> None:
        super().__init__(model=model, data=data)
        check_positive(beta=beta)
        self.beta = beta

    def compare(self, batch: PairBatch, first: Answers, second: Answers) -> tuple[Tensor, Metrics]:
        losses_B = orpo_loss(first.mean_logps, second.mean_logps, beta=self.beta)
        metrics = margins(self.beta * first.mean_logps, self.beta * second.mean_logps)
        return losses_B, {**metrics, "nll_chosen": -first.mean_logps.detach().mean()}
