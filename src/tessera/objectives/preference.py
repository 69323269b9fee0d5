"""What the objectives that compare two answers share: their log-probabilities, and where those of a reference are from.

A reference is what the model was before. Its log-probabilities come with the batch, where they were computed once and
kept (`reference.py`), or from the model itself with its adapters switched off, which needs no second copy.
"""

from abc import abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from tessera.data.batches import Batch
from tessera.errors import InputError, SettingError
from tessera.model.decoder import Decoder
from tessera.model.flow import Flow
from tessera.objectives.logprobs import answer_logprobs
from tessera.objectives.objective import Metrics, Objective, Source

BaseOnly = Callable[[], AbstractContextManager[Any]]
"""Within it the model is what it was before its adapters: `with base_only(): ...`."""


class TwoSided(Protocol):
    """A batch with two answers a row."""

    @property
    def reference_B2(self) -> Tensor | None: ...  # noqa: N802

    @property
    def sides(self) -> tuple[Batch, Batch]: ...


@dataclass(frozen=True)
class Answers:
    """The log-probability of each answer of a batch, and its number of tokens."""

    logps_B: Tensor
    lengths_B: Tensor

    @property
    def mean_logps(self) -> Tensor:
        """The mean log-probability of a token."""
        return self.logps_B / self.lengths_B


class Preference(Objective):
    """A model and pairs of answers; a subclass says the loss of the pairs in `compare`."""

    model: Decoder
    reads: ClassVar[str] = "pairs"
    unit: ClassVar[str] = "pairs"
    watched: ClassVar[tuple[str, ...]] = ("accuracy",)
    needs_reference: ClassVar[bool] = True
    """Whether it compares with what the model was before."""

    def __init__(self, *, model: Decoder, data: Source, base_only: BaseOnly | None = None) -> None:
        super().__init__(model=model, data=data)
        self.base_only = base_only

    @abstractmethod
    def compare(self, batch: Any, first: Answers, second: Answers) -> tuple[Tensor, Metrics]:
        """(B,) the loss of each row, and what is worth a look."""

    def forward(self, batch: Any) -> tuple[Tensor, Metrics]:
        flows: list[Flow] = []
        first, second = (self._answers(side, flows) for side in batch.sides)
        losses_B, metrics = self.compare(batch, first, second)
        loss = losses_B.mean()
        metrics = {"loss": loss.detach(), **metrics}
        extra = [each for flow in flows for each in flow.losses] if self.training else []
        if extra:
            loss = loss + torch.stack(extra).sum() / len(flows)
            metrics["total_loss"] = loss.detach()
        return loss, metrics

    def _answers(self, side: Batch, flows: list[Flow]) -> Answers:
        flows.append(Flow.of(side.inputs_BT))
        return Answers(*answer_logprobs(self.model, side, flows[-1]))

    def reference(self, batch: TwoSided) -> tuple[Tensor, Tensor]:
        """(B,) the reference's log-probability of each answer of both sides."""
        if batch.reference_B2 is not None:
            first_B, second_B = batch.reference_B2.unbind(dim=1)
            return first_B, second_B
        if self.base_only is None:
            raise InputError(
                "the reference's log-probabilities are not with the data: compute them first (`add_reference`), or "
                "train adapters, whose base is the reference"
            )
        was_training = self.model.training
        with torch.no_grad(), self.base_only():
            self.model.eval()
            try:
                first_B, second_B = (answer_logprobs(self.model, side)[0] for side in batch.sides)
            finally:
                self.model.train(was_training)
        return first_B, second_B


def margins(first_B: Tensor, second_B: Tensor) -> Metrics:
    """What is watched of rewards: how often the first one is higher (equal ones: half), by how much, and both."""
    first_B, second_B = first_B.detach(), second_B.detach()
    return {
        "accuracy": ((first_B > second_B).float() + (first_B == second_B).float() / 2).mean(),
        "margin": (first_B - second_B).mean(),
        "reward_chosen": first_B.mean(),
        "reward_rejected": second_B.mean(),
    }


def check_positive(**settings: float) -> None:
    for name, value in settings.items():
        if not 0 < value < float("inf"):
            raise SettingError(name, value, "a number above 0")
