"""What the NumPy engine has not is refused when the recipe is read, by the name of the setting."""

from pathlib import Path

import pytest

from tessera import job
from tessera.errors import InputError, SettingError
from tessera.numpy_building import open_source
from tessera.plan import make_plan
from tessera.recipe import load_recipe
from tessera.store.run import Run

REFUSED = {
    "train.device=cuda": "train.device = 'cuda': expected auto or cpu with engine = numpy",
    "train.precision=bf16": "train.precision = 'bf16': expected auto or fp32",
    "train.compile=true": "train.compile = True: expected auto or false",
    "train.checkpointing=2": "train.checkpointing = 2: expected none",
    "train.ema=0.9": "train.ema = 0.9: expected none",
    "train.parallel=fsdp": "train.parallel = 'fsdp': expected ddp",
    "train.on_nonfinite=skip": "train.on_nonfinite = 'skip': expected stop",
    "train.on_spike=rewind": "train.on_spike = 'rewind': expected off or record",
    "train.threads=2": "train.threads = 2: expected 0",
    "objective=sft": "objective = 'sft': expected next-token",
    "adapt=lora": "adapt = 'lora': expected none",
    "optimizer.name=muon": r"optimizer has no 'muon' \(choices: adam, adamw, sgd\)",
    'optimizer.lr_scale={"blocks.6.*"=2.0}': "the model has no 'blocks.6",
    "optimizer.lr=-1.0": "lr = -1.0",
    "model.feed_forward=moe": "model.feed_forward has no 'moe'",
    "model.n_future=1": "model.n_future = 1: expected 0",
    "model.n_heads=0": "model.n_heads = 0: expected greater than 0",
    "model.n_heads=5": "model.d_model = 256",
    "engine=jax": "engine = 'jax': expected 'torch' or 'numpy'",
}


@pytest.mark.parametrize("override", REFUSED)
def test_what_it_has_not_is_an_error_that_names_the_setting(override: str) -> None:
    with pytest.raises(SettingError, match=REFUSED[override]):
        load_recipe(None, ["engine=numpy", override], sources=["my.txt"])


def test_rates_of_their_own_are_for_parameters_that_there_are() -> None:
    scaled = 'optimizer.lr_scale={"blocks.5.*"=2.0,embedding=0.5}'
    recipe = load_recipe(None, ["engine=numpy", scaled], sources=["my.txt"])
    assert make_plan(recipe, speed=lambda device: 1e9).optimizer > 0


def test_its_workers_are_not_torchs() -> None:
    assert load_recipe(None, ["engine=numpy", "train.workers=3"], sources=["my.txt"]).train.workers == 3
    with pytest.raises(SettingError, match=r"train\.workers = 3: expected 1 with the torch engine"):
        load_recipe(None, ["train.workers=3"], sources=["my.txt"])


def test_a_run_is_begun_from_a_run_and_from_nothing_else(tmp_path: Path) -> None:
    text = tmp_path / "my.txt"
    text.write_text("to be or not to be, that is the question. " * 40, encoding="utf-8")
    quick = ["engine=numpy", "train.steps=2", "train.batch_size=2", "schedule.warmup=1", "sample.prompts=[]"]
    shape = ["tokenizer=char", "model.context=16", "train.eval_every=0"]
    first = load_recipe(None, [*quick, *shape], sources=[str(text)], preset="tiny")
    job.train(first, tmp_path / "first").run.close()
    second = load_recipe(None, [*quick, f"base={tmp_path / 'first'}"], sources=[str(text)])
    made = job.train(second, tmp_path / "second")
    with made.run as run:
        begun = {each.step: each.value for each in run.evaluations() if each.name == "validation_loss"}
        assert [each.path for each in run.lineage()] == [tmp_path / "first"]
    with Run.open(tmp_path / "first") as run:
        reached = {each.step: each.value for each in run.evaluations() if each.name == "validation_loss"}
    assert begun[0] == reached[2] and begun[2] < begun[0]
    with pytest.raises(InputError, match="no run; with engine = numpy a model begins from one of tessera's runs"):
        open_source(text)
