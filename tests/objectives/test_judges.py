"""Judges: a rule by the text, a reward model by the ids, as it was trained to read them."""

import pytest
import torch
from tests.objectives.small_tasks import model_of, tasks_of

from tessera.data.checkers import Exact
from tessera.data.examples import Example, rows_of
from tessera.errors import InputError
from tessera.objectives.judges import Answer, CheckerJudge, ModelJudge
from tessera.objectives.reward import Reward


def test_a_checker_reads_the_text() -> None:
    one, two = tasks_of(["1", "2"])
    assert CheckerJudge(Exact())([Answer(one, [1], [1], " 1 "), Answer(two, [2], [1], "1")]) == [1.0, 0.0]


def test_a_reward_model_reads_as_it_was_trained_to() -> None:
    """At the last token of each; more answers than are read at once, of many lengths, padded."""
    objective = Reward(model=model_of().eval(), data=None)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randint(0, 10, (int(n),), generator=generator).tolist() for n in torch.arange(70) % 7 + 1]
    prompts, answers = [row[: len(row) // 2] or [3] for row in drawn], [row[len(row) // 2 :] for row in drawn]
    judge = ModelJudge(objective.model, objective.head)
    (task,) = tasks_of(["1"])
    found = judge([Answer(task, prompt, ids, "") for prompt, ids in zip(prompts, answers, strict=True)])
    for prompt, answer, reward in zip(prompts, answers, found, strict=True):
        learned = [False] * len(prompt) + [True] * len(answer)
        batch = rows_of([[Example.of([*prompt, *answer], learned, "here")]], whole=True)
        assert reward == pytest.approx(float(objective.rewards(batch).detach()), abs=1e-5)
    assert len(set(found)) > 20
    with pytest.raises(InputError, match="13 tokens long and the reward model's context is 12"):
        judge([Answer(task, [1] * 6, [1] * 7, "")])
