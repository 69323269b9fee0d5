"""Who says how good an answer is: a rule that checks it, or a model that learned it from preferences.

A judge is a function: it sees some answers, each with its task and its prompt, and gives a number for each.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tessera.data.checkers import Checker, Task
from tessera.errors import InputError
from tessera.generate.torch_step import evaluating
from tessera.model.decoder import Decoder
from tessera.objectives.reward import ValueHead

AT_ONCE = 32
"""Answers that a reward model reads together."""


@dataclass(frozen=True)
class Answer:
    """What a judge sees of an answer. `ids` are those of the answer alone, with the end token if there is one."""

    task: Task
    prompt: Sequence[int]
    ids: list[int]
    text: str


Judge = Callable[[Sequence[Answer]], Sequence[float]]
"""Gives the reward of each answer."""


class CheckerJudge:
    """A rule, which reads the text alone."""

    def __init__(self, checker: Checker) -> None:
        self.checker = checker

    def __call__(self, answers: Sequence[Answer]) -> list[float]:
        return [self.checker(each.text, each.task.content) for each in answers]


class ModelJudge:
    """A reward model: what `head` reads at the last token of prompt and answer. The text is not looked at."""

    def __init__(self, model: Decoder, head: ValueHead) -> None:
        self.model, self.head = model, head

    def __call__(self, answers: Sequence[Answer]) -> list[float]:
        rows = [[*each.prompt, *each.ids] for each in answers]
        longest = max(map(len, rows), default=0)
        if longest > self.model.context:
            raise InputError(
                f"an answer with its prompt is {longest} tokens long and the reward model's context is "
                f"{self.model.context}: let answers be shorter (max_tokens)"
            )
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        rewards = [0.0] * len(rows)
        for start in range(0, len(rows), AT_ONCE):
            numbers = order[start : start + AT_ONCE]
            for i, reward in zip(numbers, self._read([rows[i] for i in numbers]), strict=True):
                rewards[i] = reward
        return rewards

    @torch.no_grad()
    def _read(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """What stands behind an answer it does not see, so that any id will do as padding."""
        device = self.model.head_weight.device
        lengths_B = torch.tensor([len(row) for row in rows], device=device)
        width = int(lengths_B.max())
        ids_BT: Tensor = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
        with evaluating(self.model):
            h_BTD = self.model.hidden(ids_BT)
        last_BD = h_BTD[torch.arange(len(rows), device=device), lengths_B - 1]
        return self.head(last_BD).float().tolist()
