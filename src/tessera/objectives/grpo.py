"""GRPO: of several answers to one prompt, those that are better than the others are made likelier.

    rollout   G answers to each prompt, judged; A_i = (r_i - mean of the group) / (std of the group)
    loss      -min(q A, clip(q) A) + beta KL(pi || pi_ref) of each token     Shao et al. 2024, DeepSeekMath, eq. 3 and 4

The mathematics and its variants are in `grpo_losses`. There is no value model: the group is the baseline. A group that
is rewarded all alike has no advantages and teaches nothing; `redraw` looks for others in its place, which is the
dynamic sampling of DAPO (Yu et al. 2025, section 3.2).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tessera.data.tasks import TaskRows
from tessera.errors import SettingError
from tessera.model.decoder import Decoder
from tessera.objectives.grpo_losses import (
    AVERAGES,
    SCALES,
    Average,
    Scale,
    group_advantages,
    grpo_loss,
    has_signal,
    overlong_penalty,
)
from tessera.objectives.judges import Judge
from tessera.objectives.kl import KL_ESTIMATORS
from tessera.objectives.objective import Metrics
from tessera.objectives.ppo_losses import clipped_losses, masked_mean, movement
from tessera.objectives.preference import BaseOnly
from tessera.objectives.reinforcement import Reinforcement, check_amount
from tessera.objectives.rollout import RolloutBatch, Said, figures_of
from tessera.tokenizers import Tokenizer


@dataclass(frozen=True)
class Variant:
    """What a published variant sets."""

    scale: Scale
    average: Average
    clip_high: float | None = None
    """None: as the lower bound."""


VARIANTS = {
    "grpo": Variant(scale="group", average="answers"),
    "dr-grpo": Variant(scale="none", average="constant"),
    "dapo": Variant(scale="group", average="tokens", clip_high=0.28),
}


@dataclass(frozen=True)
class GroupBatch(RolloutBatch):
    """Answers with their advantages."""

    advantages_B: Tensor
    reference_BT: Tensor | None = None
    by_tokens: bool = False
    """Whether the loss is a mean over tokens, and not over answers."""

    @property
    def n_targets(self) -> int:
        return super().n_targets if self.by_tokens else len(self.advantages_B)


class GRPO(Reinforcement):
    """`variant` sets what is left at None: scale, average and clip_high.

    `redraw`: for groups without a signal so many more rounds of prompts are drawn at the most. `overlong`: from so many
    tokens before `max_tokens` on a longer answer is worth less, down to 1 less (Yu et al. 2025, eq. 13).
    """

    batch_type: ClassVar[type[RolloutBatch]] = GroupBatch

    def __init__(
        self,
        *,
        model: Decoder,
        data: TaskRows,
        tokenizer: Tokenizer,
        judge: Judge,
        base_only: BaseOnly | None = None,
        reference: Decoder | None = None,
        variant: str = "grpo",
        prompts: int = 8,
        group_size: int = 8,
        epochs: int = 1,
        minibatch: int | None = None,
        max_tokens: int = 128,
        temperature: float = 1.0,
        top_p: float | None = None,
        beta: float = 0.04,
        estimator: str = "k3",
        clip_low: float = 0.2,
        clip_high: float | None = None,
        scale: Scale | None = None,
        average: Average | None = None,
        redraw: int = 0,
        overlong: int = 0,
    ) -> None:
        shared: dict[str, Any] = {
            "tokenizer": tokenizer,
            "judge": judge,
            "base_only": base_only,
            "reference": reference,
        }
        shared |= {"prompts": prompts, "group_size": group_size, "epochs": epochs, "minibatch": minibatch}
        shared |= {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p}
        super().__init__(model=model, data=data, **shared)
        if variant not in VARIANTS:
            raise SettingError.unknown("variant", variant, VARIANTS)
        said = VARIANTS[variant]
        self.scale = said.scale if scale is None else scale
        self.average = said.average if average is None else average
        high = said.clip_high if clip_high is None else clip_high
        self.clip_low, self.clip_high = clip_low, clip_low if high is None else high
        self.beta, self.estimator, self.redraw, self.overlong = beta, estimator, redraw, overlong
        self._check()
        self.check_reference("beta", beta)
        of_tokens = ["old", "reference"] if self.has_reference else ["old"]
        self._keep_room(of_tokens, of_answers=["advantages"], figures=["signal"])

    def _check(self) -> None:
        for name, value, known in (
            ("scale", self.scale, SCALES),
            ("average", self.average, AVERAGES),
            ("estimator", self.estimator, KL_ESTIMATORS),
        ):
            if value not in known:
                raise SettingError.unknown(name, value, known)
        check_amount(beta=self.beta, clip_high=self.clip_high, redraw=self.redraw)
        if not 0 <= self.clip_low <= 1:
            raise SettingError("clip_low", self.clip_low, "a number from 0 to 1")
        if self.group_size < 2:
            raise SettingError("group_size", self.group_size, "2 or more: the others of a group are the baseline")
        if not 0 <= self.overlong <= self.sampling.max_tokens:
            expected = f"from 0 to max_tokens = {self.sampling.max_tokens}"
            raise SettingError("overlong", self.overlong, expected)

    def draw(self, number: int) -> tuple[list[Said], dict[str, float]]:
        """Groups with a signal first; the figures are those of all that were drawn."""
        said: list[Said] = []
        good: list[Said] = []
        for round in range(self.redraw + 1):
            missing = self.prompts - len(good) // self.group_size
            if not missing:
                break
            drawn = self.ask(self.data.take(missing), counter=number * (self.redraw + 1) + round)
            said += drawn
            good += [each for each, has in zip(drawn, self._signal(drawn), strict=True) if has]
        signal = self._signal(said)
        dull = [each for each, has in zip(said, signal, strict=True) if not has]
        return [*good, *dull][: self.n_answers], {**figures_of(said), "signal": sum(signal) / len(signal)}

    def _signal(self, said: Sequence[Said]) -> list[bool]:
        return has_signal(self._rewards(said), self.group_size).tolist()

    def _rewards(self, said: Sequence[Said]) -> Tensor:
        """What the judge said, and the penalty for length."""
        rewards_N = torch.tensor([each.reward for each in said])
        if not self.overlong:
            return rewards_N
        lengths_N = torch.tensor([len(each.ids) for each in said])
        return rewards_N + overlong_penalty(lengths_N, most=self.sampling.max_tokens, margin=self.overlong)

    def prepare(
        self, said: Sequence[Said], inputs_NT: Tensor, targets_NT: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        tensors = {
            "old": self.logprobs(inputs_NT, targets_NT),
            "advantages": group_advantages(self._rewards(said), self.group_size, scale=self.scale),
        }
        if self.has_reference:
            tensors["reference"] = self.reference_logprobs(inputs_NT, targets_NT)
        return tensors, self.divergence(tensors, targets_NT)

    def batch_settings(self) -> dict[str, Any]:
        return {"by_tokens": self.average == "tokens"}

    def forward(self, batch: GroupBatch) -> tuple[Tensor, Metrics]:
        logps_BT, entropies_BT, _ = self.scores(batch.inputs_BT, batch.targets_BT)
        mask_BT, bounds = batch.mask, {"clip_low": self.clip_low, "clip_high": self.clip_high}
        loss = grpo_loss(
            logps_BT,
            batch.old_BT,
            batch.advantages_B,
            mask_BT,
            reference_BT=batch.reference_BT,
            beta=self.beta,
            estimator=self.estimator,
            average=self.average,
            length=self.sampling.max_tokens,
            **bounds,
        )
        with torch.no_grad():
            _, clipped_BT = clipped_losses(logps_BT, batch.old_BT, batch.advantages_B[:, None], **bounds)
            clipped, kl_old = movement(logps_BT, batch.old_BT, clipped_BT, mask_BT)
            metrics: Metrics = {**self.rollout.told(), "clipped": clipped, "kl_old": kl_old}
            metrics["entropy"] = masked_mean(entropies_BT, mask_BT)
        return loss, metrics
