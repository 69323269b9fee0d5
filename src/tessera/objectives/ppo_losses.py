"""The mathematics of PPO on text: each token is an action, the answer's reward comes with its last.

    rewards    r_t = -c KL_t, and + score at the last token              Ziegler et al. 2019, eq. 2
    advantages A_t = sum over l of (gamma lambda)^l d_(t+l),
               d_t = r_t + gamma V_(t+1) - V_t                           Schulman et al. 2015, GAE, eq. 12 and 16
    policy     -min(q_t A_t, clip(q_t, 1 - e, 1 + e) A_t), q_t = pi / pi_old      Schulman et al. 2017, PPO, eq. 7
    value      max((V - R)^2, (clip(V, V_old - e, V_old + e) - R)^2) / 2, R = A + V_old

The last is not in the paper but in its code. All are (B, T): B answers, T tokens; `mask_BT` is true at the tokens of an
answer, which are one run in each row, and what is outside of it counts for nothing.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tessera.errors import InputError


def masked_mean(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """The mean over what the mask has; an `InputError` if it has nothing."""
    n = mask_BT.sum()
    if not bool(n):
        raise InputError("no token of the batch belongs to an answer: there is nothing to learn from")
    return torch.where(mask_BT, values_BT, 0).sum() / n


def whiten(values_BT: Tensor, mask_BT: Tensor, *, shift_mean: bool = True) -> Tensor:
    """The values with a standard deviation of 1 over the mask (the unbiased one), and a mean of 0 or their own."""
    mean = masked_mean(values_BT, mask_BT)
    n = mask_BT.sum()
    variance = masked_mean((values_BT - mean).square(), mask_BT) * n / (n - 1).clamp(min=1)
    whitened_BT = (values_BT - mean) * torch.rsqrt(variance + 1e-8)
    return torch.where(mask_BT, whitened_BT if shift_mean else whitened_BT + mean, 0)


def token_rewards(scores_B: Tensor, kl_BT: Tensor, mask_BT: Tensor, *, coefficient: float) -> Tensor:
    """(B, T): the penalty at each token of an answer, and its score at the last."""
    places_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    last_B = torch.where(mask_BT, places_T, -1).amax(dim=1)
    if bool((last_B < 0).any()):
        raise InputError("an answer of the batch has no token: it cannot be rewarded")
    rewards_BT = torch.where(mask_BT, -coefficient * kl_BT, 0)
    return rewards_BT + scores_B[:, None] * (places_T == last_B[:, None])


def advantages(
    rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, *, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates and the returns A + V, without gradients; 0 outside of the mask.

    From the end: A_t = d_t + gamma lambda A_(t+1). After the last token of an answer there is no value.
    """
    rewards_BT, values_BT = rewards_BT.detach(), torch.where(mask_BT, values_BT.detach(), 0)
    advantages_BT = torch.zeros_like(values_BT)
    later_B = next_value_B = torch.zeros_like(values_BT[:, 0])
    for t in range(values_BT.shape[1] - 1, -1, -1):
        delta_B = rewards_BT[:, t] + gamma * next_value_B - values_BT[:, t]
        later_B = torch.where(mask_BT[:, t], delta_B + gamma * lam * later_B, 0)
        next_value_B = values_BT[:, t]
        advantages_BT[:, t] = later_B
    return advantages_BT, advantages_BT + values_BT


@dataclass(frozen=True)
class PolicyLoss:
    """The loss, and what is watched: the share of tokens that were clipped, and how far the policy has gone (k3)."""

    loss: Tensor
    clipped: Tensor
    kl_old: Tensor


def clipped_losses(
    logps_BT: Tensor, old_BT: Tensor, advantages_BT: Tensor, *, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor]:
    """Of each token the loss, and whether the clipping took its gradient."""
    ratios_BT = torch.exp(logps_BT - old_BT)
    bounded_BT = ratios_BT.clamp(1 - clip_low, 1 + clip_high)
    losses_BT = -torch.minimum(ratios_BT * advantages_BT, bounded_BT * advantages_BT)
    clipped_BT = (bounded_BT * advantages_BT) < (ratios_BT * advantages_BT)
    return losses_BT, clipped_BT


def policy_loss(
    logps_BT: Tensor, old_BT: Tensor, advantages_BT: Tensor, mask_BT: Tensor, *, clip: float = 0.2
) -> PolicyLoss:
    """The clipped objective, as a loss: its mean over the tokens of all answers."""
    losses_BT, clipped_BT = clipped_losses(logps_BT, old_BT, advantages_BT, clip_low=clip, clip_high=clip)
    return PolicyLoss(masked_mean(losses_BT, mask_BT), *movement(logps_BT, old_BT, clipped_BT, mask_BT))


@torch.no_grad()
def movement(logps_BT: Tensor, old_BT: Tensor, clipped_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
    """The share of the tokens that are clipped, and KL(old || now), by k3 of tokens that the old policy said."""
    log_ratios_BT = logps_BT - old_BT
    kl = masked_mean(log_ratios_BT.expm1() - log_ratios_BT, mask_BT)
    return masked_mean(clipped_BT.float(), mask_BT), kl


def explained_variance(values_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """1 - var(R - V) / var(R) over the mask: 1 for perfect values, 0 for a constant; 0 where all returns are alike."""
    returns_N, errors_N = returns_BT[mask_BT], (returns_BT - values_BT)[mask_BT]
    variance = returns_N.var(correction=0)
    return torch.where(variance > 0, 1 - errors_N.var(correction=0) / variance.clamp(min=1e-12), 0.0)


def value_loss(
    values_BT: Tensor, old_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor, *, clip: float | None = 0.2
) -> Tensor:
    """Half the squared error of the values; with `clip` they gain nothing by going further than that from the old."""
    losses_BT = (values_BT - returns_BT).square()
    if clip is not None:
        near_BT = old_BT + (values_BT - old_BT).clamp(-clip, clip)
        losses_BT = torch.maximum(losses_BT, (near_BT - returns_BT).square())
    return masked_mean(losses_BT, mask_BT) / 2


def total_loss(
    policy: Tensor, value: Tensor, entropies_BT: Tensor, mask_BT: Tensor, *, value_weight: float, entropy_weight: float
) -> Tensor:
    """Policy and value, less a bonus for entropy, so that the policy keeps trying (Schulman et al. 2017, eq. 9)."""
    total = policy + value_weight * value
    return total - entropy_weight * masked_mean(entropies_BT, mask_BT) if entropy_weight else total
