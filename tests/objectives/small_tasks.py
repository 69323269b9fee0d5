"""Tasks that a tiny model learns in seconds, a training of them, and what it comes to."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tessera.config import build
from tessera.data.checkers import Task
from tessera.data.tasks import TaskRows, encode_tasks
from tessera.model.decoder import Decoder
from tessera.objectives.grpo import GRPO
from tessera.objectives.judges import Answer
from tessera.objectives.ppo import PPO
from tessera.objectives.reinforcement import Reinforcement
from tessera.optim import OPTIMIZERS, groups
from tessera.store.checkpoints import CheckpointStore
from tessera.tokenizers.char import CharTokenizer
from tessera.train.progress import Progress
from tessera.train.settings import TrainSettings
from tessera.train.trainer import Trainer

TOKENIZER = CharTokenizer(alphabet="0123456789")
KINDS: dict[str, type[Reinforcement]] = {"grpo": GRPO, "ppo": PPO}


def repeat_me(answers: Sequence[Answer]) -> list[float]:
    """1 for an answer that begins with the first digit of the prompt."""
    return [float(each.text[:1] == each.task.content["answer"]) for each in answers]


def largest(answers: Sequence[Answer]) -> list[float]:
    """The more, the greater the first token is: then hardly a group is rewarded all alike."""
    return [float(each.ids[0]) for each in answers]


def tasks_of(texts: Sequence[str]) -> list[Task]:
    return [
        Task([{"role": "user", "content": text}], {"answer": text[0]}, f"tasks.jsonl:{number}")
        for number, text in enumerate(texts, start=1)
    ]


def rows_of(texts: Sequence[str], *, seed: int = 1) -> TaskRows:
    tasks = tasks_of(texts)
    return TaskRows(tasks, encode_tasks(TOKENIZER, tasks, template="none", max_tokens=8), batch_size=1000, seed=seed)


def model_of(*, d_model: int = 32, dropout: float = 0.0, seed: int = 0) -> Decoder:
    torch.manual_seed(seed)
    shape = {"n_vocab": TOKENIZER.n_vocab, "context": 12, "n_layers": 2, "n_heads": 2, "dropout": dropout}
    return Decoder(d_model=d_model, **shape)  # type: ignore[arg-type]


def objective_of(kind: str, *, judge: Any = repeat_me, **settings: Any) -> Reinforcement:
    """Twelve answers to six prompts of three lengths, of at most three tokens; a frozen copy is the reference."""
    model = settings.pop("model", None) or model_of(**settings.pop("shape", {}))
    rows = rows_of(["1", "2", "33", "44", "555", "678"])
    common = {"prompts": 6, "group_size": 2} if kind == "grpo" else {"prompts": 12}
    common |= {"epochs": 2, "minibatch": 7, "max_tokens": 3, "reference": copy.deepcopy(model)}
    return KINDS[kind](model=model, data=rows, tokenizer=TOKENIZER, judge=judge, **(common | settings))


def trainer_of(objective: Reinforcement, *, lr: float, steps: int, store: CheckpointStore | None = None) -> Trainer:
    return Trainer(
        objective=objective,
        optimizer=build(OPTIMIZERS, {"name": "adamw", "lr": lr}, params=groups(objective, 0.0)),
        schedule=lambda step, total: 1.0,
        settings=TrainSettings(steps=steps, save_every=1, keep=steps),
        checkpoints=store,
    )


def train(objective: Reinforcement, *, lr: float, steps: int) -> list[Progress]:
    """What was seen of each step."""
    seen: list[Progress] = []
    trainer = trainer_of(objective, lr=lr, steps=steps)
    trainer.watch = seen.append
    trainer.run()
    return seen


def tensors_of(objective: Reinforcement) -> dict[str, Tensor]:
    """All that is saved of it."""
    return {name: each.clone() for name, each in objective.state_dict().items() if isinstance(each, Tensor)}


def logprobs_by_hand(model: Decoder, inputs: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """From all logits at once; 0 where nothing is learned."""
    logps = torch.log_softmax(model(inputs).double() / temperature, dim=-1)
    found = logps.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    return torch.where(targets >= 0, found, 0)
