"""What GRPO and PPO share: a policy that is asked, judged, and learns from what it said.

    weights -> answers to the next prompts -> rewards -> what is computed once -> `epochs` times in batches -> weights

The answers are made by the generation engine with the weights as they are then. From that moment on they are data like
any other: an update sees `minibatch` of them. All draws are functions of (seed, number of the rollout, place in it),
and the rollout is a part of the state, so that a run that was stopped anywhere goes on bit for bit (`rollout.py`).

A token must be as probable when it is learned from as it was when it was drawn, so the model has no dropout here: it
is in evaluation mode also while it learns, in which a mixture of experts does not balance its load either.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from tessera.data.batch import IGNORE
from tessera.data.shuffle import Purpose, permutation, random_words
from tessera.data.tasks import TaskRows
from tessera.errors import InputError, SettingError
from tessera.generate.engine import Engine
from tessera.generate.sampling import Sampling
from tessera.generate.torch_step import evaluating
from tessera.model.decoder import Decoder
from tessera.model.flow import Flow
from tessera.objectives.judges import Judge
from tessera.objectives.kl import k3
from tessera.objectives.logprobs import token_scores
from tessera.objectives.objective import Objective
from tessera.objectives.ppo_losses import masked_mean
from tessera.objectives.preference import BaseOnly, check_positive
from tessera.objectives.rollout import Rollout, RolloutBatch, Said, as_rows, ask, figures_of
from tessera.tokenizers import Tokenizer

FIGURES = ("reward", "reward_std", "length", "ended")


class Reinforcement(Objective):
    """A policy, its tasks and its judge; a subclass says what is computed of a rollout and the loss of a batch.

    The reference is `reference`, or the model within `base_only`; with neither there is none. A batch has `minibatch`
    answers, or as many as the batch size of the tasks says.
    """

    model: Decoder
    data: TaskRows
    reads: ClassVar[str] = "tasks"
    watched: ClassVar[tuple[str, ...]] = ("reward", "kl")
    batch_type: ClassVar[type[RolloutBatch]] = RolloutBatch

    def __init__(
        self,
        *,
        model: Decoder,
        data: TaskRows,
        tokenizer: Tokenizer,
        judge: Judge,
        base_only: BaseOnly | None = None,
        reference: Decoder | None = None,
        prompts: int,
        group_size: int,
        epochs: int,
        minibatch: int | None,
        max_tokens: int,
        temperature: float,
        top_p: float | None,
    ) -> None:
        super().__init__(model=model, data=data)
        n = prompts * group_size
        minibatch = min(data.batch_size, n) if minibatch is None else minibatch
        check_counts(prompts=prompts, group_size=group_size, epochs=epochs, minibatch=minibatch, max_tokens=max_tokens)
        check_positive(temperature=temperature)
        if minibatch > n:
            raise SettingError("minibatch", minibatch, f"at most the {n} answers of a rollout")
        if data.longest + max_tokens > model.context:
            room = f"at most {model.context - data.longest}: the longest prompt has {data.longest} tokens"
            raise SettingError("max_tokens", max_tokens, f"{room}, and the model's context is {model.context}")
        self.prompts, self.group_size, self.epochs, self.minibatch = prompts, group_size, epochs, minibatch
        self.sampling = Sampling(temperature=temperature, top_p=top_p, max_tokens=max_tokens)
        self.engine, self.base_only = Engine(model, tokenizer), base_only
        # In tuples, so that a module in them is no part of what is learned and saved.
        self._reference, self._judge = () if reference is None else (reference,), (judge,)
        self._number = self._position = 0
        self.model.eval()

    def _keep_room(self, of_tokens: Sequence[str], *, of_answers: Sequence[str] = (), figures: Sequence[str]) -> None:
        """Make the rollout; called by the subclass at the end of its constructor."""
        width = self.data.longest + self.sampling.max_tokens - 1
        figures = (*FIGURES, *figures, *(["kl"] if self.has_reference else []))
        self.rollout = Rollout(
            n=self.n_answers, width=width, of_tokens=of_tokens, of_answers=of_answers, figures=figures
        ).to(self.model.head_weight.device)

    @property
    def n_answers(self) -> int:
        """In a rollout."""
        return self.prompts * self.group_size

    @property
    def steps_per_rollout(self) -> int:
        """The batches that a rollout gives."""
        return self.epochs * -(-self.n_answers // self.minibatch)

    @property
    def has_reference(self) -> bool:
        return bool(self._reference) or self.base_only is not None

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.model.eval()
        return self

    def batches(self) -> Iterator[RolloutBatch]:
        while True:
            if not self._number or int(self.rollout.number) != self._number or self._is_used_up:
                self._renew()
            numbers = self._numbers(self._position)
            self._position += 1
            yield self.batch(numbers)

    @property
    def _is_used_up(self) -> bool:
        return self._position >= self.steps_per_rollout

    def _numbers(self, position: int) -> list[int]:
        """The answers of a batch: each once an epoch, in an order of that epoch."""
        epoch, place = divmod(position, self.steps_per_rollout // self.epochs)
        counter = self._number * self.epochs + epoch
        order = permutation(self.n_answers, seed=self.data.seed, purpose=Purpose.MINIBATCHES, counter=counter)
        return order[place * self.minibatch : (place + 1) * self.minibatch].tolist()

    def batch(self, numbers: Sequence[int]) -> RolloutBatch:
        """The answers of these numbers."""
        kept = {name for name, _ in self.rollout.named_buffers()}
        names = {field: field.rpartition("_")[0] for field in self.batch_type.__dataclass_fields__}  # less the shape
        names = {field: name for field, name in names.items() if name in kept}
        rows = self.rollout.rows(list(names.values()), numbers)
        return self.batch_type(**{field: rows[name] for field, name in names.items()}, **self.batch_settings())

    def batch_settings(self) -> dict[str, Any]:
        """What a batch has that is no tensor."""
        return {}

    def _renew(self) -> None:
        """Make the next rollout with the weights as they are."""
        number = self._number + 1
        with torch.no_grad(), evaluating(self.model):
            said, more = self.draw(number)
            inputs_NT, targets_NT = (each.to(self.rollout.number.device) for each in as_rows(said, self._width))
            with self.as_trained():
                tensors, figures = self.prepare(said, inputs_NT, targets_NT)
        tensors = {"inputs": inputs_NT, "targets": targets_NT, **tensors}
        self.rollout.fill(number, tensors, {**figures_of(said), **figures, **more})
        self._number, self._position = number, 0

    @property
    def _width(self) -> int:
        return self.rollout.get_buffer("inputs").shape[1]

    def draw(self, number: int) -> tuple[list[Said], dict[str, float]]:
        """The answers of rollout `number`, and figures of them that are not those of all of them."""
        return self.ask(self.data.take(self.prompts), counter=number), {}

    def ask(self, tasks: Sequence[int], *, counter: int) -> list[Said]:
        """A group of answers to each task; `counter` is another one each time."""
        words = random_words(len(tasks), seed=self.data.seed, purpose=Purpose.ANSWERS, counter=counter)
        seeds = [int(word) >> 1 for word in words.tolist()]
        return ask(self.engine, *self._judge, self.data, tasks, self.sampling, n=self.group_size, seeds=seeds)

    @abstractmethod
    def prepare(
        self, said: Sequence[Said], inputs_NT: Tensor, targets_NT: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """What is computed of a rollout once, without gradients: tensors and figures by name."""

    def scores(self, inputs_BT: Tensor, targets_BT: Tensor, model: Decoder | None = None) -> tuple[Tensor, ...]:
        """(B, T) the log-probability of each token drawn and the entropy of what it was drawn from, both under the
        temperature, and (B, T, D) the hidden states."""
        model = self.model if model is None else model
        h_BTD = model.hidden(inputs_BT, flow=Flow.of(inputs_BT))
        return *token_scores(model, h_BTD, targets_BT, temperature=self.sampling.temperature), h_BTD

    def in_parts(self, score: Callable[[Tensor, Tensor], Tensor], inputs_NT: Tensor, targets_NT: Tensor) -> Tensor:
        """`score` of all, a batch at a time."""
        parts = zip(inputs_NT.split(self.minibatch), targets_NT.split(self.minibatch), strict=True)
        return torch.cat([score(inputs_BT, targets_BT) for inputs_BT, targets_BT in parts])

    def logprobs(self, inputs_NT: Tensor, targets_NT: Tensor) -> Tensor:
        return self.in_parts(lambda ids, targets: self.scores(ids, targets)[0], inputs_NT, targets_NT)

    def reference_logprobs(self, inputs_NT: Tensor, targets_NT: Tensor) -> Tensor:
        if not self._reference:
            assert self.base_only is not None
            with self.base_only():
                return self.logprobs(inputs_NT, targets_NT)
        (model,) = self._reference
        with evaluating(model):
            return self.in_parts(lambda ids, targets: self.scores(ids, targets, model)[0], inputs_NT, targets_NT)

    def divergence(self, tensors: Mapping[str, Tensor], targets_NT: Tensor) -> dict[str, float]:
        """From the reference, a token: measured where the answers are the policy's own, so that it is no guess."""
        if not self.has_reference:
            return {}
        return {"kl": float(masked_mean(k3(tensors["old"], tensors["reference"]), targets_NT != IGNORE))}

    def check_reference(self, name: str, value: float) -> None:
        """An `InputError` where the setting is not 0 and there is nothing to compare with."""
        if value and not self.has_reference:
            raise InputError(
                f"{name} is {value}, and there is no reference: give one, or train adapters, whose base it is"
            )

    def held_out(self, rows: TaskRows) -> dict[str, float]:
        """The most probable answer to each of other tasks, judged; what is trained is left as it is."""
        greedy = Sampling(temperature=0, max_tokens=self.sampling.max_tokens)
        with torch.no_grad(), evaluating(self.model):
            figures = figures_of(ask(self.engine, *self._judge, rows, range(rows.n), greedy))
        return {"loss": -figures["reward"], **{name: figures[name] for name in ("reward", "length", "ended")}}

    def get_extra_state(self) -> dict[str, Any]:
        """Where it stands in its tasks and in its rollout; the rollout itself is among the tensors."""
        return {"data": dict(self.data.state()), "rollout": self._number, "position": self._position}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Stand there. Where that is in another rollout than the one at hand, the next batch is of a new one."""
        self.data.restore(state["data"])
        self._number, self._position = int(state["rollout"]), int(state["position"])


def check_counts(**settings: int) -> None:
    for name, value in settings.items():
        if value < 1:
            raise SettingError(name, value, "a whole number from 1")


def check_share(**settings: float) -> None:
    for name, value in settings.items():
        if not 0 <= value <= 1:
            raise SettingError(name, value, "a number from 0 to 1")


def check_amount(**settings: float) -> None:
    for name, value in settings.items():
        if not 0 <= value < float("inf"):
            raise SettingError(name, value, "a number, 0 or greater")
