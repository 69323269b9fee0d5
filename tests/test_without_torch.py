"""The NumPy engine where torch, numba and matplotlib are not there; what it makes is read by torch, bit for bit."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
import torch

from tessera import job
from tessera.models import open_any
from tessera.numpy_building import open_source
from tessera.plan import make_plan
from tessera.recipe import Recipe, builder, load_recipe
from tessera.store.run import Run

ABSENT = ("torch", "numba", "llvmlite", "matplotlib")
COMMAND = f"""
import sys
sys.modules.update(dict.fromkeys({ABSENT}))  # whoever imports one of them gets a ModuleNotFoundError
from tessera.cli.main import main
sys.argv[0] = "tessera"
main()
"""
ROOT = Path(__file__).parents[1]
SHAPE = ["--preset", "tiny", "model.context=16"]
STEPS = ["train.steps=6", "train.eval_every=3", "train.save_every=3", "train.keep=9", "train.batch_size=4"]
BPE = ["tokenizer.vocab_size=300", "sample.sampling.max_tokens=8"]
RAMPS = [
    "data.batches=packed",
    "train.accumulate=2",
    'train.batch_ramp={name="linear",start=2,steps=4}',
    'train.context_ramp={name="doubling",start=4,steps=4}',
]
PACKAGES = ("numpy", "pydantic", "typer", "rich", "regex", "pyyaml")


def text_file(folder: Path) -> Path:
    path = folder / "my.txt"
    path.write_text("".join(f"{n} and {n} make {2 * n}. 日本\n" for n in range(300)), encoding="utf-8")
    return path


def tessera(*arguments: object, python: str = sys.executable, code: str = COMMAND, folder: Path) -> str:
    environment = dict(os.environ, PYTHONPATH=str(ROOT / "src")) if code is COMMAND else {"PATH": os.environ["PATH"]}
    done = subprocess.run(
        [python, "-c", code, *map(str, arguments)], capture_output=True, text=True, cwd=folder, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def recipe(text: Path, engine: str, *overrides: str) -> Recipe:
    given = [f"engine={engine}", "tokenizer.name=char", "model.context=16", *STEPS, *overrides]
    return load_recipe(None, given, sources=[str(text)], preset="tiny")


def metrics(path: Path, name: str = "loss") -> list[float]:
    with Run.open(path) as run:
        return [value for _, value in run.metrics(name)]


def checkpoint(path: Path, step: int | None = None) -> dict[str, torch.Tensor]:
    with Run.open(path) as run:
        return {name: each.clone() for name, each in run.checkpoints.read(step).tensors.items()}


def test_a_text_becomes_a_run_that_is_opened_again_and_that_torch_reads(tmp_path: Path) -> None:
    text, run = text_file(tmp_path), tmp_path / "run"
    tessera("train", text, "--engine", "numpy", "--out", run, *SHAPE, *STEPS, *BPE, folder=tmp_path)
    assert "No curves: matplotlib is not installed" in (run / "report.html").read_text()
    assert "run" in tessera("runs", "list", tmp_path, folder=tmp_path)
    assert "rows" in tessera("data", "read", run, folder=tmp_path)
    figures = json.loads(tessera("evaluate", run, "--json", folder=tmp_path))
    with Run.open(run) as opened:
        assert opened.recipe["engine"] == "numpy" and "torch" not in opened.info
        (noted,) = (each.value for each in opened.evaluations() if each.name == "validation_loss")
        assert len(opened.samples()) == 1
    assert figures["validation_loss"] == noted == metrics(run, "validation_loss")[-1]
    source = open_any(run)
    model, ids_BT = open_source(run), np.random.default_rng(0).integers(0, 300, (2, 16))
    by_hand = builder("numpy").build_model(job.resumed_recipe(run, []), model.n_vocab)
    by_hand.load(model.weights())
    with torch.no_grad():
        assert np.abs(source.build()(torch.from_numpy(ids_BT)).numpy() - by_hand.logits(ids_BT)).max() <= 1e-5


def test_text_is_prepared_for_it_and_torch_is_missed_in_words(tmp_path: Path) -> None:
    text, run, data = text_file(tmp_path), tmp_path / "run", tmp_path / "data"
    tessera("data", "prepare", text, "--out", data, "tokenizer=word", folder=tmp_path)
    with pytest.raises(AssertionError, match="engine = 'torch': expected numpy: torch is not installed"):
        tessera("train", data, "--out", run, folder=tmp_path)
    tessera("train", data, "--engine", "numpy", "--out", run, *SHAPE, *STEPS, "--json", folder=tmp_path)
    assert "286,880 parameters, 131,072 of them" in tessera("train", "--resume", run, "--dry-run", folder=tmp_path)


@pytest.mark.parametrize(
    "shape", [[], ["model.tied=true", "model.vocab_multiple=64"], ['model.attention=[{name="gqa",window=8},"gqa"]']]
)
def test_a_plan_counts_what_torch_counts(tmp_path: Path, shape: list[str]) -> None:
    ours, theirs = (make_plan(recipe(text_file(tmp_path), engine, *shape)) for engine in ("numpy", "torch"))
    for name in ("n_vocab", "n_params", "n_embedding_params", "tokens", "weights", "gradients", "device"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.optimizer == pytest.approx(theirs.optimizer, rel=0.01)  # which keeps the number of its step


@pytest.mark.parametrize("more", [["store=files"], ["store=sqlite", *RAMPS]], ids=["files", "sqlite and ramps"])
def test_each_engine_goes_on_from_the_other(tmp_path: Path, more: list[str]) -> None:
    text = text_file(tmp_path)
    begun = tmp_path / "begun"
    job.train(recipe(text, "numpy", *more), begun).run.close()
    whole, losses = checkpoint(begun), metrics(begun)
    job.resume(begun, step=3).run.close()
    again = checkpoint(begun)
    assert all(torch.equal(whole[name], again[name]) for name in whole) and metrics(begun) == losses
    job.resume(begun, ["engine=torch"], step=3).run.close()
    assert metrics(begun) == pytest.approx(losses, abs=1e-6)
    close = checkpoint(begun)
    assert close.keys() - whole.keys() == {"rng.torch", "rng.numpy"}
    assert all(torch.allclose(whole[name], close[name], atol=1e-5) for name in whole)
    job.resume(begun, ["engine=numpy"], step=3).run.close()  # the checkpoint that it went on from
    assert metrics(begun) == losses
    job.resume(begun, ["engine=numpy", "train.steps=8"], step=6).run.close()
    other = tmp_path / "other"
    job.train(recipe(text, "torch", *more, "train.steps=8"), other).run.close()
    expected = metrics(other)
    job.resume(other, ["engine=numpy"], step=3).run.close()  # from a checkpoint of torch
    assert metrics(other) == pytest.approx(expected, abs=1e-6)


def test_workers_are_one_process_but_for_rounding(tmp_path: Path) -> None:
    text = text_file(tmp_path)
    job.train(recipe(text, "numpy"), tmp_path / "one").run.close()
    job.train(recipe(text, "numpy", "train.workers=2"), tmp_path / "two").run.close()
    assert metrics(tmp_path / "two") == pytest.approx(metrics(tmp_path / "one"), abs=1e-5)


@pytest.mark.parametrize("command", [[], ["train"], ["runs"], ["data"], ["tokenizer"], ["generate"], ["chat"]])
def test_help_needs_none_of_it(command: list[str], tmp_path: Path) -> None:
    assert "Usage" in tessera(*command, "--help", folder=tmp_path)


@pytest.mark.slow
def test_in_an_environment_of_few_packages(tmp_path: Path) -> None:
    """Installed with --no-deps beside PACKAGES, and what these need."""
    text, run, folder = text_file(tmp_path), tmp_path / "run", tmp_path / "venv"
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    for what in (["--no-deps", str(ROOT)], PACKAGES):
        subprocess.run([python, "-m", "pip", "install", "--quiet", *what], check=True, timeout=600)
    absent = f"import importlib.util as i; assert not any(map(i.find_spec, {ABSENT})); "
    code = absent + "from tessera.cli.main import main; main()"
    given = ["--engine", "numpy", "--out", run, *SHAPE, *STEPS, *BPE]
    tessera("train", text, *given, python=python, code=code, folder=tmp_path)
    figures = json.loads(tessera("evaluate", run, "--json", python=python, code=code, folder=tmp_path))
    assert figures["validation_loss"] == metrics(run, "validation_loss")[-1]
