"""KTO: single answers that are good or bad, weighed as people weigh gains and losses (Ethayarajh et al. 2024, eq. 7).

With r = log pi(y|x) - log pi_ref(y|x), the loss of an answer is

    good:  w_good (1 - s(beta (r - z)))        bad:  w_bad (1 - s(beta (z - r)))

z = max(0, mean r of mismatched answers) estimates how far the policy is from the reference at all; it has no gradient.
Each answer's mismatched one is another prompt's answer. z is estimated in each micro-batch, and better in a larger one.
"""

import torch
from torch import Tensor

from tessera.data.preferences import JudgedBatch
from tessera.model.decoder import Decoder
from tessera.model.flow import Flow
from tessera.objectives.objective import Metrics, Source
from tessera.objectives.preference import Answers, BaseOnly, Preference, check_positive


def divergence(mismatched_B: Tensor) -> Tensor:
    """z from the log-ratios of mismatched answers."""
    return mismatched_B.detach().mean().clamp(min=0)


def kto_loss(
    ratios_B: Tensor, is_good_B: Tensor, z: Tensor, *, beta: float, good_weight: float = 1.0, bad_weight: float = 1.0
) -> Tensor:
    """The loss of each answer from its log-ratio."""
    signs_B = torch.where(is_good_B, 1.0, -1.0).to(ratios_B.dtype)
    weights_B = torch.where(is_good_B, good_weight, bad_weight).to(ratios_B.dtype)
    return weights_B * (1 - torch.sigmoid(beta * signs_B * (ratios_B - z)))


class KTO(Preference):
    """The weights should make (weight x number) of good and bad answers equal, give or take a third (eq. 8)."""

    reads = "judged"
    unit = "answers"
    watched = ("reward_good", "reward_bad")

    def __init__(
        self,
        *,
        model: Decoder,
        data: Source,
        beta: float = 0.1,
        good_weight: float = 1.0,
        bad_weight: float = 1.0,
        base_only: BaseOnly | None = None,
    ) -> None:
        super().__init__(model=model, data=data, base_only=base_only)
        check_positive(beta=beta, good_weight=good_weight, bad_weight=bad_weight)
        self.beta, self.good_weight, self.bad_weight = beta, good_weight, bad_weight

    def _answers(self, side: object, flows: list[Flow]) -> Answers:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not flows):  # the second side, the mismatched, has none
            return super()._answers(side, flows)  # type: ignore[arg-type]

    def compare(self, batch: JudgedBatch, first: Answers, second: Answers) -> tuple[Tensor, Metrics]:
        before_B, mismatched_B = self.reference(batch)
        ratios_B, z = first.logps_B - before_B, divergence(second.logps_B - mismatched_B)
        weights = {"beta": self.beta, "good_weight": self.good_weight, "bad_weight": self.bad_weight}
        losses_B = kto_loss(ratios_B, batch.is_good_B, z, **weights)
        rewards_B, good_B = self.beta * ratios_B.detach(), batch.is_good_B
        metrics: Metrics = {"kl": z, "reward": rewards_B.mean()}
        if bool(good_B.any()) and not bool(good_B.all()):
            metrics |= {"reward_good": rewards_B[good_B].mean(), "reward_bad": rewards_B[~good_B].mean()}
        return losses_B, metrics
