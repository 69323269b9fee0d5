"""A run that is measured again: what is said of it, and that nothing stands in for weights that are not there."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.post_training import ADAPT, RECIPE, write_base, write_examples

from tessera import job
from tessera.config import assign
from tessera.errors import InputError
from tessera.recipe import Recipe, load_recipe
from tessera.store.run import Run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and examples of each kind."""
    made = tmp_path_factory.mktemp("made")
    write_base(made / "base")
    write_examples(made)
    (made / "text.txt").write_text("so it was, and so it will be\n" * 400, encoding="utf-8")
    return made


def trained(folder: Path, objective: str, source: str, out: Path, **more: Any) -> Path:
    content = assign(RECIPE, {"objective": objective, "base": str(folder / "base"), **more})
    recipe: Recipe = load_recipe(None, ["train.steps=4"], sources=[str(folder / source)], base=content)
    job.train(recipe, out).run.close()
    return out


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    with Run.open(path) as run:
        return {name: tensor.clone() for name, tensor in run.checkpoints.read(4).tensors.items()}


def rewritten(path: Path, step: int, change: Mapping[str, torch.Tensor | None]) -> None:
    """Write the checkpoint again with other tensors, or without some."""
    with Run.open(path, train=True) as run:
        saved = run.checkpoints.read(step)
        tensors = {name: tensor.clone() for name, tensor in saved.tensors.items()} | change
        kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        run.checkpoints.write(step, kept, saved.meta, keep=9)


@pytest.mark.parametrize(
    ("objective", "source", "reads", "in_nats"),
    [
        ("next-token", "text.txt", "documents", True),
        ("sft", "conversations.jsonl", "conversations", True),
        ("dpo", "pairs.jsonl", "pairs", False),
        ("kto", "judged.jsonl", "judged", False),
    ],
)
def test_what_is_told(folder: Path, tmp_path: Path, objective: str, source: str, reads: str, in_nats: bool) -> None:
    result = job.evaluate(trained(folder, objective, source, tmp_path / "run"))
    assert result["reads"] == reads
    expected = pytest.approx(math.exp(result["validation_loss"])) if in_nats else None
    assert result["perplexity"] == expected


@pytest.mark.parametrize("adapted", [False, True])
def test_weights_that_are_not_there(folder: Path, tmp_path: Path, adapted: bool) -> None:
    """Those of the base are not taken in their place."""
    more = {"adapt": ADAPT} if adapted else {}
    run = trained(folder, "sft", "conversations.jsonl", tmp_path / "run", **more)
    before = job.evaluate(run)
    weights = {name: each for name, each in tensors_of(run).items() if name.startswith("model.")}
    names = [name for name in weights if name != "model.adapted_base.sha256"][:2]
    rewritten(run, 4, dict.fromkeys(names))
    with pytest.raises(InputError) as error:
        job.evaluate(run)
    assert all(part in str(error.value) for part in [str(run), "step 4", *names])
    rewritten(run, 4, {name: torch.zeros(3) for name in names})
    with pytest.raises(InputError, match="in another shape"):
        job.evaluate(run)
    rewritten(run, 4, weights)
    assert job.evaluate(run) == before


def test_of_many_some_are_named(folder: Path, tmp_path: Path) -> None:
    run = trained(folder, "sft", "conversations.jsonl", tmp_path / "run")
    rewritten(run, 4, {name: None for name in tensors_of(run) if name.startswith("model.")})
    with pytest.raises(InputError, match=r"and \d+ more"):
        job.evaluate(run)


def test_a_checkpoint_that_does_not_verify_is_told(folder: Path, tmp_path: Path) -> None:
    run = trained(folder, "sft", "conversations.jsonl", tmp_path / "run")
    expected = job.evaluate(run, step=2)
    damaged = next((run / "checkpoints" / "step-000004").glob("model*"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    said: list[str] = []
    assert job.evaluate(run, say=said.append) == expected
    assert len(said) == 1
    assert said[0].startswith("skipped step 4: ")
    with pytest.warns(UserWarning, match="skipped step 4"):
        job.evaluate(run)
