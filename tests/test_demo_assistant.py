"""The demonstration of an assistant, on a few modules and with a model that learns next to nothing."""

import json
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from tessera import demo_assistant
from tessera.data.documents import Document
from tessera.lm import LM
from tessera.store.run import Run

MODULES = ["bisect", "calendar", "csv", "fractions", "heapq", "queue", "shlex", "statistics", "string", "textwrap"]
TINY: dict[str, Any] = {
    "tokenizer.vocab_size": 400,
    "model.d_model": 32,
    "model.n_heads": 2,
    "model.n_layers": 1,
    "train.batch_size": 2,
    "train.device": "cpu",
    "train.steps": 6,
    "schedule.warmup": 2,
    "train.context_ramp": None,
    "sample.sampling.max_tokens": 4,
}


def few_documents(sources: list[str]) -> list[Document]:
    assert sources == ["python-stdlib"]
    folder = Path(sysconfig.get_path("stdlib"))
    return [Document(f"{name}.py", (folder / f"{name}.py").read_text(encoding="utf-8")) for name in MODULES]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_assistant, "read_documents", few_documents)
    monkeypatch.setattr(demo_assistant, "BASE", demo_assistant.BASE | TINY)
    for name in ("SFT_RECIPE", "DPO_RECIPE"):
        quick = {"data.examples.epochs": None, "train.steps": 3, "train.device": "cpu", "sample.sampling.max_tokens": 4}
        monkeypatch.setattr(demo_assistant, name, demo_assistant.assign(getattr(demo_assistant, name), quick))


def test_every_stage_is_measured_on_what_none_has_seen(small: None, tmp_path: Path) -> None:
    made = demo_assistant.run(tmp_path / "made", minutes=60)
    assert [stage.name for stage in made.stages] == ["base", "sft", "dpo"]
    summary = json.loads(json.dumps(made.summary()))
    assert summary["outcome"] == "finished"
    for stage in made.stages:
        assert 0 < stage.loss < 10
        assert 0 <= stage.accuracy <= 1
        assert len(stage.answers) == len(made.questions) == demo_assistant.ASKED
    assert made.stages[1].loss < made.stages[0].loss  # of conversations the text has none
    with Run.open(made.path / "dpo") as run, Run.open(made.path / "sft") as sft, Run.open(made.path / "base") as base:
        assert [each.id for each in run.lineage()] == [sft.id, base.id]
        assert {each.name: each.value for each in sft.evaluations() if each.step}["validation_loss"] == pytest.approx(
            made.stages[1].loss, rel=1e-4
        )
    page = (made.path / "report.html").read_text(encoding="utf-8")
    for text in (f"{made.stages[2].loss:.3f}", f"{made.stages[2].accuracy:.1%}", "sft/report.html"):
        assert text in page
    assert LM.load(made.path / "dpo").tokenizer.framing.template is not None


def test_held_out_modules_are_in_no_stage(small: None, tmp_path: Path) -> None:
    made = demo_assistant.run(tmp_path / "made", minutes=60)
    held = {text.split("`")[1].split(".")[0] for text in made.questions}
    assert held
    text = (made.path / "data" / "text.jsonl").read_text(encoding="utf-8")
    names = {json.loads(line)["name"].removesuffix(".py") for line in text.splitlines()}
    assert names
    assert not held & names
    for part in ("sft-train", "dpo-few"):
        assert not any(f"`{name}" in (made.path / "data" / f"{part}.jsonl").read_text() for name in held)
