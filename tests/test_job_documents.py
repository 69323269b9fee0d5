"""The main job on documents that do not see each other: what it measures, and what it needs."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from tessera import job
from tessera.corpus import reopen_data
from tessera.errors import SettingError
from tessera.recipe import load_recipe

CONTENT: dict[str, Any] = {
    "seed": 11,
    "tokenizer": "char",
    "model": {"d_model": 16, "n_layers": 1, "n_heads": 2, "d_ff": 32, "context": 16, "dropout": 0.1},
    "schedule": {"name": "constant", "warmup": 2},
    "train": {"steps": 8, "batch_size": 4, "device": "cpu", "threads": 1, "eval_every": 4, "eval_tokens": 128},
    "sample": {"prompts": ["the "], "sampling": {"max_tokens": 6}},
}


def test_documents_that_are_kept_apart(tmp_path: Path) -> None:
    """What the run says it reaches is the loss of each held-out document alone, cut where a window ends."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(30):
        (folder / f"{i}.txt").write_text(f"{i} is a short text, {i * i % 87}.")
    content = CONTENT | {"data": {"validation": 0.3, "separate": True}}
    recipe = load_recipe(None, sources=[str(folder)], base=content)
    result = job.train(recipe, tmp_path / "run")
    model, end = result.model.eval(), result.tokenizer.end_id
    ids = torch.from_numpy(reopen_data(recipe, result.run, result.tokenizer).validation.tokens.astype("int64"))
    assert (ids == end).sum() > 3
    nats = 0.0
    for start in range(0, len(ids) - 1, 16):
        window = ids[start : start + 17]
        begins = [0, *[i for i in range(1, len(window) - 1) if window[i] == end], len(window) - 1]
        for first, last in itertools.pairwise(begins):
            with torch.no_grad():
                logits = model(window[None, first:last])[0]
            nats += torch.nn.functional.cross_entropy(logits, window[first + 1 : last + 1], reduction="sum").item()
    assert result.figures
    assert result.figures["validation_loss"] == pytest.approx(nats / (len(ids) - 1), rel=1e-5)
    assert job.evaluate(tmp_path / "run")["validation_loss"] == pytest.approx(
        result.figures["validation_loss"], rel=1e-6
    )


def test_documents_cannot_be_apart_without_an_end_token(tmp_path: Path) -> None:
    content = CONTENT | {"tokenizer": {"name": "char", "specials": []}, "data": {"separate": True}}
    source = tmp_path / "text.txt"
    source.write_text("the quick brown fox jumps\n" * 40)
    with pytest.raises(SettingError, match=r"data.separate = True: expected false: the tokenizer has no"):
        job.train(load_recipe(None, sources=[str(source)], base=content), tmp_path / "run")
    assert not (tmp_path / "run").exists()
