"""The second demonstration: Python's standard library -> a small model that answers questions about it, in minutes.

    text -> tokenizer -> pretraining -> SFT -> DPO -> chat

Questions and answers are made from the docstrings (`tessera.data.stdlib_questions`): "What does `json.dumps` do?", and
the first sentences of what it says; preferred is its own summary, rejected another function's. Modules that are held
out are in none of the stages. After each stage the same two figures are measured on them: the loss of the answers, and
how often the right one of two answers is the likelier one.
"""

import html
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tessera import job
from tessera.config import assign, check
from tessera.data.conversations import read_examples
from tessera.data.documents import read_documents
from tessera.data.examples import ExampleRows
from tessera.data.preferences import Pair, PairRows, pairs_of
from tessera.data.records import read_records
from tessera.data.stdlib_questions import Questions, make_questions, write_json_lines
from tessera.data.templates import with_template
from tessera.demo import RECIPE as TEXT
from tessera.evaluate.report import page
from tessera.generate.sampling import Sampling
from tessera.lm import LM
from tessera.objectives.logprobs import answer_logprobs
from tessera.objectives.sft import SFT
from tessera.opening import free_path
from tessera.recipe import Recipe
from tessera.store.files import make_folders, write_bytes_atomic
from tessera.tokenizers import Tokenizer
from tessera.watcher import Watcher

MINUTES = 8.0
TEMPLATE = "chatml"
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
STAGES = ("base", "sft", "dpo")
SHARES = {"base": 0.44, "sft": 0.2, "dpo": 0.12}
"""Of the minutes, for the updates of each stage; what is left is for text, tokenizer, reference and measuring."""
CONTEXT = 256
PAIRS = 2400
"""Of the training pairs: those that are learned from, so that each is met once."""
ASKED = 5
"""Held-out questions whose answers are shown."""
GREEDY = Sampling(temperature=0.0, max_tokens=60)

BASE: dict[str, Any] = {
    "name": "base",
    "data.validation": 0.05,
    "tokenizer.specials": SPECIALS,
    "sample.prompts": ["import os\nimport sys\n\n\ndef"],
}
SFT_RECIPE: dict[str, Any] = {
    "name": "sft",
    "objective": "sft",
    "data": {"examples": {"template": TEMPLATE, "arrange": "packed", "max_tokens": CONTEXT, "epochs": 3}},
    "optimizer": {"name": "adamw", "lr": 2e-3, "betas": [0.9, 0.95], "weight_decay": 0.1},
    "schedule": {"name": "wsd", "warmup": 10, "floor": 0.0, "cooldown": 0.8, "curve": "linear"},
    "train": {"batch_size": 8, "eval_every": 0, "save_every": 0},
    "sample": {"sampling": {"temperature": 0.0, "max_tokens": 60}},
}
DPO_RECIPE: dict[str, Any] = {
    "name": "dpo",
    "objective": {"name": "dpo", "beta": 0.3, "chosen_weight": 0.2},
    "data": {"examples": {"template": TEMPLATE, "max_tokens": CONTEXT, "epochs": 1}},
    "optimizer": {"name": "adamw", "lr": 2e-4, "betas": [0.9, 0.95], "weight_decay": 0.0},
    "schedule": {"name": "cosine", "warmup": 10, "floor": 0.1},
    "train": {"batch_size": 16, "eval_every": 0, "save_every": 0},
    "sample": {"sampling": {"temperature": 0.0, "max_tokens": 60}},
}


@dataclass
class Stage:
    """What is known of a stage when it is over."""

    name: str
    path: Path
    loss: float
    """Of held-out answers, in nats a token."""
    accuracy: float
    """How often the right one of two held-out answers is the likelier one, by the mean of its tokens."""
    seconds: float
    answers: list[str]
    figures: dict[str, float] = field(default_factory=dict)
    """What its own objective measured on the same held-out data."""


@dataclass
class Assistant:
    """What the demonstration made."""

    path: Path
    questions: list[str]
    stages: list[Stage] = field(default_factory=list)
    stopped_by: int = 0
    seconds: float = 0.0

    def summary(self) -> dict[str, Any]:
        """The figures, JSON-able."""
        told = {
            stage.name: {"loss": stage.loss, "preference_accuracy": stage.accuracy, "seconds": round(stage.seconds, 1)}
            for stage in self.stages
        }
        outcome = "interrupted" if self.stopped_by else "finished"
        return {"path": str(self.path), "outcome": outcome, "stages": told, "seconds": round(self.seconds, 1)}


