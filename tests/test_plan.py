"""What a plan counts is what the real model and optimizer have."""

import time

import pytest
import torch

from tessera.model.presets import PRESETS
from tessera.optim import OPTIMIZERS
from tessera.plan import expected_vocabulary, make_plan, product_flops
from tessera.recipe import Recipe, build_model, build_optimizer, load_recipe
from tessera.tokenizers import train_tokenizer

SMALL = ("model.d_model=32", "model.n_layers=2", "model.n_heads=4", "model.context=16")


def recipe_of(*overrides: str, preset: str | None = None) -> Recipe:
    return load_recipe(None, [*overrides, "train.device=cpu"], sources=["my.txt"], preset=preset)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("model.tied=true",),
        ("model.bias=true", "model.norm=layer", "model.position=learned", "model.feed_forward=gelu"),
        ("model.attention.n_kv_heads=1", "model.norm=none", "model.position=none", "model.placement=post"),
        ("model.d_ff=50", "model.init=kaiming"),
    ],
)
def test_the_counts_are_the_real_models(overrides: tuple[str, ...]) -> None:
    recipe = recipe_of(*SMALL, *overrides)
    plan = make_plan(recipe, n_vocab=123)
    model = build_model(recipe, 123)
    assert plan.n_params == model.n_params == sum(p.numel() for p in model.parameters())
    assert plan.n_embedding_params == 123 * 32
    assert plan.weights == plan.gradients == sum(p.numel() * p.element_size() for p in model.parameters())


@pytest.mark.parametrize(
    ("optimizer", "per_weight"),
    [
        ('{name = "sgd", lr = 0.1}', 0),
        ('{name = "sgd", lr = 0.1, momentum = 0.9}', 1),
        *((f'{{name = "{name}", lr = 0.1}}', None) for name in OPTIMIZERS),
    ],
)
def test_the_optimizers_memory_is_what_it_keeps(optimizer: str, per_weight: int | None) -> None:
    recipe = recipe_of(*SMALL, f"optimizer={optimizer}")
    model = build_model(recipe, 123)
    real = build_optimizer(recipe, model)  # type: ignore[arg-type]
    model(torch.zeros(1, 4, dtype=torch.long)).sum().backward()
    real.step()
    kept = sum(
        value.numel() * value.element_size()
        for parameter, state in real.state.items()
        for value in state.values()
        if isinstance(value, torch.Tensor) and value.shape == parameter.shape
    )
    assert make_plan(recipe, n_vocab=123).optimizer == kept
    assert per_weight is None or kept == 4 * per_weight * model.n_params


def test_tokens_and_memory_add_up() -> None:
    recipe = recipe_of(*SMALL, "train.batch_size=3", "train.accumulate=2", "train.steps=7")
    plan = make_plan(recipe, n_vocab=123)
    assert (plan.tokens_per_step, plan.tokens) == (3 * 2 * 16, 3 * 2 * 16 * 7)
    assert plan.memory == plan.weights + plan.gradients + plan.optimizer + plan.activations
    twice = make_plan(recipe_of(*SMALL, "train.batch_size=6", "train.steps=7"), n_vocab=123)
    assert twice.activations == 2 * plan.activations


@pytest.mark.parametrize(
    "spec",
    [
        "byte",
        {"name": "byte", "specials": {"<|a|>": 500}},
        {"name": "bpe", "vocab_size": 300},
        {"name": "bpe", "vocab_size": 300, "specials": {"<|a|>": 299, "<|b|>": 700}},
        {"name": "bpe-naive", "vocab_size": 270, "specials": ["<|a|>", "<|b|>"]},
        {"name": "word", "vocab_size": 9},
    ],
)
def test_the_expected_vocabulary_is_what_training_gives(spec: str | dict[str, object]) -> None:
    text = "".join(f"{i} words of the text that is here for this {i * i}\n" for i in range(300))
    recipe = load_recipe(None, sources=["my.txt"], base={"tokenizer": spec})
    assert expected_vocabulary(recipe) == train_tokenizer(recipe.tokenizer, [text]).n_vocab
    assert make_plan(recipe).n_vocab == expected_vocabulary(recipe)


def test_the_vocabulary_that_a_kind_has_by_default_is_expected() -> None:
    assert expected_vocabulary(load_recipe(None, sources=["my.txt"], base={"tokenizer": "bpe"})) == 4096


def test_a_large_model_is_planned_at_once_and_without_its_memory() -> None:
    start = time.perf_counter()
    plan = make_plan(recipe_of(preset="gpt2"), n_vocab=50257)
    assert plan.n_params == 124_439_808  # what Radford et al. published
    large = make_plan(recipe_of(preset="llama-2-7b"), n_vocab=32000)
    assert large.n_params == 6_738_415_616  # Touvron et al. 2023
    assert time.perf_counter() - start < 20
    assert large.seconds > 10 * plan.seconds


def test_every_preset_has_a_plan() -> None:
    for name in PRESETS:
        assert make_plan(recipe_of(preset=name), n_vocab=1000).n_params > 0


def test_the_speed_is_measured() -> None:
    assert product_flops(torch.device("cpu"), size=256, rounds=2) > 1e8
