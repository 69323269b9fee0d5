"""PPO from end to end: what a rollout comes to by hand, and a tiny model that learns what is rewarded."""

import math
from itertools import pairwise

import pytest
import torch
from tests.objectives.small_tasks import logprobs_by_hand, objective_of, train

from tessera.errors import InputError, SettingError
from tessera.objectives.ppo import PPO


def test_rewards_and_advantages_of_a_rollout_by_hand() -> None:
    """A token is rewarded -c (log pi - log pi_ref), the last one with the score; values are read before each token."""
    settings = {"gamma": 0.9, "lam": 0.8, "kl_coefficient": 0.3, "whiten_advantages": False, "missing_end": 2.0}
    objective = objective_of("ppo", minibatch=12, **settings)
    train(objective, lr=1e-2, steps=4)
    with torch.no_grad():
        batch = next(objective.batches())
        assert isinstance(objective, PPO)
        old = logprobs_by_hand(objective.model, batch.inputs_BT, batch.targets_BT)
        reference = logprobs_by_hand(objective._reference[0], batch.inputs_BT, batch.targets_BT)
        head = objective.value_head
        values = objective.model.hidden(batch.inputs_BT) @ head.weight + head.bias
    assert (old - reference).abs().max() > 0.01
    for row in range(12):
        places = batch.mask[row].nonzero()[:, 0].tolist()
        said = batch.targets_BT[row, places]
        score = float(said[0] == batch.inputs_BT[row, 0]) - (0.0 if int(said[-1]) == 11 else 2.0)
        later, value_after = 0.0, 0.0
        for place in reversed(places):
            reward = -0.3 * float(old[row, place] - reference[row, place]) + (score if place == places[-1] else 0.0)
            value = float(values[row, place])
            later = reward + 0.9 * value_after - value + 0.9 * 0.8 * later
            value_after = value
            assert float(batch.values_BT[row, place]) == pytest.approx(value, abs=1e-5)
            assert float(batch.advantages_BT[row, place]) == pytest.approx(later, abs=1e-4)
            assert float(batch.returns_BT[row, place]) == pytest.approx(later + value, abs=1e-4)
    assert not batch.advantages_BT[~batch.mask].any()


def test_the_loss_by_hand() -> None:
    objective = objective_of("ppo", minibatch=12, value_weight=0.5, entropy_weight=0.1, epochs=3)
    train(objective, lr=2e-2, steps=2)
    batch = next(objective.batches())
    mask = batch.mask
    logps = logprobs_by_hand(objective.model, batch.inputs_BT, batch.targets_BT)[mask]
    gains, old = batch.advantages_BT[mask].double(), batch.old_BT[mask].double()
    ratios = [math.exp(float(each)) for each in logps - old]
    policy = -sum(min(q * a, min(max(q, 0.8), 1.2) * a) for q, a in zip(ratios, gains.tolist(), strict=True))
    h = objective.model.hidden(batch.inputs_BT)[mask]
    values = (h @ objective.value_head.weight + objective.value_head.bias).tolist()
    errors = []
    for value, before, gained in zip(
        values, batch.values_BT[mask].tolist(), batch.returns_BT[mask].tolist(), strict=True
    ):
        near = min(max(value, before - 0.2), before + 0.2)
        errors.append(max((value - gained) ** 2, (near - gained) ** 2) / 2)
    all_logps = torch.log_softmax(objective.model(batch.inputs_BT), dim=-1)[mask]
    entropy = float(-(all_logps.exp() * all_logps).sum(dim=-1).mean())
    n = len(ratios)
    expected = policy / n + 0.5 * sum(errors) / n - 0.1 * entropy
    loss, metrics = objective(batch)
    assert float(loss) == pytest.approx(expected, abs=1e-5)
    assert float(metrics["value_loss"]) == pytest.approx(sum(errors) / n, abs=1e-5)
    assert float(metrics["entropy"]) == pytest.approx(entropy, abs=1e-5)
    assert float(metrics["clipped"]) > 0


def test_a_tiny_model_learns_to_repeat() -> None:
    settings = {"prompts": 48, "minibatch": 24, "max_tokens": 1, "kl_coefficient": 0.001, "value_weight": 0.5}
    seen = train(objective_of("ppo", shape={"seed": 3}, **settings), lr=5e-3, steps=120)
    assert seen[0].metrics["reward"] < 0.3
    assert sum(each.metrics["reward"] for each in seen[-12:]) / 12 > 0.8
    assert 0 < seen[-1].metrics["kl"] < 10


def test_values_come_to_explain_the_returns() -> None:
    """What is rewarded is seen from the prompt alone, and the policy is frozen, so that it stays so."""

    def odd(answers) -> list[float]:
        return [float(int(each.task.content["answer"]) % 2) for each in answers]

    objective = objective_of("ppo", judge=odd, prompts=24, minibatch=24, epochs=4, value_weight=1.0, kl_coefficient=0.0)
    for parameter in objective.model.parameters():
        parameter.requires_grad_(False)
    seen = train(objective, lr=5e-2, steps=60)
    assert seen[0].metrics["explained_variance"] < 0.2
    assert seen[-1].metrics["explained_variance"] > 0.5
    assert seen[-1].metrics["value_loss"] < seen[0].metrics["value_loss"]


def test_the_coefficient_is_held_near_its_target() -> None:
    """It changes by at most 0.2 n / horizon a rollout, where the policy is far from the target: here by 10 %."""
    objective = objective_of("ppo", kl_coefficient=0.1, kl_target=0.01, kl_horizon=24)
    told = [each.metrics for each in train(objective, lr=2e-2, steps=24)[::4]]
    assert told[0]["kl_answer"] == pytest.approx(0, abs=1e-5)  # the policy is the reference
    expected = 0.1
    for each in told:
        assert each["kl_coefficient"] == pytest.approx(expected)
        expected *= 1 + 0.5 * min(max(each["kl_answer"] / 0.01 - 1, -0.2), 0.2)
    assert objective.get_extra_state()["kl"]["coefficient"] == pytest.approx(expected)
    assert {0.9, 1.1} == {round(b["kl_coefficient"] / a["kl_coefficient"], 5) for a, b in pairwise(told)}


def test_whitened() -> None:
    objective = objective_of("ppo", minibatch=12, whiten_rewards=True)
    batch = next(objective.batches())
    whitened = batch.advantages_BT[batch.mask]
    torch.testing.assert_close((whitened.mean(), whitened.std()), (torch.tensor(0.0), torch.tensor(1.0)))


def test_settings_that_make_no_sense() -> None:
    for name, wrong in {"gamma": 1.1, "lam": -0.1, "clip": 0.0, "value_clip": 0.0, "value_weight": -1.0}.items():
        with pytest.raises(SettingError, match=name):
            objective_of("ppo", **{name: wrong})
    with pytest.raises(SettingError, match="could not be adapted"):
        objective_of("ppo", kl_coefficient=0.0, kl_target=1.0)
    with pytest.raises(InputError, match=r"kl_coefficient is 0\.05, and there is no reference"):
        objective_of("ppo", reference=None)
    assert not objective_of("ppo", reference=None, kl_coefficient=0.0).has_reference
