"""Direct preference optimisation: the better of two answers is made likelier than a reference made it.

With the reward r(x, y) = beta (log pi(y|x) - log pi_ref(y|x)) that a policy is the best for (Rafailov et al. 2023, eq.
5), and h = r(chosen) - r(rejected), the loss of a pair is

    sigmoid   -(1 - e) log s(h) - e log s(-h)              Rafailov eq. 7; e > 0: cDPO (Mitchell 2023, eq. 3)
    robust    (-(1 - e) log s(h) + e log s(-h)) / (1 - 2e)   Chowdhury et al. 2024, rDPO: unbiased for labels that are
                                                             flipped with probability e
    hinge     max(0, 1 - h)                                  Zhao et al. 2023, SLiC-HF, in Liu et al. 2023, RSO
    ipo       (h / beta - 1 / (2 beta))^2                    Azar et al. 2023, eq. 17, where beta is tau

With `average` the log-probabilities are means over the tokens, so that a long answer does not weigh more (Lambert et
al. 2024, Tulu 3, eq. 6); it is how the authors of IPO meant theirs, so there it is the default.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from tessera.data.preferences import PairBatch
from tessera.errors import SettingError
from tessera.model.decoder import Decoder
from tessera.objectives.objective import Metrics, Source
from tessera.objectives.preference import Answers, BaseOnly, Preference, check_positive, margins


def sigmoid_loss(chosen_B: Tensor, rejected_B: Tensor, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """The loss of each pair from its log-ratios log pi - log pi_ref."""
    h_B = beta * (chosen_B - rejected_B)
    return -(1 - label_smoothing) * F.logsigmoid(h_B) - label_smoothing * F.logsigmoid(-h_B)


def robust_loss(chosen_B: Tensor, rejected_B: Tensor, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Its mean over flipped labels is the sigmoid loss without flips."""
    h_B = beta * (chosen_B - rejected_B)
    flipped_B = -(1 - label_smoothing) * F.logsigmoid(h_B) + label_smoothing * F.logsigmoid(-h_B)
    return flipped_B / (1 - 2 * label_smoothing)


def hinge_loss(chosen_B: Tensor, rejected_B: Tensor, *, beta: float) -> Tensor:
    return torch.relu(1 - beta * (chosen_B - rejected_B))


def ipo_loss(chosen_B: Tensor, rejected_B: Tensor, *, beta: float) -> Tensor:
    return (chosen_B - rejected_B - 1 / (2 * beta)).square()


SMOOTHED: dict[str, Callable[..., Tensor]] = {"sigmoid": sigmoid_loss, "robust": robust_loss}
PLAIN: dict[str, Callable[..., Tensor]] = {"hinge": hinge_loss, "ipo": ipo_loss}
DPO_LOSSES = SMOOTHED | PLAIN


class DPO(Preference):
    """`chosen_weight` adds so much of the chosen answer's mean negative log-likelihood (Pang et al. 2024, eq. 1), which
    keeps it from becoming less likely while the rejected one falls faster."""

    def __init__(
        self,
        *,
        model: Decoder,
        data: Source,
        beta: float = 0.1,
        loss: str = "sigmoid",
        label_smoothing: float = 0.0,
        average: bool | None = None,
        chosen_weight: float = 0.0,
        base_only: BaseOnly | None = None,
    ) -> None:
        super().__init__(model=model, data=data, base_only=base_only)
        check_positive(beta=beta)
        if loss not in DPO_LOSSES:
            raise SettingError.unknown("loss", loss, DPO_LOSSES)
        if not 0 <= label_smoothing < 0.5 or (label_smoothing and loss not in SMOOTHED):
            expected = "at least 0 and below 0.5" if loss in SMOOTHED else f"0 for the loss {loss!r}"
            raise SettingError("label_smoothing", label_smoothing, expected)
        if not 0 <= chosen_weight < float("inf"):
            raise SettingError("chosen_weight", chosen_weight, "a number, 0 or greater")
        self.beta, self.chosen_weight = beta, chosen_weight
        self.average = loss == "ipo" if average is None else average
        smoothing = {"label_smoothing": label_smoothing} if loss in SMOOTHED else {}
        self._loss = partial(DPO_LOSSES[loss], beta=beta, **smoothing)

    def compare(self, batch: PairBatch, first: Answers, second: Answers) -> tuple[Tensor, Metrics]:
        before = self.reference(batch)
        ratios = [side.logps_B - ref_B for side, ref_B in zip((first, second), before, strict=True)]
        if self.average:
            ratios = [ratio_B / side.lengths_B for ratio_B, side in zip(ratios, (first, second), strict=True)]
        losses_B = self._loss(*ratios)
        metrics = margins(self.beta * ratios[0], self.beta * ratios[1])
        metrics["logp_chosen"] = first.logps_B.detach().mean()
        if self.chosen_weight:
            metrics["nll_chosen"] = -first.mean_logps.detach().mean()
            losses_B = losses_B - self.chosen_weight * first.mean_logps
        return losses_B, metrics
