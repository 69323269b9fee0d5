"""Recipes: what wins over what, that every mistake is told before anything starts, and the recipes that are shipped."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tessera import job
from tessera.building import build_model, build_optimizer, pick_device
from tessera.cli.train import toml_lines
from tessera.config import Spec, check, flat
from tessera.errors import InputError, SettingError
from tessera.model.presets import PRESETS, depth_settings
from tessera.model.settings import DecoderSettings
from tessera.recipe import Recipe, load_recipe

RECIPES = Path(__file__).parents[1] / "recipes"
ABLATIONS = {"no-norm": "model.norm", "post-norm": "model.placement", "no-positions": "model.position"}
TEXT = "".join(f"{i}: the quick brown fox jumps over {i * i % 87} lazy dogs\n" for i in range(120))
UNUSUAL = {
    "name": "a-b.c_1",
    "seed": 7,
    "store": "sqlite",
    "data": {"source": ["a b.txt", 'qu"ote\\.txt', "line\nbreak", "del\x7f", "ä.txt"], "batches": {"name": "epoch"}},
    "tokenizer": {"name": "bpe", "vocab_size": 300, "pattern": "gpt2", "specials": {"<|endoftext|>": 999}},
    "model": {"attention": {"name": "gqa", "n_kv_heads": 2, "window": 8}, "d_ff": 96, "dropout": 0.25},
    "optimizer": {"name": "sgd", "lr": 1e-7, "momentum": 0.9},
    "schedule": {"name": "wsd", "curve": "linear"},
    "train": {"clip": None, "eval_tokens": None, "max_minutes": 1.5},
    "sample": {"prompts": ["", "\t\n"], "sampling": {"stop": ["\n\n"], "seed": 3}},
}


def recipe_of(*overrides: str, **arguments: Any) -> Recipe:
    return load_recipe(None, overrides, sources=["my.txt"], **arguments)


def test_all_but_the_source_has_a_default() -> None:
    recipe = recipe_of()
    assert recipe.data.source == ["my.txt"]
    assert recipe.optimizer.name == "adamw"
    with pytest.raises(SettingError, match=r"data = None: expected a value"):
        load_recipe()


@pytest.mark.parametrize("content", [{"data": {"source": ["x"]}}, UNUSUAL])
def test_what_is_written_reads_back_the_same(tmp_path: Path, content: dict[str, Any]) -> None:
    recipe = check(Recipe, content)
    written = json.loads(json.dumps(recipe.written()))
    texts = {
        "r.json": json.dumps(written),
        "r.toml": "\n".join(toml_lines(written)),
        "r.yaml": yaml.safe_dump(written),
    }
    for name, text in texts.items():
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        read = load_recipe(path)
        assert read == recipe
        assert read.written() == written


def test_what_comes_later_wins(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('seed = 2\n[data]\nsource = ["file"]\n[model]\nn_layers = 3\nd_model = 24\n', encoding="utf-8")
    base = {"name": "base", "seed": 1, "model": {"n_heads": 2, "n_layers": 1}}
    recipe = load_recipe(path, base=base)
    shape = (recipe.name, recipe.seed, recipe.model.n_heads, recipe.model.n_layers, recipe.model.d_model)
    assert shape == ("base", 2, 2, 3, 24)
    assert load_recipe(path, base=base, sources=["mine"]).data.source == ["mine"]
    assert load_recipe(path, ["data.source=other"], base=base, sources=["mine"]).data.source == ["other"]
    assert load_recipe(path, preset="tiny").model.n_layers == PRESETS["tiny"]["n_layers"]
    assert load_recipe(path, ["model.n_layers=9"], preset="tiny").model.n_layers == 9


def test_a_piece_of_another_name_replaces_the_whole_piece(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('optimizer = {name = "sgd", lr = 0.5}\n[data]\nsource = "x"\n', encoding="utf-8")
    base = {"optimizer": {"name": "adamw", "lr": 0.1, "betas": [0.5, 0.6]}}
    assert load_recipe(path, base=base).optimizer == Spec("sgd", {"lr": 0.5})
    path.write_text('optimizer = {name = "adamw", lr = 0.5}\n[data]\nsource = "x"\n', encoding="utf-8")
    assert load_recipe(path, base=base).optimizer == Spec("adamw", {"lr": 0.5, "betas": (0.5, 0.6)})


def test_a_setting_of_a_default_piece_keeps_the_rest_of_it() -> None:
    usual, changed = recipe_of().optimizer, recipe_of("optimizer.lr=3e-4").optimizer
    assert changed == Spec("adamw", {**usual.settings, "lr": 3e-4})
    assert recipe_of("model.norm.eps=1e-6").model.norm == Spec("rms", {"eps": 1e-6})


@pytest.mark.parametrize("name", PRESETS)
def test_each_preset_is_a_recipes_model(name: str) -> None:
    assert recipe_of(preset=name).model == check(DecoderSettings, PRESETS[name])


@pytest.mark.parametrize("depth", [1, 2, 4, 12])
def test_depth_sets_all_that_follows_from_it(depth: int) -> None:
    written = recipe_of(depth=depth).written()
    for group, settings in depth_settings(depth).items():
        assert settings.items() <= written[group].items()
    assert recipe_of("train.steps=5", depth=depth).train.steps == 5


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.n_layer=3", "model has no 'n_layer'; did you mean 'n_layers'? (choices: "),
        ("modle.n_layers=3", "the recipe has no 'modle'; did you mean 'model'? (choices: "),
        ("model.attention.n_kv_head=2", "model.attention (gqa) has no 'n_kv_head'; did you mean 'n_kv_heads'? (choice"),
        ("model.norm=rmsnorm", "model.norm has no 'rmsnorm'"),
        ("model.attention.d_model=3", "model.attention (gqa) has no 'd_model'"),
        ("model.placement=middle", "model.placement = 'middle': expected 'pre', 'post', 'sandwich' or 'parallel'"),
        ("model.n_heads=3", "model.d_model = 256: expected a multiple of n_heads = 3"),
        ("model.attention.n_kv_heads=3", "n_kv_heads = 3: expected a divisor of n_heads = 4"),
        ("model.norm.eps=-1", "eps = -1.0: expected a positive number"),
        ("model.context=0", "model.context = 0: expected greater than 0"),
        ("model.dropout=1.0", "model.dropout = 1.0: expected less than 1"),
        ("optimizer=adamx", "optimizer has no 'adamx'; did you mean 'adam"),
        ("optimizer.lr=-1", "lr = -1.0: expected"),
        ("optimizer.lr=fast", "optimizer.lr = 'fast': expected a valid number"),
        ("optimizer.betas=[0.9, 1.5]", "betas[1] = 1.5: expected"),
        ('optimizer={name = "adamw"}', "optimizer.lr = None: expected a value: 'adamw' needs it"),
        ("schedule=cosin", "schedule has no 'cosin'; did you mean 'cosine'?"),
        ("schedule.warmups=3", "schedule (cosine) has no 'warmups'; did you mean 'warmup'?"),
        ("schedule.floor=2", "floor = 2.0: expected a share of the peak rate"),
        ("objective=next-tokens", "objective has no 'next-tokens'; did you mean 'next-token'?"),
        ("tokenizer=bpee", "tokenizer has no 'bpee'; did you mean 'bpe'?"),
        ("tokenizer.vocab=3", "tokenizer (bpe) has no 'vocab'; did you mean 'vocab_size'?"),
        ("data.batches=randm", "data.batches has no 'randm'; did you mean 'random'?"),
        ("data.validation=0.5", "data.validation = 0.5: expected less than 0.5"),
        ("data.source=[]", "data.source = []: expected"),
        ("train.steps=many", "train.steps = 'many': expected a valid integer"),
        ("train.clip=0", "train.clip = 0: expected greater than 0"),
        ("store=postgres", "store = 'postgres': expected 'files' or 'sqlite'"),
        ("name=a/b", "name = 'a/b': expected"),
        ("sample.sampling.top_p=2", "sample.sampling.top_p = 2: expected less than or equal to 1"),
        ("sample.sampling.temprature=2", "sample.sampling has no 'temprature'; did you mean 'temperature'?"),
    ],
)
def test_a_mistake_is_told_when_the_recipe_is_read(override: str, said: str) -> None:
    with pytest.raises(SettingError) as caught:
        recipe_of(override)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_none_on_the_command_line_is_a_piece_or_nothing() -> None:
    recipe = recipe_of("model.norm=none", "model.position=none", "train.clip=none", "sample.sampling.top_p=none")
    assert (recipe.model.norm, recipe.model.position) == (Spec("none"), Spec("none"))
    assert (recipe.train.clip, recipe.sample.sampling.top_p) == (None, None)


def test_a_preset_that_is_not_there_is_told() -> None:
    with pytest.raises(SettingError, match=r"--preset has no 'gpt-2'; did you mean 'gpt2'"):
        recipe_of(preset="gpt-2")
    with pytest.raises(SettingError, match="depth = 0: expected at least 1"):
        recipe_of(depth=0)


def test_a_device_that_is_not_there_is_told() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    with pytest.raises(SettingError, match=r"train\.device = 'gpuu': expected a device of this machine"):
        pick_device("gpuu")


def test_the_seed_alone_decides_the_first_weights() -> None:
    small = ("model.d_model=16", "model.n_heads=2", "model.n_layers=1")
    one, same, other = (build_model(recipe_of(*small, f"seed={seed}"), 40) for seed in (3, 3, 4))
    assert torch.equal(one.head_weight, same.head_weight)
    assert not torch.equal(one.head_weight, other.head_weight)


def test_decay_falls_on_matrices_only() -> None:
    recipe = recipe_of("model.d_model=16", "model.n_heads=2", "model.n_layers=1", "optimizer.weight_decay=0.3")
    model = build_model(recipe, 40)
    optimizer = build_optimizer(recipe, model)  # type: ignore[arg-type]
    decays = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {parameter.ndim >= 2: decay for parameter, decay in decays.items()} == {True: 0.3, False: 0.0}
    assert len(decays) == len(list(model.parameters()))


def test_an_unreadable_recipe_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_recipe(tmp_path / "none.toml")


def test_every_recipe_says_what_it_shows_and_has_its_name() -> None:
    found = {path.stem for path in RECIPES.glob("*.toml")}
    others = {"gpt2-ddp", "gpt2-xl-fsdp", "smollm2-sft", "smollm2-dpo"}
    assert found == {"baseline", "shakespeare-char", "shakespeare-fast", "time-series", *others, *ABLATIONS}
    for name in found:
        path = RECIPES / f"{name}.toml"
        assert load_recipe(path, sources=["text.txt"]).name == name
        comment = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("# ")]
        assert len(comment) >= 3
    for name in ABLATIONS:
        assert "Shows" in (RECIPES / f"{name}.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize(("name", "changed"), ABLATIONS.items())
def test_an_ablation_changes_one_setting_of_the_baseline(name: str, changed: str) -> None:
    baseline, ablation = (dict(flat(load_recipe(RECIPES / f"{n}.toml").written())) for n in ("baseline", name))
    different = {key for key in baseline.keys() | ablation.keys() if baseline.get(key) != ablation.get(key)}
    assert different in ({"name", changed}, {"name", f"{changed}.name"})


def test_shakespeare_char_is_nanogpts_setting() -> None:
    recipe = load_recipe(RECIPES / "shakespeare-char.toml")
    shape, train = recipe.model, recipe.train
    assert (shape.n_layers, shape.n_heads, shape.d_model, shape.context, shape.dropout) == (4, 4, 128, 64, 0.0)
    assert (shape.position.name, shape.norm.name, shape.bias, shape.tied) == ("learned", "layer", False, True)
    assert (train.batch_size, train.accumulate, train.steps, train.clip) == (12, 1, 2000, 1.0)
    assert recipe.optimizer == Spec("adamw", {"lr": 1e-3, "betas": (0.9, 0.99), "weight_decay": 0.1})
    assert recipe.schedule == Spec("cosine", {"warmup": 100, "floor": 0.1})
    assert (recipe.tokenizer.name, recipe.data.source, recipe.data.validation) == ("char", ["tiny-shakespeare"], 0.1)
    model = build_model(recipe, 65)  # nanoGPT's vocabulary: it says 0.80M, which leaves the position table out
    assert model.n_params - shape.context * shape.d_model == 65 * 128 + 4 * (12 * 128**2 + 2 * 128) + 128


FROM_NOTHING = sorted(path for path in RECIPES.glob("*.toml") if load_recipe(path, sources=["x"]).reads == "documents")


@pytest.mark.parametrize("path", FROM_NOTHING, ids=lambda path: path.stem)
def test_every_recipe_of_a_text_runs(tmp_path: Path, path: Path) -> None:
    source = tmp_path / "text.txt"
    numbers = "".join(f"{20 + i * i % 60}\n" for i in range(400))
    source.write_text(numbers if path.stem == "time-series" else TEXT, encoding="utf-8")
    small = ["model.context=16", "model.d_model=16", "model.n_layers=2", "model.n_heads=2", "train.batch_size=4"]
    short = ["train.steps=3", "train.eval_every=2", "train.threads=1", "train.device=cpu", "schedule.warmup=1"]
    sample = ["sample.sampling.max_tokens=4"]
    name = load_recipe(path, sources=[str(source)]).tokenizer.name
    tokenizer = ["tokenizer.vocab_size=280"] if name == "bpe" else []
    overrides = [f"data.source={json.dumps([str(source)])}", *small, *short, *sample, *tokenizer]
    result = job.train(load_recipe(path, overrides), tmp_path / "run")
    result.run.close()
    assert (result.outcome, result.step) == ("finished", 3)
    assert 0 < result.figures["validation_loss"] < 10
    assert (tmp_path / "run" / "report.html").exists()


def test_another_name_replaces_the_default_piece() -> None:
    assert recipe_of("tokenizer.name=bins", "tokenizer.n_bins=9").tokenizer == Spec("bins", {"n_bins": 9})
    assert recipe_of("tokenizer.name=bpe").tokenizer == recipe_of().tokenizer
    assert recipe_of("optimizer.name=sgd", "optimizer.lr=0.1").optimizer == Spec("sgd", {"lr": 0.1})
    assert recipe_of("data.batches.name=epoch").data.batches == Spec("epoch")
    assert recipe_of("model.norm.name=layer").model.norm == Spec("layer")
