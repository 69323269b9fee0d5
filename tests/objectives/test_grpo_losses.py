"""GRPO and its variants against trl's loss, values and gradients; its advantages against numbers by hand."""

import pytest
import torch
from tests.objectives import trl_losses
from torch import Tensor

from tessera.errors import InputError, SettingError
from tessera.objectives.grpo_losses import group_advantages, grpo_loss, has_signal, overlong_penalty


def answers() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Log-probabilities now, before and of a reference, advantages, and which tokens are an answer's."""
    generator = torch.Generator().manual_seed(0)
    logps = (torch.rand(6, 5, generator=generator) - 2.5).requires_grad_()
    old, reference = (logps.detach() + 0.3 * torch.randn(6, 5, generator=generator) for _ in range(2))
    mask = torch.arange(5) < torch.tensor([5, 3, 1, 4, 2, 5])[:, None]
    return logps, old, reference, torch.randn(6, generator=generator), mask


@pytest.mark.parametrize("beta", [0.0, 0.07])
@pytest.mark.parametrize("clip", [(0.2, 0.2), (0.2, 0.28)])
@pytest.mark.parametrize(("kind", "average"), [("grpo", "answers"), ("dapo", "tokens"), ("dr_grpo", "constant")])
def test_the_loss_is_that_of_trl(kind: str, average: str, clip: tuple[float, float], beta: float) -> None:
    logps, old, reference, advantages, mask = answers()
    ours = grpo_loss(
        logps,
        old,
        advantages,
        mask,
        reference_BT=reference,
        beta=beta,
        clip_low=clip[0],
        clip_high=clip[1],
        average=average,  # type: ignore[arg-type]
        length=9,
    )
    theirs = trl_losses.grpo(
        logps, old, advantages, mask, kind=kind, beta=beta, reference_BT=reference, clip=clip, length=9
    )
    torch.testing.assert_close(ours, theirs)
    mine, expected = (torch.autograd.grad(loss, logps)[0] for loss in (ours, theirs))
    torch.testing.assert_close(mine, expected)
    assert (mine[mask] == 0).any() == (beta == 0)  # some of it is clipped
    assert not mine[~mask].any()


def test_advantages_by_hand() -> None:
    rewards = torch.tensor([1.0, 0.0, 0.0, 3.0, 2.0, 2.0, 2.0, 2.0])
    plain = torch.tensor([0.0, -1.0, -1.0, 2.0, 0.0, 0.0, 0.0, 0.0])
    torch.testing.assert_close(group_advantages(rewards, 4, scale="none"), plain)
    # The squares of the first group's differences sum to 6; there are 3 degrees of freedom.
    torch.testing.assert_close(group_advantages(rewards, 4), plain / (2**0.5 + 1e-4))
    torch.testing.assert_close(group_advantages(rewards, 4, scale="batch"), plain / (rewards.std() + 1e-4))
    assert has_signal(rewards, 4).tolist() == [True] * 4 + [False] * 4


def test_too_long_an_answer_is_worth_less() -> None:
    lengths = torch.tensor([10, 80, 90, 100, 120])
    assert overlong_penalty(lengths, most=100, margin=20).tolist() == [0.0, 0.0, -0.5, -1.0, -1.0]


def test_what_makes_no_sense() -> None:
    logps, old, _, advantages, mask = answers()
    with pytest.raises(SettingError, match="group_size = 4"):
        group_advantages(torch.zeros(6), 4)
    with pytest.raises(SettingError, match="scale has no 'grup'"):
        group_advantages(torch.zeros(6), 3, scale="grup")  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="length"):
        grpo_loss(logps, old, advantages, mask, average="constant")
    with pytest.raises(SettingError, match="average has no 'token'"):
        grpo_loss(logps, old, advantages, mask, average="token")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no log-probabilities of a reference"):
        grpo_loss(logps, old, advantages, mask, beta=0.1)
    with pytest.raises(InputError, match="nothing to learn from"):
        grpo_loss(logps, old, advantages, mask & False, average="tokens")
