"""The mathematics of GRPO: the other answers to the same prompt are the baseline, so that no value model is needed.

    advantages   A_i = (r_i - mean of the group) / (std of the group)             Shao et al. 2024, DeepSeekMath, 4.1.2
    loss         mean over answers of mean over tokens of
                 -min(q A, clip(q, 1 - e, 1 + e) A) + beta k3(pi, pi_ref)         eq. 3 and 4

Variants are settings of these two functions:

    Dr. GRPO     no std in A; tokens summed and divided by a constant length, so that neither the difficulty of a
                 prompt nor the length of an answer biases the gradient           Liu et al. 2025, section 3.2
    DAPO         a higher upper bound of the clipping, mean over the tokens of    Yu et al. 2025, eq. 8: section 3.1
                 all answers, so that each token weighs the same                  (clip-higher) and 3.3 (token level)

B answers (groups one after the other), T tokens, G answers a group.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from tessera.errors import InputError, SettingError
from tessera.objectives.kl import kl_estimate
from tessera.objectives.ppo_losses import clipped_losses, masked_mean

Scale = Literal["group", "batch", "none"]
Average = Literal["answers", "tokens", "constant"]
SCALES: tuple[Scale, ...] = get_args(Scale)
AVERAGES: tuple[Average, ...] = get_args(Average)
SMALLEST = 1e-4
"""Is added to the standard deviation: answers of a group that are rewarded alike have none."""


def group_advantages(rewards_B: Tensor, group_size: int, *, scale: Scale = "group") -> Tensor:
    """(B,) how much better each answer is than its group.

    `scale`: by the standard deviation of the group, of the whole batch, or not at all (Dr. GRPO).
    """
    if scale not in SCALES:
        raise SettingError.unknown("scale", scale, SCALES)
    if group_size < 2 or len(rewards_B) % group_size:
        raise SettingError("group_size", group_size, f"2 or more, and a divisor of the {len(rewards_B)} answers")
    rewards_PG = rewards_B.reshape(-1, group_size)  # P prompts
    advantages_PG = rewards_PG - rewards_PG.mean(dim=1, keepdim=True)
    if scale == "group":
        advantages_PG = advantages_PG / (rewards_PG.std(dim=1, keepdim=True) + SMALLEST)
    elif scale == "batch":
        advantages_PG = advantages_PG / (rewards_B.std() + SMALLEST)
    return advantages_PG.reshape(-1)


def has_signal(rewards_B: Tensor, group_size: int) -> Tensor:
    """(B,) whether the answer's group is not rewarded all alike; the others teach nothing (DAPO's dynamic sampling)."""
    rewards_PG = rewards_B.reshape(-1, group_size)
    return (rewards_PG != rewards_PG[:, :1]).any(dim=1).repeat_interleave(group_size)


def grpo_loss(
    logps_BT: Tensor,
    old_BT: Tensor,
    advantages_B: Tensor,
    mask_BT: Tensor,
    *,
    reference_BT: Tensor | None = None,
    beta: float = 0.0,
    estimator: str = "k3",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    average: Average = "answers",
    length: int | None = None,
) -> Tensor:
    """The loss of a batch. `average`: over answers of the mean over tokens (GRPO), over all tokens (DAPO), or over
    answers of the sum over tokens divided by `length` (Dr. GRPO)."""
    losses_BT, _ = clipped_losses(logps_BT, old_BT, advantages_B[:, None], clip_low=clip_low, clip_high=clip_high)
    if beta:
        if reference_BT is None:
            raise InputError("beta is not 0, and there are no log-probabilities of a reference")
        losses_BT = losses_BT + beta * kl_estimate(logps_BT, reference_BT, estimator)
    return averaged(losses_BT, mask_BT, average=average, length=length)


def averaged(losses_BT: Tensor, mask_BT: Tensor, *, average: Average, length: int | None = None) -> Tensor:
    """The losses of the tokens as one number."""
    if average == "tokens":
        return masked_mean(losses_BT, mask_BT)
    sums_B, lengths_B = torch.where(mask_BT, losses_BT, 0).sum(dim=1), mask_BT.sum(dim=1)
    if average == "answers":
        return (sums_B / lengths_B.clamp(min=1)).mean()
    if average != "constant":
        raise SettingError.unknown("average", average, AVERAGES)
    if length is None or length < 1:
        raise SettingError("length", length, "the most tokens that an answer may have, for average = 'constant'")
    return sums_B.mean() / length


def overlong_penalty(lengths_B: Tensor, *, most: int, margin: int) -> Tensor:
    """0 up to `most` - `margin` tokens, then down to -1 at `most` (Yu et al. 2025, DAPO, eq. 13)."""
    if not 0 < margin <= most:
        raise SettingError("margin", margin, f"from 1 to {most}")
    return ((most - margin - lengths_B) / margin).clamp(-1, 0)
