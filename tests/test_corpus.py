"""Mixtures and packed documents from recipe to run: prepared, trained, gone on with, and told what was read."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tessera import job
from tessera.config import check
from tessera.corpus import reopen_data
from tessera.data.batch import IGNORE, Batch
from tessera.data.prepared import Prepared
from tessera.errors import InputError, SettingError, TesseraError
from tessera.objectives import NextToken
from tessera.reading import RowRead, what_was_read
from tessera.recipe import Recipe, load_recipe
from tessera.store.run import Run
from tessera.tokenizers import load_tokenizer

CONTENT: dict[str, Any] = {
    "seed": 11,
    "tokenizer": "byte",
    "model": {"d_model": 16, "n_layers": 1, "n_heads": 2, "d_ff": 32, "context": 16, "dropout": 0.1},
    "schedule": {"name": "constant", "warmup": 2},
    "train": {"steps": 10, "batch_size": 4, "accumulate": 2, "device": "cpu", "threads": 1, "precision": "fp32"}
    | {"eval_every": 5, "eval_tokens": 128, "save_every": 3},
    "sample": {"sampling": {"max_tokens": 4}},
}
KINDS = ("random", "epoch", "packed")


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    for name, n in (("red", 30), ("blue", 20)):
        (tmp_path / name).mkdir()
        for i in range(n):
            words = " ".join(f"{name}{(7 * i + k) % 23}" for k in range(3 + i % 9))
            (tmp_path / name / f"{i:02d}.txt").write_text(f"{words}.\n")
    return tmp_path


@pytest.fixture
def recipe(texts: Path) -> Callable[..., Recipe]:
    def make(
        *overrides: str, red: dict[str, Any] | None = None, blue: dict[str, Any] | None = None, **data: Any
    ) -> Recipe:
        mixture = [
            {"source": f"{texts}/red", "weight": 3} | (red or {}),
            {"source": [f"{texts}/blue/*.txt"], "weight": 1} | (blue or {}),
        ]
        return load_recipe(None, overrides, base=CONTENT | {"data": {"mixture": mixture, "validation": 0.2, **data}})

    return make


def run_of(recipe: Recipe, path: Path) -> job.Result:
    result = job.train(recipe, path)
    result.run.close()
    return result


def test_the_folder_has_each_source_by_itself(tmp_path: Path, recipe: Callable[..., Recipe]) -> None:
    result = run_of(recipe(), tmp_path / "run")
    prepared = Prepared.open(tmp_path / "run" / "data", verify=True)
    assert [(part.name, part.weight, part.epochs) for part in prepared.parts] == [("red", 3, None), ("blue", 1, None)]
    listed = list(prepared.documents())
    assert len(listed) == 50
    for half, whole in (("train", prepared.train), ("validation", prepared.validation)):
        shards = prepared.part_shards(half)  # type: ignore[arg-type]
        assert np.array_equal(np.concatenate([shard.tokens for shard in shards.values()]), whole.tokens)
        for name, shard in shards.items():
            text = result.tokenizer.decode(shard.tokens.tolist())
            own = [each for each in listed if (each["source"], each["half"]) == (name, half)]
            files = [Path(each["name"]).read_text() for each in own]
            assert text.split("<|endoftext|>")[:-1] == files
            assert [each["tokens"] for each in own] == [len(file.encode()) + 1 for file in files]
    held = sum(counts["validation"].n_bytes for counts in prepared.part_counts.values())
    assert held == len(prepared.validation_text())
    for counts in prepared.part_counts.values():
        assert counts["validation"].n_bytes / (held + 1) > 0.2  # each holds out its own


def test_the_loss_is_told_by_source(tmp_path: Path, recipe: Callable[..., Recipe]) -> None:
    result = run_of(recipe(), tmp_path / "run")
    assert result.figures
    assert set(job.sorted_out(result.figures)["sources"]) == {"red", "blue"}
    with Run.open(tmp_path / "run") as run:
        kept = {each.name: (each.value, each.detail["tokens"]) for each in run.evaluations() if "loss" in each.name}
        assert [step for step, _ in run.metrics("validation_loss/blue")] == [5, 10]
    total = sum(kept[f"validation_loss/{name}"][0] * kept[f"validation_loss/{name}"][1] for name in ("red", "blue"))
    assert kept["validation_loss"][0] == pytest.approx(total / kept["validation_loss"][1])
    again = job.evaluate(tmp_path / "run")
    assert again["sources"]["red"] == pytest.approx(kept["validation_loss/red"][0], rel=1e-6)


@pytest.mark.parametrize("batches", KINDS)
def test_cut_off_and_resumed_it_is_the_same_run(tmp_path: Path, recipe: Callable[..., Recipe], batches: str) -> None:
    whole = run_of(recipe(f"data.batches={batches}"), tmp_path / "whole")
    run_of(recipe(f"data.batches={batches}", "train.steps=4"), tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "data")  # it is made again
    result = job.resume(tmp_path / "cut", ["train.steps=10"])
    result.run.close()
    weights = [each.model.state_dict() for each in (whole, result)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert what_was_read(tmp_path / "cut").sources == what_was_read(tmp_path / "whole").sources


def text_of(row: RowRead) -> str:
    return "".join(stretch.text for stretch in row.stretches)


@pytest.mark.parametrize("mixed", [True, False], ids=["mixture", "one source"])
@pytest.mark.parametrize("batches", KINDS)
@pytest.mark.parametrize("changed", [(), ("train.batch_ramp={name='linear', start=1, steps=6}",)], ids=["", "ramp"])
def test_what_is_told_of_a_step_is_what_the_trainer_drew(
    tmp_path: Path,
    texts: Path,
    recipe: Callable[..., Recipe],
    monkeypatch: pytest.MonkeyPatch,
    batches: str,
    mixed: bool,
    changed: tuple[str, ...],
) -> None:
    """Every row of every step, and the totals, against what reached the model; with a resume and another batch size."""
    seen: list[Batch] = []
    forward = NextToken.forward

    def watched(self: NextToken, batch: Batch) -> Any:
        if self.training:
            seen.append(batch)
        return forward(self, batch)

    monkeypatch.setattr(NextToken, "forward", watched)
    settings = recipe(f"data.batches={batches}", "train.steps=6", *changed)
    if not mixed:
        plain = {"source": [f"{texts}/red"], "validation": 0.2, "batches": batches}
        settings = check(Recipe, settings.written() | {"data": plain})
    run_of(settings, tmp_path / "run")
    job.resume(tmp_path / "run", ["train.steps=10", "train.batch_size=3"]).run.close()
    tokenizer = load_tokenizer(tmp_path / "run" / "tokenizer.json")
    rows, tokens = dict.fromkeys(("red", "blue", "text"), 0), dict.fromkeys(("red", "blue", "text"), 0)
    for step in range(1, 11):
        micro_batches = seen[2 * (step - 1) : 2 * step]
        told = what_was_read(tmp_path / "run", step=step, rows=True)
        expected = []
        for number, batch in enumerate(micro_batches):
            for targets in batch.targets_BT:
                expected.append((number, tokenizer.decode(targets[targets != IGNORE].tolist())))
        assert [(row.micro_batch, text_of(row)) for row in told.rows] == expected
        for row in told.rows:
            for stretch in row.stretches:
                ids = [*tokenizer.encode(Path(stretch.document).read_text()), tokenizer.end_id]
                assert tokenizer.decode(ids[stretch.offset : stretch.offset + stretch.tokens]) == stretch.text
                assert mixed is (row.source != "text")
                assert row.source == "text" or row.source in stretch.document
            rows[row.source] += 1
            tokens[row.source] += sum(stretch.tokens for stretch in row.stretches)
        assert [source.name for source in told.sources] == (["red", "blue"] if mixed else ["text"])
        for source in told.sources:
            assert (source.rows, source.tokens) == (rows[source.name], tokens[source.name])


def test_a_prepared_mixture_is_a_source(tmp_path: Path, recipe: Callable[..., Recipe]) -> None:
    """Names, weights and epochs are those that it was prepared with."""
    direct = run_of(recipe(blue={"epochs": 2}), tmp_path / "direct")
    content = CONTENT | {"data": {"source": [str(tmp_path / "direct" / "data")]}}
    again = run_of(load_recipe(None, base=content), tmp_path / "again")
    weights = [each.model.state_dict() for each in (direct, again)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    with Run.open(tmp_path / "again") as run:
        kept = run.info["data_manifest"]
        assert [source["epochs"] for source in kept["sources"]] == [None, 2]
        assert (
            kept["documents_sha256"]
            == reopen_data(load_recipe(None, base=content), run, again.tokenizer).documents_sha256
        )
    meta = tmp_path / "direct" / "data" / "meta.json"
    changed = json.loads(meta.read_text())
    changed["mixture"][0]["asked"]["weight"] = 2.0
    meta.write_text(json.dumps(changed))
    with pytest.raises(InputError, match=r"is not the data that .* was trained on"):
        job.resume(tmp_path / "again", ["train.steps=12"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"blue": {"weight": 0}}, r"data.mixture.1.weight = 0: expected greater than 0"),
        ({"blue": {"weight": -1}}, r"data.mixture.1.weight = -1"),
        ({"red": {"weight": float("nan")}}, r"data.mixture.0.weight = nan"),
        ({"blue": {"epochs": 0}}, r"data.mixture.1.epochs = 0: expected greater than 0"),
        ({"blue": {"name": "red"}}, r"data.mixture.1.name = 'red': expected a name that no other source has"),
        ({"blue": {"name": "a/b"}}, r"data.mixture.1.name = 'a/b'"),
        ({"blue": {"wieght": 1}}, r"data.mixture.1 has no 'wieght'; did you mean 'weight'\?"),
        ({"blue": {"source": []}}, r"data.mixture.1.source = \[\]"),
        ({"source": ["x"]}, r"data.source = \['x'\]: expected none beside data.mixture"),
        ({"mixture": []}, r"data.source = \[\]: expected files, folders"),
        ({"blue": {"source": "nowhere"}}, r"data.mixture.1 \(nowhere\): nowhere: no such file, folder or named corpus"),
        ({"red": {"source": "python-stdlb"}}, r"data.mixture.0 \(python-stdlb\): .*did you mean 'python-stdlib'"),
        (
            {"batches": "packed", "tokenizer": {"name": "byte", "specials": []}},
            "data.batches = 'packed': expected random",
        ),
    ],
)
def test_bad_mixtures_are_refused_and_nothing_is_left(
    tmp_path: Path, recipe: Callable[..., Recipe], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(TesseraError, match=message):
        tokenizer = settings.pop("tokenizer", "byte")
        made = recipe(**settings)
        job.train(check(Recipe, made.written() | {"tokenizer": tokenizer}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_source_that_cannot_be_used_is_named_and_nothing_is_left(
    tmp_path: Path, texts: Path, recipe: Callable[..., Recipe]
) -> None:
    shutil.copytree(texts / "blue", texts / "twins")
    (texts / "empty").mkdir()
    (texts / "empty" / "a.txt").write_text("")
    (texts / "short").mkdir()
    for i in range(3):
        (texts / "short" / f"{i}.txt").write_text(f"{i}")
    (texts / "one.txt").write_text("one " * 100)
    (texts / "copy").mkdir()
    (texts / "copy" / "a.txt").write_text("one " * 100)
    (texts / "copy" / "b.txt").write_text("two " * 100)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"blue": {"source": f"{texts}/empty"}}, r"data.mixture.1 \(empty\): .*empty: no text in it"),
        ({"blue": {"source": f"{texts}/short"}}, "to train on in the source 'short'"),
        (
            {"blue": {"source": f"{texts}/one.txt"}, "split": "documents"},
            r"data.mixture.1 \(one\): one document cannot be split",
        ),
        (
            {"blue": {"source": f"{texts}/one.txt"}, "red": {"source": f"{texts}/copy"}, "validation": 0.45},
            "one: the mixture's other sources hold the same text|copy: the mixture's other sources",
        ),
        (
            {"blue": {"epochs": 1}, "red": {"epochs": 2}, "train.steps": 900},
            r"train.steps = 900: expected at most \d+, or more epochs of a source: data.mixture has [\d,]+ rows of 16 "
            r"tokens in all its epochs, and the run wants 7,200",
        ),
    ]
    for settings, message in cases:
        steps = settings.pop("train.steps", 10)
        with pytest.raises((InputError, SettingError), match=message):
            job.train(recipe(f"train.steps={steps}", **settings), tmp_path / "run")
        assert not (tmp_path / "run").exists(), message


def test_a_text_in_two_sources_is_held_out_in_both_or_in_neither(
    tmp_path: Path, texts: Path, recipe: Callable[..., Recipe]
) -> None:
    for i in range(5, 15):
        shutil.copy(texts / "red" / f"{i:02d}.txt", texts / "blue" / f"red{i}.txt")
    run_of(recipe(), tmp_path / "run")
    halves: dict[str, set[str]] = {}
    for each in Prepared.open(tmp_path / "run" / "data").documents():
        halves.setdefault(each["sha256"], set()).add(each["half"])
    assert len(halves) == 50
    assert all(len(half) == 1 for half in halves.values())


@pytest.mark.parametrize("batches", ["epoch", "packed"])
def test_a_context_ramp_learns_the_same_tokens(tmp_path: Path, recipe: Callable[..., Recipe], batches: str) -> None:
    ramp = "train.context_ramp={name='doubling', start=4, steps=6}"
    run_of(recipe(f"data.batches={batches}", ramp), tmp_path / "ramp")
    run_of(recipe(f"data.batches={batches}"), tmp_path / "plain")
    assert what_was_read(tmp_path / "ramp").sources == what_was_read(tmp_path / "plain").sources


def test_a_text_that_the_tokenizer_cannot_read_is_named(tmp_path: Path) -> None:
    """In training the tokenizer, and in encoding with one that is there."""
    folder = tmp_path / "series"
    folder.mkdir()
    for i in range(8):
        (folder / f"{i}.txt").write_text("\n".join(str(i + k / 7) for k in range(40)))
    content = CONTENT | {"tokenizer": {"name": "bins", "n_bins": 16}, "data": {"source": [str(folder)]}}
    run_of(load_recipe(None, ["train.steps=2"], base=content), tmp_path / "good")
    (folder / "5.txt").write_text("1.0\n2.0\nthree\n" + "4\n" * 30)
    (folder / "3.txt").write_text("1.0\n2.0\nthree\n" + "5\n" * 30)
    with pytest.raises(InputError, match=r"series/[35]\.txt: line 3, character 1: 'three' is no finite number"):
        job.train(load_recipe(None, base=content), tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


def test_a_run_of_before_this_was_noted_says_so(tmp_path: Path, recipe: Callable[..., Recipe]) -> None:
    run_of(recipe(), tmp_path / "run")
    with pytest.raises(InputError, match="it is not noted what step 11 read"):
        what_was_read(tmp_path / "run", step=11)


def test_a_text_that_has_changed_is_named(tmp_path: Path, texts: Path, recipe: Callable[..., Recipe]) -> None:
    """Where the run's own shards are gone: one that has another size by it, else all that it may be."""
    run_of(recipe(), tmp_path / "run")
    changed = texts / "blue" / "03.txt"
    for text, message in (
        (changed.read_text() + "more\n", r"^[^;]*blue/\*\.txt \(was [\d,]+ bytes in 20 documents, is [\d,]+ in 20\): "),
        (changed.read_text().replace("blue", "blub"), r"red, .*blue/\*\.txt: the text has changed since the run"),
    ):
        shutil.rmtree(tmp_path / "run" / "data")
        before = changed.read_text()
        changed.write_text(text)
        with pytest.raises(InputError, match=message):
            job.resume(tmp_path / "run", ["train.steps=12"])
        assert not (tmp_path / "run" / "data").exists()
        changed.write_text(before)
        job.resume(tmp_path / "run", ["train.steps=10"]).run.close()
