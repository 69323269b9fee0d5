"""GRPO from end to end: its loss is trl's, and a tiny model learns what is rewarded."""

import math

import pytest
import torch
from tests.objectives.small_tasks import largest, logprobs_by_hand, model_of, objective_of, repeat_me, rows_of, train

from tessera.errors import SettingError
from tessera.objectives.grpo import GRPO


@pytest.mark.parametrize(("variant", "kind"), [("grpo", "grpo"), ("dr-grpo", "dr_grpo"), ("dapo", "dapo")])
def test_the_loss_of_a_rollout_is_that_of_trl(variant: str, kind: str) -> None:
    """After two updates: ratios are no longer 1. Values and gradients of the weights."""
    from tests.objectives import trl_losses

    objective = objective_of("grpo", variant=variant, beta=0.07, minibatch=None, epochs=3, judge=largest)
    train(objective, lr=2e-2, steps=2)
    batch = next(objective.batches())
    logps = logprobs_by_hand(objective.model, batch.inputs_BT, batch.targets_BT)
    theirs = trl_losses.grpo(
        logps,
        batch.old_BT.double(),
        batch.advantages_B.double(),
        batch.mask,
        kind=kind,
        beta=0.07,
        reference_BT=batch.reference_BT.double(),
        clip=(0.2, 0.28 if variant == "dapo" else 0.2),
        length=3,
    )
    ours, metrics = objective(batch)
    assert float(metrics["clipped"]) > 0
    torch.testing.assert_close(ours.double(), theirs, atol=1e-5, rtol=0)
    weights = list(objective.model.parameters())
    mine, expected = (torch.autograd.grad(loss, weights) for loss in (ours, theirs))
    for one, other in zip(mine, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_advantages_of_a_rollout_by_hand() -> None:
    objective = objective_of("grpo", scale="none", minibatch=None)
    next(objective.batches())
    inputs, targets = (objective.rollout.get_buffer(name) for name in ("inputs", "targets"))
    for pair in range(0, 12, 2):
        said = [targets[i][targets[i] >= 0][0] == inputs[i][0] for i in (pair, pair + 1)]
        expected = [(float(said[0]) - float(said[1])) / 2, (float(said[1]) - float(said[0])) / 2]
        assert inputs[pair][0] == inputs[pair + 1][0]
        assert objective.rollout.get_buffer("advantages")[pair : pair + 2].tolist() == expected


def test_a_tiny_model_learns_to_repeat() -> None:
    objective = objective_of("grpo", prompts=6, group_size=8, minibatch=None, epochs=1, max_tokens=1, beta=0.001)
    seen = train(objective, lr=1e-2, steps=60)
    assert sum(each.metrics["reward"] for each in seen[:3]) / 3 < 0.3
    assert sum(each.metrics["reward"] for each in seen[-3:]) / 3 > 0.85
    assert objective.held_out(rows_of(["1", "33", "555"]))["reward"] == 1.0
    assert 0 < seen[-1].metrics["kl"] < 10
    assert seen[-1].metrics["entropy"] < seen[0].metrics["entropy"]


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_without_any_signal_the_loss_is_finite(beta: float) -> None:
    alike, other = (lambda answers: [0.5] * len(answers)), model_of(seed=5)
    objective = objective_of("grpo", judge=alike, beta=beta, reference=other)
    seen = train(objective, lr=1e-2, steps=5)
    assert all(math.isfinite(each.loss) and each.metrics["signal"] == 0 for each in seen)
    assert all(each.loss == 0 for each in seen) == (beta == 0)
    assert seen[0].metrics["reward"] == 0.5


def test_groups_without_a_signal_are_drawn_again() -> None:
    asked: list[int] = []

    def noted(answers):
        asked.append(len(answers))
        return repeat_me(answers)

    objective = objective_of("grpo", judge=noted, prompts=4, group_size=2, minibatch=None, redraw=30)
    next(objective.batches())
    assert 1 < len(asked) < 31
    kept = objective.rollout.get_buffer("advantages")
    assert bool((kept != 0).all())
    told = objective.rollout.told()
    assert told["signal"] == pytest.approx(8 / sum(asked))
    assert objective.get_extra_state()["data"] != objective_of("grpo").get_extra_state()["data"]
    never = objective_of("grpo", judge=lambda answers: [0.0] * len(answers), redraw=2)
    next(never.batches())  # the limit is reached: the dull ones are taken


def test_a_long_answer_is_worth_less() -> None:
    objective = objective_of("grpo", judge=lambda answers: [1.0] * len(answers), overlong=2, scale="none")
    next(objective.batches())
    lengths = (objective.rollout.get_buffer("targets") >= 0).sum(dim=1)
    worth = 1 - (lengths - 1).clamp(min=0) / 2
    expected = (worth.view(-1, 2) - worth.view(-1, 2).mean(dim=1, keepdim=True)).flatten()
    torch.testing.assert_close(objective.rollout.get_buffer("advantages"), expected)
    assert bool((expected != 0).any())


def test_a_variant_sets_what_is_not_said() -> None:
    def settings(**given) -> tuple:
        objective = objective_of("grpo", **given)
        assert isinstance(objective, GRPO)
        return objective.scale, objective.average, objective.clip_low, objective.clip_high

    assert settings() == ("group", "answers", 0.2, 0.2)
    assert settings(variant="dr-grpo", clip_low=0.1) == ("none", "constant", 0.1, 0.1)
    assert settings(variant="dapo") == ("group", "tokens", 0.2, 0.28)
    assert settings(variant="dapo", scale="batch", clip_high=0.3) == ("batch", "tokens", 0.2, 0.3)
    for name, value in {"variant": "gppo", "scale": "grup", "average": "word", "estimator": "k4"}.items():
        with pytest.raises(SettingError, match=f"{name} has no"):
            objective_of("grpo", **{name: value})
    for name, wrong in {"beta": -1.0, "group_size": 1, "overlong": 4, "clip_low": 1.5, "redraw": -1}.items():
        with pytest.raises(SettingError, match=name):
            objective_of("grpo", **({"minibatch": None, name: wrong}))
