"""A reward model: a number for an answer, such that the better of two has the greater one.

P(chosen is better) = s(r(chosen) - r(rejected))  (Bradley and Terry 1952; Ouyang et al. 2022, eq. 1), so the loss of a
pair is -log s(r_c - r_r - m). m is a margin, by how much the better one should lead (Touvron et al. 2023, Llama 2, eq.
2). `center` keeps the numbers around 0, which the loss leaves open (Eisenstein et al. 2023, eq. 2).

The number is read by one linear map at the last token of the answer: its end token, which has seen all of it.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tessera.data.batches import IGNORE, Batch
from tessera.data.preferences import PairBatch
from tessera.errors import InputError, SettingError
from tessera.model.decoder import Decoder
from tessera.model.flow import Flow
from tessera.objectives.objective import Metrics, Objective, Source
from tessera.objectives.preference import margins


def bradley_terry_loss(
    chosen_B: Tensor, rejected_B: Tensor, margins_B: Tensor | float = 0.0, *, center: float = 0.0
) -> Tensor:
    """The loss of each pair from its two rewards."""
    losses_B = -F.logsigmoid(chosen_B - rejected_B - margins_B)
    return losses_B + center * (chosen_B + rejected_B).square() if center else losses_B


class ValueHead(nn.Module):
    """One number from a hidden state, in fp32. It starts small, as Stiennon et al. 2020 (appendix B.1) start theirs."""

    def __init__(self, *, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_model))
        self.bias = nn.Parameter(torch.zeros(()))
        nn.init.normal_(self.weight, std=(d_model + 1) ** -0.5)

    def forward(self, h_BD: Tensor) -> Tensor:
        return h_BD.to(self.weight.dtype) @ self.weight + self.bias


def last_places(batch: Batch) -> Tensor:
    """(B,) where the last token of each answer stands among the inputs: that of the last target, one later."""
    learned_BT = batch.targets_BT != IGNORE
    T = learned_BT.shape[1]
    last_B = T - 1 - learned_BT.flip(1).int().argmax(dim=1)
    if not bool(learned_BT.any(dim=1).all()) or bool((last_B + 1 >= T).any()):
        raise InputError("the last token of an answer is not among the inputs: the rows are to be made with whole=True")
    return last_B + 1


class Reward(Objective):
    """The model with a head that reads a reward."""

    model: Decoder
    reads: ClassVar[str] = "pairs"
    unit: ClassVar[str] = "pairs"
    watched: ClassVar[tuple[str, ...]] = ("accuracy",)

    def __init__(self, *, model: Decoder, data: Source, center: float = 0.0) -> None:
        super().__init__(model=model, data=data)
        if not 0 <= center < float("inf"):
            raise SettingError("center", center, "a number, 0 or greater")
        self.center = center
        weight = model.embedding.weight
        self.head = ValueHead(d_model=weight.shape[1]).to(weight.device)

    def rewards(self, batch: Batch, flow: Flow | None = None) -> Tensor:
        """(B,) the reward of each row's answer."""
        h_BTD = self.model.hidden(batch.inputs_BT, flow=flow)
        rows_B = torch.arange(len(h_BTD), device=h_BTD.device)
        return self.head(h_BTD[rows_B, last_places(batch)])

    def forward(self, batch: PairBatch) -> tuple[Tensor, Metrics]:
        flows = [Flow.of(side.inputs_BT) for side in batch.sides]
        chosen_B, rejected_B = (self.rewards(side, flow) for side, flow in zip(batch.sides, flows, strict=True))
        loss = bradley_terry_loss(chosen_B, rejected_B, batch.margins_B, center=self.center).mean()
        metrics: Metrics = {"loss": loss.detach(), **margins(chosen_B, rejected_B)}
        extra = [each for flow in flows for each in flow.losses] if self.training else []
        return (loss + torch.stack(extra).sum() / 2 if extra else loss), metrics
