"""PPO: each token of an answer is an action, and a value head says how good the answer looked before it.

    rollout   an answer to each prompt, judged; reward of a token -c KL, of the last one + score; advantages by GAE
    loss      clipped policy loss + value_weight * clipped value loss - entropy_weight * entropy

The mathematics is in `ppo_losses` (Schulman et al. 2017; Ziegler et al. 2019; Stiennon et al. 2020 for text). The value
head reads the policy's own hidden states, so that there is no second model. The coefficient of the penalty is held near
a target of the divergence, if one is said (`kl.AdaptiveKL`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tessera.data.batch import IGNORE
from tessera.data.tasks import TaskRows
from tessera.errors import SettingError
from tessera.model.decoder import Decoder
from tessera.objectives.judges import Judge
from tessera.objectives.kl import AdaptiveKL
from tessera.objectives.objective import Metrics
from tessera.objectives.ppo_losses import (
    advantages,
    explained_variance,
    masked_mean,
    policy_loss,
    token_rewards,
    total_loss,
    value_loss,
    whiten,
)
from tessera.objectives.preference import BaseOnly, check_positive
from tessera.objectives.reinforcement import Reinforcement, check_amount, check_share
from tessera.objectives.reward import ValueHead
from tessera.objectives.rollout import RolloutBatch, Said
from tessera.tokenizers import Tokenizer


@dataclass(frozen=True)
class ValueBatch(RolloutBatch):
    """Answers with the advantage of each token, its value when it was drawn, and what then came of it."""

    advantages_BT: Tensor
    values_BT: Tensor
    returns_BT: Tensor


class PPO(Reinforcement):
    """`kl_coefficient` is that of the penalty at the start; with `kl_target`, the divergence of an answer in nats, it
    is adapted after each rollout. `missing_end` is taken off the score of an answer that did not end. Whitening gives
    the rewards, or the advantages, of a rollout a standard deviation of 1."""

    batch_type: ClassVar[type[RolloutBatch]] = ValueBatch

    def __init__(
        self,
        *,
        model: Decoder,
        data: TaskRows,
        tokenizer: Tokenizer,
        judge: Judge,
        base_only: BaseOnly | None = None,
        reference: Decoder | None = None,
        prompts: int = 64,
        epochs: int = 4,
        minibatch: int | None = None,
        max_tokens: int = 128,
        temperature: float = 1.0,
        top_p: float | None = None,
        gamma: float = 1.0,
        lam: float = 0.95,
        clip: float = 0.2,
        value_clip: float | None = 0.2,
        value_weight: float = 0.1,
        entropy_weight: float = 0.0,
        kl_coefficient: float = 0.05,
        kl_target: float | None = None,
        kl_horizon: float = 10_000,
        whiten_rewards: bool = False,
        whiten_advantages: bool = True,
        missing_end: float = 0.0,
    ) -> None:
        shared: dict[str, Any] = {
            "tokenizer": tokenizer,
            "judge": judge,
            "base_only": base_only,
            "reference": reference,
        }
        shared |= {"prompts": prompts, "group_size": 1, "epochs": epochs, "minibatch": minibatch}
        shared |= {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p}
        super().__init__(model=model, data=data, **shared)
        check_share(gamma=gamma, lam=lam)
        check_positive(clip=clip, **({} if value_clip is None else {"value_clip": value_clip}))
        check_amount(value_weight=value_weight, entropy_weight=entropy_weight, missing_end=missing_end)
        self.kl = AdaptiveKL(coefficient=kl_coefficient, target=kl_target, horizon=kl_horizon)
        if kl_target is not None and not kl_coefficient:
            raise SettingError("kl_coefficient", kl_coefficient, "above 0, as 0 could not be adapted to the target")
        self.check_reference("kl_coefficient", kl_coefficient)
        self.gamma, self.lam, self.clip, self.value_clip = gamma, lam, clip, value_clip
        self.value_weight, self.entropy_weight, self.missing_end = value_weight, entropy_weight, missing_end
        self.whiten_rewards, self.whiten_advantages = whiten_rewards, whiten_advantages
        weight = model.embedding.weight
        self.value_head = ValueHead(d_model=weight.shape[1]).to(weight.device)
        of_tokens = ["old", "advantages", "values", "returns"]
        self._keep_room(of_tokens, figures=["explained_variance", "kl_coefficient", "kl_answer"])

    def values(self, h_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """(B, T): what is expected of an answer before each of its tokens, from what the model saw until then."""
        return torch.where(mask_BT, self.value_head(h_BTD), 0)

    def prepare(
        self, said: Sequence[Said], inputs_NT: Tensor, targets_NT: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        mask_NT = targets_NT != IGNORE
        both = self.in_parts(self._old_and_values, inputs_NT, targets_NT)
        tensors = dict(zip(("old", "values"), both.unbind(dim=-1), strict=True))
        kl_NT = torch.zeros_like(tensors["old"])
        if self.has_reference:
            tensors["reference"] = self.reference_logprobs(inputs_NT, targets_NT)
            kl_NT = tensors["old"] - tensors["reference"]
        scores_N = torch.tensor([each.reward - (0 if each.ended else self.missing_end) for each in said])
        coefficient = self.kl.coefficient
        rewards_NT = token_rewards(scores_N.to(kl_NT.device), kl_NT, mask_NT, coefficient=coefficient)
        if self.whiten_rewards:
            rewards_NT = whiten(rewards_NT, mask_NT, shift_mean=False)
        gained_NT, returns_NT = advantages(rewards_NT, tensors["values"], mask_NT, gamma=self.gamma, lam=self.lam)
        figures = {
            "explained_variance": float(explained_variance(tensors["values"], returns_NT, mask_NT)),
            "kl_coefficient": coefficient,
            "kl_answer": float(kl_NT.sum(dim=1).mean()),
            **self.divergence(tensors, targets_NT),
        }
        self.kl.update(figures["kl_answer"], self.n_answers)
        tensors["advantages"] = whiten(gained_NT, mask_NT) if self.whiten_advantages else gained_NT
        tensors.pop("reference", None)  # is in the rewards from here on
        return {**tensors, "returns": returns_NT}, figures

    def _old_and_values(self, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
        logps_BT, _, h_BTD = self.scores(inputs_BT, targets_BT)
        return torch.stack((logps_BT, self.values(h_BTD, targets_BT != IGNORE)), dim=-1)

    def forward(self, batch: ValueBatch) -> tuple[Tensor, Metrics]:
        logps_BT, entropies_BT, h_BTD = self.scores(batch.inputs_BT, batch.targets_BT)
        mask_BT = batch.mask
        policy = policy_loss(logps_BT, batch.old_BT, batch.advantages_BT, mask_BT, clip=self.clip)
        values_BT = self.values(h_BTD, mask_BT)
        value = value_loss(values_BT, batch.values_BT, batch.returns_BT, mask_BT, clip=self.value_clip)
        weights = {"value_weight": self.value_weight, "entropy_weight": self.entropy_weight}
        loss = total_loss(policy.loss, value, entropies_BT, mask_BT, **weights)
        with torch.no_grad():
            metrics: Metrics = {**self.rollout.told(), "clipped": policy.clipped, "kl_old": policy.kl_old}
            metrics |= {"policy_loss": policy.loss.detach(), "value_loss": value.detach()}
            metrics["entropy"] = masked_mean(entropies_BT, mask_BT)
        return loss, metrics

    def get_extra_state(self) -> dict[str, Any]:
        return {**super().get_extra_state(), "kl": self.kl.state()}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        super().set_extra_state(state)
        self.kl.restore(state["kl"])
