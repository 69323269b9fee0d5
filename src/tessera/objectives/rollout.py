"""A rollout: what the model answered to some prompts, what a judge said of it, and what was computed of it once.

It is learned from in several updates, and a run may be stopped between two of them. So it is kept in tensors of a fixed
shape, which are a part of the objective's state like its weights: a checkpoint holds it, and a resumed run goes on in
the middle of it with the very numbers that it had.

N answers of a rollout, B of them in a batch, T time.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from tessera.data.batch import IGNORE
from tessera.data.tasks import TaskRows
from tessera.errors import InputError
from tessera.generate.engine import Engine
from tessera.generate.sampling import Sampling
from tessera.objectives.judges import Answer, Judge


@dataclass(frozen=True)
class Said:
    """An answer: its prompt, what was drawn (with the end token, if it came), and its reward."""

    prompt: Sequence[int]
    ids: list[int]
    ended: bool
    reward: float


def ask(
    engine: Engine,
    judge: Judge,
    rows: TaskRows,
    numbers: Sequence[int],
    sampling: Sampling,
    *,
    n: int = 1,
    seeds: Sequence[int | None] | None = None,
) -> list[Said]:
    """`n` answers to each of the tasks of these numbers, those to one task side by side, and their rewards."""
    prompts = [rows.prompts[i] for i in numbers]
    found = [each for of_prompt in engine.complete_many(prompts, sampling, n=n, seeds=seeds) for each in of_prompt]
    answers = [
        Answer(rows.tasks[i], rows.prompts[i], each.ids + ([] if each.end is None else [each.end]), each.text)
        for i, each in zip((i for i in numbers for _ in range(n)), found, strict=True)
    ]
    rewards = judge(answers)
    if len(rewards) != len(answers) or not all(map(math.isfinite, rewards)):
        raise InputError(
            f"the judge gave {rewards!r:.80} for {len(answers)} answers, expected a finite number for each"
        )
    return [
        Said(answer.prompt, answer.ids, each.finish == "end", float(reward))
        for answer, each, reward in zip(answers, found, rewards, strict=True)
    ]


def figures_of(said: Sequence[Said]) -> dict[str, float]:
    """What is worth knowing of some answers."""
    rewards = torch.tensor([each.reward for each in said], dtype=torch.float64)
    return {
        "reward": float(rewards.mean()),
        "reward_std": float(rewards.std(correction=0)),
        "length": sum(len(each.ids) for each in said) / len(said),
        "ended": sum(each.ended for each in said) / len(said),
    }


def as_rows(said: Sequence[Said], width: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets (N, width): a token is predicted from all before it, and learned where it was drawn."""
    inputs_NT = torch.zeros(len(said), width, dtype=torch.long)
    targets_NT = torch.full((len(said), width), IGNORE)
    for n, each in enumerate(said):
        ids = torch.tensor([*each.prompt, *each.ids])
        inputs_NT[n, : len(ids) - 1] = ids[:-1]
        targets_NT[n, len(each.prompt) - 1 : len(ids) - 1] = ids[len(each.prompt) :]
    return inputs_NT, targets_NT


@dataclass(frozen=True)
class RolloutBatch:
    """Some answers of a rollout: a row of each tensor is one. `old_BT` are the log-probabilities when it was drawn."""

    inputs_BT: Tensor
    targets_BT: Tensor
    old_BT: Tensor

    @property
    def mask(self) -> Tensor:
        """(B, T): where an answer's tokens are."""
        return self.targets_BT != IGNORE

    @property
    def n_targets(self) -> int:
        """How many tokens: what a loss is averaged over."""
        return int(self.mask.sum())

    def to(self, device: torch.device | str) -> Self:
        return self._changed(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Self:
        """In memory that a GPU fetches from by itself; what is on the GPU stays there."""
        return self._changed(lambda tensor: tensor.pin_memory() if tensor.device.type == "cpu" else tensor)

    def _changed(self, change: Callable[[Tensor], Tensor]) -> Self:
        return type(self)(
            **{name: change(each) if isinstance(each, Tensor) else each for name, each in vars(self).items()}
        )


class Rollout(nn.Module):
    """Holds a rollout of `n` answers, none longer than `width` with its prompt: no parameters, buffers alone.

    `of_tokens` and `of_answers` are the names of what there is of each token and of each answer, `figures` of what
    there is of the whole.
    """

    number: Tensor

    def __init__(
        self,
        *,
        n: int,
        width: int,
        of_tokens: Sequence[str],
        of_answers: Sequence[str] = (),
        figures: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.names = tuple(figures)
        self.register_buffer("number", torch.zeros((), dtype=torch.long))
        self.register_buffer("inputs", torch.zeros(n, width, dtype=torch.long))
        self.register_buffer("targets", torch.full((n, width), IGNORE))
        for name in of_tokens:
            self.register_buffer(name, torch.zeros(n, width))
        for name in of_answers:
            self.register_buffer(name, torch.zeros(n))
        self.register_buffer("figures", torch.zeros(len(figures)))

    def fill(self, number: int, tensors: Mapping[str, Tensor], figures: Mapping[str, float]) -> None:
        """Be rollout `number`."""
        with torch.no_grad():
            for name, tensor in tensors.items():
                self.get_buffer(name).copy_(tensor)
            self.get_buffer("figures").copy_(torch.tensor([figures[name] for name in self.names]))
            self.number.fill_(number)

    def told(self) -> dict[str, float]:
        """The figures by name."""
        return dict(zip(self.names, self.get_buffer("figures").tolist(), strict=True))

    def rows(self, names: Sequence[str], numbers: Sequence[int]) -> dict[str, Tensor]:
        """What there is under these names of the answers of these numbers, cut at the end of the longest."""
        numbers_B = torch.tensor(numbers, device=self.number.device)
        taken = {name: self.get_buffer(name)[numbers_B] for name in names}
        used_T = (self.get_buffer("targets")[numbers_B] != IGNORE).any(dim=0)
        width = int(used_T.nonzero().max()) + 1
        return {name: each[:, :width] if each.ndim == 2 else each for name, each in taken.items()}
