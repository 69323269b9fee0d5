"""The parts of PPO: five steps worked by hand, sums written out, and the gradient where it is clipped.

trl has no PPO trainer any more, so the reference is the formula itself.
"""

import pytest
import torch

from tessera.errors import InputError
from tessera.objectives.ppo_losses import (
    advantages,
    masked_mean,
    policy_loss,
    token_rewards,
    total_loss,
    value_loss,
    whiten,
)


def test_five_steps_by_hand() -> None:
    """gamma 0.9, lambda 0.5, so that 0.45 of each advantage goes to the one before.

    d_4 = 1                - 0.5 = 0.5             A_4 = 0.5
    d_3 = 0 + 0.9 * 0.5    - 0.4 = 0.05            A_3 = 0.05  + 0.45 * 0.5     = 0.275
    d_2 = 0 + 0.9 * 0.4    - 0.3 = 0.06            A_2 = 0.06  + 0.45 * 0.275   = 0.18375
    d_1 = 1 + 0.9 * 0.3    - 0.2 = 1.07            A_1 = 1.07  + 0.45 * 0.18375 = 1.1526875
    d_0 = 0 + 0.9 * 0.2    - 0.1 = 0.08            A_0 = 0.08  + 0.45 * 1.1526875 = 0.598709375
    """
    rewards = torch.tensor([[0.0, 1.0, 0.0, 0.0, 1.0]], dtype=torch.float64)
    values = torch.tensor([[0.1, 0.2, 0.3, 0.4, 0.5]], dtype=torch.float64)
    found, returns = advantages(rewards, values, torch.ones(1, 5, dtype=torch.bool), gamma=0.9, lam=0.5)
    expected = torch.tensor([[0.598709375, 1.1526875, 0.18375, 0.275, 0.5]], dtype=torch.float64)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(returns, expected + values)


def test_advantages_are_the_sum_of_the_paper_in_each_answer() -> None:
    generator = torch.Generator().manual_seed(0)
    rewards, values = (torch.randn(4, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    lengths, starts, gamma, lam = [8, 3, 1, 5], [0, 2, 7, 1], 0.97, 0.9
    mask = torch.zeros(4, 8, dtype=torch.bool)
    for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        mask[row, start : start + length] = True
    found, _ = advantages(torch.where(mask, rewards, 0), values, mask, gamma=gamma, lam=lam)
    expected = torch.zeros(4, 8, dtype=torch.float64)
    for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        end = start + length
        for t in range(start, end):
            for k in range(t, end):
                after = values[row, k + 1] if k + 1 < end else 0.0
                delta = rewards[row, k] + gamma * after - values[row, k]
                expected[row, t] += (gamma * lam) ** (k - t) * delta
    torch.testing.assert_close(found, expected)


def test_the_score_comes_with_the_last_token() -> None:
    mask = torch.tensor([[True, True, False], [False, True, True]])
    kl = torch.tensor([[0.5, 1.0, 9.0], [9.0, 0.0, 2.0]])
    found = token_rewards(torch.tensor([3.0, -1.0]), kl, mask, coefficient=0.1)
    torch.testing.assert_close(found, torch.tensor([[-0.05, 2.9, 0.0], [0.0, 0.0, -1.2]]))
    with pytest.raises(InputError, match="no token"):
        token_rewards(torch.zeros(2), kl, mask & torch.tensor([[True], [False]]), coefficient=0.1)


def test_the_policy_gains_nothing_beyond_the_bounds() -> None:
    old = torch.zeros(1, 5, dtype=torch.float64)
    ratios = torch.tensor([[1.5, 1.5, 0.5, 0.5, 1.1]], dtype=torch.float64)
    logps = ratios.log().requires_grad_()
    gains = torch.tensor([[2.0, -2.0, 2.0, -2.0, 2.0]], dtype=torch.float64)
    found = policy_loss(logps, old, gains, torch.ones(1, 5, dtype=torch.bool), clip=0.2)
    # min(q A, clip(q) A): 1.2 * 2, 1.5 * -2, 0.5 * 2, 0.8 * -2, 1.1 * 2
    assert float(found.loss) == pytest.approx(-(2.4 - 3.0 + 1.0 - 1.6 + 2.2) / 5)
    assert float(found.clipped) == pytest.approx(2 / 5)
    (gradient,) = torch.autograd.grad(found.loss, logps)
    torch.testing.assert_close(gradient * 5, torch.tensor([[0.0, 3.0, -1.0, 0.0, -2.2]], dtype=torch.float64))


def test_values_are_clipped_around_the_old() -> None:
    values, old = torch.tensor([[1.0, 0.1, 5.0]]), torch.tensor([[0.0, 0.0, 0.0]])
    returns, mask = torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([[True, True, False]])
    # errors 0 and 0.81; from the clipped 0.2 and 0.1: 0.64 and 0.81
    assert float(value_loss(values, old, returns, mask, clip=0.2)) == pytest.approx((0.64 + 0.81) / 4)
    assert float(value_loss(values, old, returns, mask, clip=None)) == pytest.approx(0.81 / 4)


def test_whitening() -> None:
    values = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)) * 3 + 2
    mask = torch.arange(7) < torch.tensor([7, 2, 5, 1, 3])[:, None]
    found = whiten(values, mask)
    torch.testing.assert_close((found[mask].mean(), found[mask].std()), (torch.tensor(0.0), torch.tensor(1.0)))
    assert not found[~mask].any()
    kept = whiten(values, mask, shift_mean=False)
    torch.testing.assert_close((kept[mask].mean(), kept[mask].std()), (values[mask].mean(), torch.tensor(1.0)))


def test_entropy_is_a_bonus() -> None:
    mask = torch.tensor([[True, False]])
    total = total_loss(
        torch.tensor(1.0), torch.tensor(2.0), torch.tensor([[3.0, 9.0]]), mask, value_weight=0.5, entropy_weight=0.1
    )
    assert float(total) == pytest.approx(1.0 + 1.0 - 0.3)


def test_a_batch_without_an_answer_is_an_error() -> None:
    with pytest.raises(InputError, match="nothing to learn from"):
        masked_mean(torch.ones(2, 2), torch.zeros(2, 2, dtype=torch.bool))