class _HeldOut:
    """The questions that no stage has seen, and what a model makes of them."""

    def __init__(self, files: Mapping[str, Path], tokenizer: Tokenizer) -> None:
        self.tokenizer = with_template(tokenizer, TEMPLATE)
        fits: dict[str, Any] = {"max_tokens": CONTEXT, "too_long": "skip"}
        examples, _ = read_examples(files["held_out"], self.tokenizer, **fits)
        pairs, _ = pairs_of(read_records(files["held_out_pairs"]), self.tokenizer, **fits)
        self.rows = ExampleRows(examples, batch_size=32, context=CONTEXT)
        self.pairs: list[Pair] = pairs

    @torch.no_grad()
    def measure(self, lm: LM) -> tuple[float, float]:
        """The loss of the answers, and how often the right one is the likelier."""
        loss = SFT(model=lm.model, data=self.rows).eval().held_out(self.rows)["loss"]
        right = 0
        for batch in PairRows(self.pairs, batch_size=32).in_order():
            means = [total / n for total, n in (answer_logprobs(lm.model, side) for side in batch.sides)]
            right += int((means[0] > means[1]).sum())
        return loss, right / len(self.pairs)


def run(
    out: Path | None = None, *, seed: int = 1337, minutes: float = MINUTES, watcher: Watcher | None = None
) -> Assistant:
    """Make the assistant in the folder `out`: a run for each stage, the questions, and a report of all."""
    watcher, start = watcher or Watcher(), time.perf_counter()
    path = out or free_path(Path("runs") / "assistant")
    make_folders(path)
    with watcher.phase("make questions from the docstrings"):
        questions = make_questions(read_documents(TEXT["data"]["source"]), seed=seed)
        files = _write(questions, path / "data")
    watcher.say(questions.describe())
    shown = questions.held_out[:: max(1, len(questions.held_out) // ASKED)][:ASKED]
    asked = [record["messages"][0]["content"] for record in shown]
    made = Assistant(path, asked)
    held: _HeldOut | None = None
    for name in STAGES:
        begun = time.perf_counter()
        watcher.say("")
        result = job.train(_recipe(name, path, files, seed, minutes), path / name, watcher=watcher)
        result.run.close()
        if result.outcome == "interrupted":
            made.stopped_by = result.stopped_by
            break
        held = held or _HeldOut(files, result.tokenizer)
        settings = check(Recipe, result.run.recipe).model
        lm = LM(result.model.cpu().eval(), held.tokenizer, settings)
        with watcher.phase("ask what it was never taught"):
            loss, accuracy = held.measure(lm)
            answers = [lm.chat([{"role": "user", "content": text}], GREEDY).strip() for text in asked]
        seconds = time.perf_counter() - begun
        made.stages.append(Stage(name, path / name, loss, accuracy, seconds, answers, result.figures))
    made.seconds = time.perf_counter() - start
    write_bytes_atomic(path / "report.html", _report(made).encode())
    return made


def _write(questions: Questions, folder: Path) -> dict[str, Path]:
    files = questions.write(folder)
    files["text"] = folder / "text.jsonl"
    questions.write_training_text(files["text"], read_documents(TEXT["data"]["source"]))
    files["few_pairs"] = folder / "dpo-few.jsonl"
    write_json_lines(files["few_pairs"], questions.train_pairs[:PAIRS])
    return files


def _recipe(name: str, path: Path, files: Mapping[str, Path], seed: int, minutes: float) -> Recipe:
    """The recipe of a stage; it ends when its share of the time is up."""
    common = {"seed": seed, "train.finish_minutes": SHARES[name] * minutes}
    if name == "base":
        return check(Recipe, assign(TEXT, common | BASE | {"data.source": [str(files["text"])]}))
    base, source, held = {"sft": ("base", "train", "held_out"), "dpo": ("sft", "few_pairs", "held_out_pairs")}[name]
    where = {
        "base": str(path / base),
        "data.source": [str(files[source])],
        "data.examples.validation": [str(files[held])],
        "data.examples.too_long": "skip",
    }
    return check(Recipe, assign(SFT_RECIPE if name == "sft" else DPO_RECIPE, common | where))


def _report(made: Assistant) -> str:
    """All stages on one page."""
    head = "<tr><th></th><th>loss of held-out answers</th><th>right answer preferred</th><th>minutes</th></tr>"
    rows = "".join(
        f'<tr><td><a href="{stage.name}/report.html">{stage.name}</a></td><td>{stage.loss:.3f}</td>'
        f"<td>{stage.accuracy:.1%}</td><td>{stage.seconds / 60:.1f}</td></tr>"
        for stage in made.stages
    )
    parts = [f"<h1>{html.escape(made.path.name)}</h1>", f"<h2>After each stage</h2><table>{head}{rows}</table>"]
    parts.append("<h2>Questions about modules that no stage has seen</h2>")
    for number, question in enumerate(made.questions):
        said = "".join(f"<b>{stage.name}</b> {html.escape(stage.answers[number])}\n" for stage in made.stages)
        parts.append(f"<pre><em>{html.escape(question)}</em>\n{said}</pre>")
    return page(made.path.name, "".join(parts))
