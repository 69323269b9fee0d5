"""Tasks for reinforcement: their prompts as ids, and in what order they are asked.

A batch of them is a list of numbers of tasks: what is learned from are answers, which are not in the data but made by
the model when it is asked (`tessera.objectives.rollout`).
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tessera.data.checkers import Task
from tessera.data.conversations import PLAIN
from tessera.data.examples import Shuffled
from tessera.data.learned import AT_ONCE
from tessera.data.templates import with_template
from tessera.errors import InputError
from tessera.tokenizers import Tokenizer
from tessera.tokenizers.chat import encode_chats


def encode_tasks(
    tokenizer: Tokenizer, tasks: Sequence[Task], *, template: str | Path | None = None, max_tokens: int
) -> list[list[int]]:
    """The prompt of each task, with the beginning of an answer, none longer than `max_tokens`.

    `template` is a name of TEMPLATES, a Jinja file, (None) the tokenizer's own, or "none": then it is the text of the
    prompt as it is, after the begin token if there is one.
    """
    if template == PLAIN:
        prompts = [_plain(tokenizer, task) for task in tasks]
    else:
        tokenizer = with_template(tokenizer, template)
        chats = [task.messages for task in tasks]
        parts = (chats[start : start + AT_ONCE] for start in range(0, len(chats), AT_ONCE))
        prompts = [ids for part in parts for ids in encode_chats(tokenizer, part)]
    for task, ids in zip(tasks, prompts, strict=True):
        if not 0 < len(ids) <= max_tokens:
            raise InputError(f"{task.where}: the prompt has {len(ids)} tokens, expected from 1 to {max_tokens}")
    return prompts


def _plain(tokenizer: Tokenizer, task: Task) -> list[int]:
    texts = [message.get("content") for message in task.messages]
    if len(texts) != 1 or not isinstance(texts[0], str):
        raise InputError(f"{task.where}: without a template the prompt has to be one text, not {len(texts)} messages")
    front = [] if tokenizer.begin_id is None else [tokenizer.begin_id]
    return front + tokenizer.encode(texts[0], specials="none")


class TaskRows(Shuffled):
    """The numbers of the tasks, each once an epoch in an order of its own; `prompts` are their ids."""

    kind = "tasks"

    def __init__(
        self, tasks: Sequence[Task], prompts: Sequence[Sequence[int]], *, batch_size: int, seed: int = 0
    ) -> None:
        if not tasks:
            raise InputError("there is no task to learn from")
        if len(tasks) != len(prompts):
            raise InputError(f"{len(prompts)} prompts for {len(tasks)} tasks")
        self.tasks, self.prompts = list(tasks), [list(prompt) for prompt in prompts]
        identity = _fingerprint(self.tasks, self.prompts)
        super().__init__(len(self.tasks), batch_size=batch_size, seed=seed, identity=identity)

    @property
    def longest(self) -> int:
        """The tokens of the longest prompt."""
        return max(map(len, self.prompts))

    def take(self, n: int) -> list[int]:
        """The next `n`; where an epoch ends the next one begins."""
        taken: list[int] = []
        size = self.batch_size
        try:
            while len(taken) < n:
                self.batch_size = n - len(taken)
                taken += self.draw()
        finally:
            self.batch_size = size
        return taken

    def __next__(self) -> list[int]:
        return self.draw()


def _fingerprint(tasks: Sequence[Task], prompts: Sequence[Sequence[int]]) -> str:
    """The sha256 of what is asked and of what it is judged by."""
    digest = hashlib.sha256()
    for task, prompt in zip(tasks, prompts, strict=True):
        digest.update(len(prompt).to_bytes(8, "little"))
        digest.update(np.asarray(prompt, dtype="<i4").tobytes())
        digest.update(json.dumps(dict(task.content), sort_keys=True, default=str).encode() + b"|")
    return digest.hexdigest()
