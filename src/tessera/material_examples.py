"""Examples to learn from: conversations, pairs of answers, judged answers, or tasks whose answers are tried out.

The records are kept in the run as they were read, each with its file and line, and are encoded anew when it is opened:
the same records, template and tokenizer give the same ids.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from tessera.adapt import disabled, frozen_sha256, is_frozen
from tessera.building import build_objective
from tessera.config import build
from tessera.data.checkers import CHECKERS, tasks_of
from tessera.data.conversations import PLAIN, encode_records
from tessera.data.examples import ARRANGEMENTS, Example, ExampleRows, Fitting, fit
from tessera.data.preferences import JudgedRows, PairRows, judged_of, pairs_of
from tessera.data.records import Record, read_records
from tessera.data.settings import ExampleSettings
from tessera.data.shuffle import Purpose, permutation
from tessera.data.tasks import TaskRows, encode_tasks
from tessera.data.templates import with_template
from tessera.errors import DamagedError, InputError, SettingError
from tessera.material import VALIDATION, Detailed, Figures, Material, Prompt, noted
from tessera.model.decoder import Decoder
from tessera.models import open_any, open_reward
from tessera.objectives.judges import CheckerJudge, Judge, ModelJudge
from tessera.objectives.objective import Objective
from tessera.objectives.preference import Preference
from tessera.objectives.reference import add_reference
from tessera.recipe import Recipe, SampleSettings
from tessera.store.files import make_folders, read_bytes, write_bytes_atomic
from tessera.store.run import Run
from tessera.tokenizers import Tokenizer
from tessera.tokenizers.chat import encode_chats

ANSWER = 128
"""The most tokens of an answer that is tried, unless the objective says."""
RECORDS = "examples.jsonl"
PARTS = ("train", "validation")
SHOWN = 3
"""Held-out prompts that samples begin with, where the recipe names none."""


@dataclass(frozen=True)
class Rows:
    """A part of the examples in batches, and what had to be said when they were made."""

    source: Any
    told: list[str]


class Examples(Material):
    """Records with what is made of them; `make` reads them, `reopen` finds them in a run."""

    validates_all: ClassVar[bool] = True

    def __init__(self, folder: Path, records: dict[str, list[Record]], sha256: str, rows: dict[str, Rows]) -> None:
        self.folder, self.records, self.sha256, self.rows = folder, records, sha256, rows

    @classmethod
    def make(cls, recipe: Recipe, folder: Path, tokenizer: Tokenizer) -> "tuple[Tokenizer, Examples]":
        """Read the sources, hold some out, and keep all in `folder` once every one could be encoded."""
        # What a table has beside JSON's types (a time, bytes) is text from here on, as when it is read again.
        lines = [
            json.dumps({"part": part, "where": record.where, "content": record.content}, default=str)
            for part, found in _divided(recipe).items()
            for record in found
        ]
        records = _read(lines)
        tokenizer = _templated(tokenizer, recipe.data.examples.template)
        rows = {part: _rows(recipe, records[part], tokenizer) for part in PARTS}
        data = "".join(f"{line}\n" for line in lines).encode()
        make_folders(folder)
        write_bytes_atomic(folder / RECORDS, data)
        return tokenizer, cls(folder, records, hashlib.sha256(data).hexdigest(), rows)

    @classmethod
    def reopen(cls, recipe: Recipe, run: Run, tokenizer: Tokenizer) -> "Examples":
        """Those that the run learns from; a `DamagedError` where they are not what was written."""
        folder = Path(run.info["data"])
        folder = folder if folder.is_absolute() else run.path / folder
        data = read_bytes(folder / RECORDS)
        sha256 = hashlib.sha256(data).hexdigest()
        if sha256 != run.info["data_sha256"]:
            raise DamagedError(folder / RECORDS, "it is not what the run was started with")
        records = _read(data.decode().splitlines())
        return cls(folder, records, sha256, {part: _rows(recipe, records[part], tokenizer) for part in PARTS})

    def info(self, recipe: Recipe) -> dict[str, Any]:
        counts = {part: len(self.records[part]) for part in PARTS}
        manifest = {"sources": recipe.data.source, "examples": counts}
        return {"data": noted(self.folder, own=True), "data_sha256": self.sha256, "data_manifest": manifest}

    def check(self, recipe: Recipe, tokenizer: Tokenizer) -> list[str]:
        names = {"train": "to learn from", "validation": "held out"}
        return [f"{names[part]}: {line}" for part in PARTS for line in self.rows[part].told]

    def fitted(self, recipe: Recipe) -> Recipe:
        epochs = recipe.data.examples.epochs
        if epochs is None:
            return recipe
        rows, train = self.rows["train"].source.n, recipe.train
        steps = max(1, round(epochs * rows / (train.batch_size * train.accumulate)))
        return recipe.model_copy(update={"train": train.model_copy(update={"steps": steps})})

    def describe(self, recipe: Recipe) -> str:
        train, n = recipe.train, self.rows["train"].source.n
        per_step = train.batch_size * train.accumulate
        if recipe.reads == "tasks":
            per_step = recipe.objective.settings.get("minibatch") or per_step
            return f"{train.steps:,} steps of {per_step:,} answers to {n:,} tasks"
        of = "rows" if recipe.reads == "conversations" else recipe.reads
        return f"{train.steps:,} steps of {per_step:,} {of}: {train.steps * per_step / n:.2f} epochs of {n:,}"

    def longest(self, recipe: Recipe) -> int:
        source = self.rows["train"].source
        if isinstance(source, TaskRows):
            answer = recipe.objective.settings.get("max_tokens", ANSWER)
            return source.longest + int(answer)
        rows = [[len(each.ids) for each in examples_of(source, row)] for row in range(source.n)]
        if isinstance(source, ExampleRows):
            return max(map(sum, rows))
        return 2 * max(map(max, rows))  # both answers of a pair; a judged one, and the mismatched one

    def objective(self, recipe: Recipe, model: Decoder, tokenizer: Tokenizer) -> Objective:
        source = self.rows["train"].source
        given: dict[str, Any] = {"tokenizer": tokenizer}
        if is_frozen(model):
            given["base_only"] = partial(disabled, model)
        if recipe.teacher is not None:
            given["teacher"] = open_any(recipe.teacher).build()
        if recipe.reads == "tasks":
            given["judge"] = _judge(recipe, tokenizer)
            if recipe.base is not None and not is_frozen(model):
                given["reference"] = open_any(recipe.base).build()
        objective = build_objective(recipe, model, source, **given)
        if isinstance(objective, Preference) and objective.needs_reference:
            self._add_reference(recipe, model)
        return objective

    def _add_reference(self, recipe: Recipe, model: Decoder) -> None:
        """What the model thinks of each answer before it learns; kept in the run's folder.

        Where adapters learn from less than all of it, the base is asked as it goes on.
        """
        frozen, train = is_frozen(model), recipe.train
        base_only: Any = partial(disabled, model) if frozen else nullcontext
        drawn = train.steps * train.batch_size * train.accumulate
        for part in PARTS:
            source = self.rows[part].source
            if frozen and part == "train" and drawn < source.n:
                continue
            sha256 = frozen_sha256(model) if frozen else None
            add_reference(model, source, folder=self.folder, base_only=base_only, model_sha256=sha256)

    def validate(self, recipe: Recipe, objective: Objective, tokenizer: Tokenizer) -> Figures:
        return {name: value for name, (value, _) in self.measure(recipe, objective, tokenizer).items()}

    def measure(self, recipe: Recipe, objective: Objective, tokenizer: Tokenizer) -> Detailed:
        source = self.rows["validation"].source
        with torch.no_grad():
            figures = dict(objective.held_out(source))
        detail = {"examples": source.n}
        return {VALIDATION: (figures.pop("loss"), detail)} | {name: (value, detail) for name, value in figures.items()}

    def prompts(self, recipe: Recipe, tokenizer: Tokenizer) -> list[Prompt]:
        """Those of the recipe, each as what a user says; or the first ones that are held out."""
        if recipe.objective.name == "reward":  # it learns to judge, not to answer
            return []
        given = recipe.sample.prompts
        if given == SampleSettings().prompts:
            ids = [begin.tolist() for begin in _beginnings(self.rows["validation"].source)]
        elif recipe.data.examples.template == PLAIN:
            return [(text, text) for text in given]
        else:
            ids = encode_chats(tokenizer, [[{"role": "user", "content": text}] for text in given])
        return [(tokenizer.decode(each), each) for each in ids]


def examples_of(source: Any, row: int) -> list[Example]:
    """What a row of conversations, of pairs or of judged answers is made of."""
    if isinstance(source, ExampleRows):
        return [source.examples[i] for i in source.rows[row]]
    first, second = source.groups[row]
    return [first, second] if isinstance(source, PairRows) else [first]


def _beginnings(source: Any) -> list[np.ndarray]:
    """The ids before what is learned of the first example of each row, and those of tasks."""
    if isinstance(source, TaskRows):
        return [np.asarray(prompt) for prompt in source.prompts[:SHOWN]]
    examples = [examples_of(source, row)[0] for row in range(min(SHOWN, source.n))]
    return [example.ids[: int(example.learned.argmax())] for example in examples]


def _read(lines: Sequence[str]) -> dict[str, list[Record]]:
    """The records of each part, from lines of ASCII."""
    records: dict[str, list[Record]] = {part: [] for part in PARTS}
    for line in lines:
        found = json.loads(line)
        records[found["part"]].append(Record(found["content"], found["where"]))
    return records


def _divided(recipe: Recipe) -> dict[str, list[Record]]:
    """The records of both parts: those of two lists of files, or a seeded choice of one list."""
    data, settings = recipe.data, recipe.data.examples
    records = read_records(data.source)
    if settings.validation:
        return {"train": records, "validation": read_records(settings.validation)}
    n_held = settings.held_out or max(1, round(data.validation * len(records)))
    if n_held >= len(records):
        raise SettingError("data.examples.held_out", n_held, f"fewer than there are examples ({len(records):,})")
    order = permutation(len(records), seed=recipe.seed, purpose=Purpose.SPLIT)
    held_out = set(order[:n_held].tolist())
    return {
        "train": [record for i, record in enumerate(records) if i not in held_out],
        "validation": [record for i, record in enumerate(records) if i in held_out],
    }


def _templated(tokenizer: Tokenizer, template: str | None) -> Tokenizer:
    """The tokenizer as a chat with the run will need it."""
    return tokenizer if template == PLAIN else with_template(tokenizer, template)


def _rows(recipe: Recipe, records: Sequence[Record], tokenizer: Tokenizer) -> Rows:
    """The examples in batches; `tokenizer` has its template already."""
    settings, reads = recipe.data.examples, recipe.reads
    most = min(settings.max_tokens or recipe.model.context, recipe.model.context)
    template = PLAIN if settings.template == PLAIN else None
    batches: dict[str, Any] = {"batch_size": recipe.train.batch_size, "seed": recipe.seed}
    if reads == "tasks":
        tasks = tasks_of(records, _checker(recipe))
        prompts = encode_tasks(tokenizer, tasks, template=template, max_tokens=most)
        return Rows(TaskRows(tasks, prompts, **batches), [f"{len(tasks):,} tasks"])
    fitting: dict[str, Any] = {"max_tokens": most, "too_long": settings.too_long, "unlearned": settings.unlearned}
    if reads == "conversations":
        examples = encode_records(tokenizer, records, shape=settings.shape, template=template, learn=settings.learn)
        kept, told = fit(examples, **fitting)
        arrange = ARRANGEMENTS[settings.arrange]
        rows = ExampleRows(kept, context=most - 1, arrange=arrange, **batches)
        return Rows(rows, [*told.describe(), *_packed(rows, settings, told)])
    if reads == "judged":
        judged, told = judged_of(records, tokenizer, template=template, **fitting)
        return Rows(JudgedRows(judged, **batches), told.describe())
    pairs, told = pairs_of(records, tokenizer, template=template, **fitting)
    return Rows(PairRows(pairs, whole=recipe.objective.name == "reward", **batches), told.describe())


def _packed(rows: ExampleRows, settings: ExampleSettings, told: Fitting) -> Iterator[str]:
    if settings.arrange == "packed":
        yield f"packed into {rows.n:,} rows, {told.n_examples / rows.n:.1f} examples to a row"


def _checker(recipe: Recipe) -> Any:
    spec = recipe.reward.checker
    return None if spec is None else build(CHECKERS, spec, path="reward.checker")


def _judge(recipe: Recipe, tokenizer: Tokenizer) -> Judge:
    if recipe.reward.model is None:
        return CheckerJudge(_checker(recipe))
    model, head, own = open_reward(recipe.reward.model)
    if own.fingerprint != tokenizer.fingerprint:
        raise InputError(f"{recipe.reward.model}: the reward model has another tokenizer than {recipe.base}")
    return ModelJudge(model, head)
