"""The main job on a small text: what it leaves behind, how it goes on, and that a failure leaves nothing."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from tessera import job
from tessera.data.division import divide
from tessera.data.documents import read_documents
from tessera.data.prepare import prepare
from tessera.data.prepared import Prepared
from tessera.errors import DivergedError, InputError, SettingError, TesseraError
from tessera.lm import LM
from tessera.recipe import Recipe, load_recipe
from tessera.store.run import Run
from tessera.tokenizers import load_tokenizer, train_tokenizer

HELD_OUT = "ÄÖÜ zyx9 the end nobody has read\n" * 15
TEXT = "".join(f"{i}: the quick brown fox jumps over {i * i % 87} lazy dogs\n" for i in range(160)) + HELD_OUT

CONTENT: dict[str, Any] = {
    "seed": 11,
    "tokenizer": "char",
    "data": {"validation": 0.1},
    "model": {"d_model": 16, "n_layers": 1, "n_heads": 2, "d_ff": 32, "context": 16, "dropout": 0.1},
    "schedule": {"name": "constant", "warmup": 2},
    "train": {"precision": "fp32", "steps": 8, "batch_size": 4, "device": "cpu", "threads": 1}
    | {"eval_every": 4, "eval_tokens": 128, "sample_every": 4, "save_every": 3, "keep": 2},
    "sample": {"prompts": ["the ", ""], "sampling": {"max_tokens": 6}},
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def recipe(source: Path) -> Callable[..., Recipe]:
    def make(*overrides: str) -> Recipe:
        return load_recipe(None, overrides, sources=[str(source)], base=CONTENT)

    return make


def trained(recipe: Recipe, path: Path) -> job.Result:
    result = job.train(recipe, path)
    result.run.close()
    return result


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    with Run.open(path) as run:
        return run.checkpoints.read(prefix="model").tensors


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_run_folder_has_what_it_promises(tmp_path: Path, recipe: Callable[..., Recipe]) -> None:
    result = trained(recipe("tokenizer=byte"), tmp_path / "run")
    path = tmp_path / "run"
    assert names_in(path) == ["checkpoints", "data", "recipe.json", "report.html", "run.db", "tokenizer.json"]
    assert names_in(path / "checkpoints") == ["step-000006", "step-000008"]
    assert json.loads((path / "recipe.json").read_text()) == recipe("tokenizer=byte").written()
    assert load_tokenizer(path / "tokenizer.json").fingerprint == result.tokenizer.fingerprint
    page = (path / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 1
    assert f"{result.figures['bits_per_byte']:.3f}" in page
    with Run.open(path) as run:
        info = run.info
        assert [step for step, _ in run.metrics("loss")] == list(range(1, 9))
        assert [step for step, _ in run.metrics("validation_loss")] == [4, 8]
        assert [(sample.step, sample.prompt) for sample in run.samples()] == [
            (4, "the "),
            (4, ""),
            (8, "the "),
            (8, ""),
        ]
    assert info["seed"] == 11
    assert info["torch"] == torch.__version__
    assert info["threads"] == 1
    assert info.keys() >= {"tessera", "numpy", "python", "platform", "git_commit", "data_sha256"}


def test_the_summary_is_what_the_run_recorded(tmp_path: Path, recipe: Callable[..., Recipe]) -> None:
    result = trained(recipe("tokenizer=byte"), tmp_path / "run")
    summary = json.loads(json.dumps(result.summary()))
    with Run.open(tmp_path / "run") as run:
        recorded = {evaluation.name: evaluation.value for evaluation in run.evaluations()}
        assert {evaluation.step for evaluation in run.evaluations()} == {8}
    assert summary["outcome"] == "finished"
    assert summary["step"] == 8
    assert summary["n_params"] == result.model.n_params
    figures = {name: summary[name] for name in ("validation_loss", "bits_per_byte")} | summary["compressors"]
    assert figures == recorded
    assert recorded.keys() == {"validation_loss", "bits_per_byte", "xz -9e", "bz2 -9"}
    assert summary["seconds"].keys() >= {"forward and backward", "optimizer", "evaluation", "checkpoints"}


def test_evaluating_again_gives_the_recorded_figures(tmp_path: Path, recipe: Callable[..., Recipe]) -> None:
    result = trained(recipe("tokenizer=byte"), tmp_path / "run")
    again = job.evaluate(tmp_path / "run")
    for name in ("validation_loss", "bits_per_byte", "compressors"):
        assert again[name] == result.summary()[name]
    earlier = job.evaluate(tmp_path / "run", step=6)
    assert earlier["validation_loss"] != again["validation_loss"]


def test_tokens_that_lose_some_of_the_text_have_no_bits_per_byte(tmp_path: Path, recipe: Callable[..., Recipe]) -> None:
    """The end of the text has characters that the vocabulary, made of the rest, has not: they are all one token."""
    result = trained(recipe(), tmp_path / "run")
    assert result.figures
    assert (result.figures.get("bits_per_byte"), job.sorted_out(result.figures)["compressors"]) == (None, {})
    assert job.evaluate(tmp_path / "run")["bits_per_byte"] is None
    with Run.open(tmp_path / "run") as run:
        assert {evaluation.name for evaluation in run.evaluations()} == {"validation_loss"}


def test_the_held_out_text_is_never_learned_from(tmp_path: Path, recipe: Callable[..., Recipe]) -> None:
    result = trained(recipe(), tmp_path / "run")
    prepared, tokenizer = Prepared.open(tmp_path / "run" / "data"), result.tokenizer
    held_out = prepared.validation_text().decode()
    learned = tokenizer.decode(prepared.train.tokens.tolist()).replace("<|endoftext|>", "")
    assert learned + held_out == TEXT
    assert 0.08 < len(held_out.encode()) / len(TEXT.encode()) < 0.12
    assert "nobody" in held_out
    assert "nobody" not in learned
    alphabet = {token for _, token in tokenizer.vocabulary()}
    assert "Ä".encode() not in alphabet  # the tokenizer has not seen it either
    assert b"q" in alphabet


def test_the_same_recipe_gives_the_same_run(tmp_path: Path, recipe: Callable[..., Recipe]) -> None:
    first = trained(recipe("tokenizer=byte"), tmp_path / "a")
    torch.manual_seed(5)
    second = trained(recipe("tokenizer=byte"), tmp_path / "b")
    assert same(weights_of(tmp_path / "a"), weights_of(tmp_path / "b"))
    assert first.figures["bits_per_byte"] == second.figures["bits_per_byte"]
    third = trained(recipe("seed=12", "tokenizer=byte"), tmp_path / "c")
    assert third.figures["bits_per_byte"] != first.figures["bits_per_byte"]


def test_what_is_watched_changes_nothing(tmp_path: Path, recipe: Callable[..., Recipe]) -> None:
    """Validation and samples on the way, or none: the same weights, dropout and all."""
    trained(recipe(), tmp_path / "a")
    trained(recipe("train.eval_every=1", "train.sample_every=1", "train.save_every=1"), tmp_path / "b")
    assert same(weights_of(tmp_path / "a"), weights_of(tmp_path / "b"))


def test_a_run_in_one_file_opens_from_a_copy_of_it(tmp_path: Path, recipe: Callable[..., Recipe]) -> None:
    trained(recipe("store=sqlite"), tmp_path / "run")
    trained(recipe(), tmp_path / "as-files")
    assert names_in(tmp_path / "run") == ["data", "report.html", "run.db"]
    (tmp_path / "elsewhere").mkdir()
    copy = tmp_path / "elsewhere" / "copied.db"
    shutil.copy(tmp_path / "run" / "run.db", copy)
    texts = [
        LM.load(path).generate("the ", max_tokens=20, seed=3)
        for path in (tmp_path / "run", copy, tmp_path / "as-files")
    ]
    assert texts[0] == texts[1] == texts[2]
    assert len(texts[0]) >= 15
    assert same(weights_of(copy), weights_of(tmp_path / "as-files"))
    tables = {name for (name,) in sqlite3.connect(copy).execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert tables >= {"settings", "vocabulary", "metrics", "tensors"}


@pytest.mark.parametrize("store", ["files", "sqlite"])
def test_resumed_for_longer_it_is_the_longer_run(tmp_path: Path, recipe: Callable[..., Recipe], store: str) -> None:
    trained(recipe(f"store={store}"), tmp_path / "short")
    result = job.resume(tmp_path / "short", ["train.steps=14"])
    result.run.close()
    assert result.step == 14
    trained(recipe(f"store={store}", "train.steps=14"), tmp_path / "long")
    assert same(weights_of(tmp_path / "short"), weights_of(tmp_path / "long"))
    with Run.open(tmp_path / "short") as short, Run.open(tmp_path / "long") as long:
        assert short.metrics("loss") == long.metrics("loss")
        assert short.recipe == long.recipe
        at_end = [sample for sample in short.samples() if sample.step == 14]
        assert at_end == [sample for sample in long.samples() if sample.step == 14]


def test_resumed_from_an_earlier_step_the_later_ones_are_made_again(
    tmp_path: Path, recipe: Callable[..., Recipe]
) -> None:
    trained(recipe(), tmp_path / "run")
    before = weights_of(tmp_path / "run")
    with Run.open(tmp_path / "run") as run:
        losses = run.metrics("loss")
    result = job.resume(tmp_path / "run", step=6)
    assert result.run.metrics("loss") == losses
    result.run.close()
    assert same(weights_of(tmp_path / "run"), before)
    with pytest.raises(InputError, match=r"has no step 7 \(steps: 6, 8\)"):
        job.resume(tmp_path / "run", step=7)
    job.resume(tmp_path / "run").run.close()  # the refused one has let go of the run


def test_a_run_without_a_checkpoint_begins_again(tmp_path: Path, recipe: Callable[..., Recipe]) -> None:
    trained(recipe(), tmp_path / "whole")

    class Stopping(job.Watcher):
        def steps(self) -> Any:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        job.train(recipe(), tmp_path / "run", watcher=Stopping())
    job.resume(tmp_path / "run").run.close()
    assert same(weights_of(tmp_path / "run"), weights_of(tmp_path / "whole"))


def test_a_resumed_run_keeps_what_it_trains(tmp_path: Path, recipe: Callable[..., Recipe]) -> None:
    trained(recipe(), tmp_path / "run")
    for assignment in ("model.d_model=32", "seed=3", "data.validation=0.2", "optimizer.lr=1"):
        with pytest.raises(InputError, match=r"resumed run takes train\.\*"):
            job.resume(tmp_path / "run", [assignment])
    with pytest.raises(InputError, match="no such run"):
        job.resume(tmp_path / "nothing")


def test_lost_data_is_made_again_and_proved(tmp_path: Path, recipe: Callable[..., Recipe], source: Path) -> None:
    trained(recipe(), tmp_path / "run")
    trained(recipe("train.steps=10"), tmp_path / "long")
    shutil.rmtree(tmp_path / "run" / "data")
    job.resume(tmp_path / "run", ["train.steps=10"]).run.close()
    assert same(weights_of(tmp_path / "run"), weights_of(tmp_path / "long"))

    shutil.rmtree(tmp_path / "run" / "data")
    source.write_text(TEXT.replace("quick", "QUICK"), encoding="utf-8")
    with pytest.raises(InputError, match=r"text\.txt.* has changed since the run was started"):
        job.resume(tmp_path / "run", ["train.steps=12"])
    assert not (tmp_path / "run" / "data").exists()
    with Run.open(tmp_path / "run") as run:
        assert run.recipe["train"]["steps"] == 10
    source.write_text(TEXT, encoding="utf-8")
    job.resume(tmp_path / "run", ["train.steps=12"]).run.close()


def test_other_data_in_its_place_is_refused(tmp_path: Path, recipe: Callable[..., Recipe], source: Path) -> None:
    """The same tokenizer, another text: the shards are in order, but they are not those of the run."""
    result = trained(recipe(), tmp_path / "run")
    source.write_text(TEXT.replace("quick", "brown"), encoding="utf-8")
    shutil.rmtree(tmp_path / "run" / "data")
    prepare(divide(read_documents([str(source)]), seed=11), result.tokenizer, tmp_path / "run" / "data")
    with pytest.raises(InputError, match="not the data"):
        job.resume(tmp_path / "run", ["train.steps=10"])
    with pytest.raises(InputError, match="not the data"):
        job.evaluate(tmp_path / "run")


@pytest.mark.parametrize("store", ["files", "sqlite"])
def test_a_folder_that_exists_is_not_overwritten(tmp_path: Path, recipe: Callable[..., Recipe], store: str) -> None:
    trained(recipe(f"store={store}"), tmp_path / "run")
    before = weights_of(tmp_path / "run")
    with pytest.raises(InputError, match="exists: choose another --out, or go on with it by --resume"):
        job.train(recipe("seed=12"), tmp_path / "run")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("notes", "file"):
        with pytest.raises(InputError, match="exists"):
            job.train(recipe(), tmp_path / name)
    assert names_in(tmp_path / "notes") == ["mine.txt"]
    assert same(weights_of(tmp_path / "run"), before)


@pytest.mark.parametrize("existed", [False, True])
@pytest.mark.parametrize(
    ("overrides", "error", "what"),
    [
        (["data.source=['missing.txt']"], InputError, "missing.txt"),
        (["model.context=100000"], SettingError, "model.context"),
        (["tokenizer={name='bpe', vocab_size=60000}"], TesseraError, "vocab_size"),
        (["model.d_model=15"], SettingError, "model.d_model"),
        (["model.attention.n_kv_heads=3"], SettingError, "n_kv_heads"),
        (["train.device='cuda:77'"], SettingError, "train.device"),
    ],
)
def test_a_job_that_cannot_begin_leaves_nothing_behind(
    tmp_path: Path,
    recipe: Callable[..., Recipe],
    overrides: list[str],
    error: type[TesseraError],
    what: str,
    existed: bool,
) -> None:
    out = tmp_path / "out"
    if existed:
        out.mkdir()
    with pytest.raises(error, match=what):
        job.train(recipe(*overrides), out)
    assert out.exists() == existed
    assert not existed or names_in(out) == []


def test_a_text_that_cannot_be_used_leaves_nothing_behind(
    tmp_path: Path, recipe: Callable[..., Recipe], source: Path
) -> None:
    for content in (b"", b"a", b"abc \xff def\n" * 50, bytes(range(256)) * 20):
        source.write_bytes(content)
        with pytest.raises(InputError, match=r"text\.txt"):
            job.train(recipe(), tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_a_run_that_diverges_keeps_its_last_checkpoint(tmp_path: Path, recipe: Callable[..., Recipe]) -> None:
    wild = recipe("optimizer={name='sgd', lr=1e30}", "train.clip=none", "train.save_every=1")
    with pytest.raises(DivergedError, match=r"step \d: the .*"):
        job.train(wild, tmp_path / "run")
    with Run.open(tmp_path / "run", train=True) as run:  # the lock is free
        tensors = run.checkpoints.read(prefix="model").tensors
        assert len(run.metrics("loss")) >= 1
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())


def test_a_run_out_of_time_is_measured_and_goes_on(tmp_path: Path, recipe: Callable[..., Recipe]) -> None:
    trained(recipe(), tmp_path / "whole")
    stopped = trained(recipe("train.max_minutes=1e-9"), tmp_path / "run")
    assert stopped.outcome == "out of time"
    assert stopped.step == 1
    assert stopped.figures
    resumed = job.resume(tmp_path / "run", ["train.max_minutes=none"])
    resumed.run.close()
    assert resumed.outcome == "finished"
    assert same(weights_of(tmp_path / "run"), weights_of(tmp_path / "whole"))


def test_a_prepared_folder_is_a_source(tmp_path: Path, recipe: Callable[..., Recipe], source: Path) -> None:
    trained(recipe(), tmp_path / "from-text")
    tokenizer = train_tokenizer("char", divide(read_documents([str(source)]), seed=11).train_texts())
    folder = tmp_path / "prepared"
    prepare(divide(read_documents([str(source)]), seed=11), tokenizer, folder)
    tokenizer.save(folder / "tokenizer.json")
    source.unlink()

    prepared = recipe(f"data.source=['{folder}']")
    result = trained(prepared, tmp_path / "run")
    assert names_in(tmp_path / "run") == ["checkpoints", "recipe.json", "report.html", "run.db", "tokenizer.json"]
    assert same(weights_of(tmp_path / "run"), weights_of(tmp_path / "from-text"))
    assert job.evaluate(tmp_path / "run")["bits_per_byte"] == result.figures.get("bits_per_byte")
    job.resume(tmp_path / "run", ["train.steps=10"]).run.close()
    (folder / "tokenizer.json").unlink()
    with pytest.raises(TesseraError, match=r"tokenizer\.json"):
        job.train(prepared, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_without_out_runs_are_numbered(
    tmp_path: Path, recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        result = job.train(recipe("name=mine", "train.steps=1"))
        result.run.close()
        assert result.run.path == Path("runs") / f"mine-{number}"


def test_the_watcher_sees_the_job_go_by(tmp_path: Path, recipe: Callable[..., Recipe]) -> None:
    seen: dict[str, list[Any]] = {"say": [], "phase": [], "sample": [], "step": []}

    class Noting(job.Watcher):
        def say(self, line: str) -> None:
            seen["say"].append(line)

        def phase(self, what: str) -> Any:
            seen["phase"].append(what)
            return super().phase(what)

        def steps(self) -> Any:
            return nullcontext(lambda progress: seen["step"].append(progress.step))

        def sample(self, prompt: str, pieces: Any) -> str:
            text = super().sample(prompt, pieces)
            seen["sample"].append((prompt, text))
            return text

    def measure(result: job.Result) -> None:
        result.extra["mine"] = 0.5

    result = job.train(recipe(), tmp_path / "run", watcher=Noting(), measure=measure)
    assert seen["step"] == list(range(1, 9))
    assert seen["sample"] == [(s.prompt, s.text) for s in result.run.samples() if s.step == 8]
    assert any("held out for validation" in line for line in seen["say"])
    assert any("parameters, 8 steps of 64 tokens" in line for line in seen["say"])
    assert [what.split()[0] for what in seen["phase"]] == ["read", "train", "write", "measure", "measure", "write"]
    assert result.summary()["mine"] == 0.5
    result.run.close()
