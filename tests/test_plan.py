"""What a plan counts is what the real model and optimizer have."""

import time

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tessera.building import build_model, build_optimizer
from tessera.model.decoder import Decoder
from tessera.model.flow import Flow
from tessera.model.presets import PRESETS
from tessera.optim import OPTIMIZERS
from tessera.plan import expected_vocabulary, make_plan
from tessera.recipe import Recipe, load_recipe
from tessera.tokenizers import train_tokenizer
from tessera.torch_plan import active_params, product_flops, training_flops

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
        ("model.d_head=24", "model.n_future=2", 'model.attention=["gqa", {name = "gqa", window = 4}]'),
        ('model.feed_forward=["gelu", {name = "moe", n_experts = 4, n_shared = 1, balance = "bias"}]',),
        ("model.attention=mla", "model.position=t5"),
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
        ('{name = "adafactor", lr = 0.1, momentum = 0.9}', None),
        ('{name = "adamw-8bit", lr = 0.1, keep = [], block = 100}', None),
        *((f'{{name = "{name}", lr = 0.1}}', None) for name in OPTIMIZERS),
    ],
)
def test_the_optimizers_memory_is_what_it_keeps(optimizer: str, per_weight: int | None) -> None:
    recipe = recipe_of(*SMALL, f"optimizer={optimizer}")
    model = build_model(recipe, 123)
    real = build_optimizer(recipe, model)  # type: ignore[arg-type]
    model(torch.zeros(1, 4, dtype=torch.long)).sum().backward()
    real.step()
    kept = sum(value.numel() * value.element_size() for state in real.state.values() for value in state.values())
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


SHAPE = {"n_vocab": 50, "context": 12, "d_model": 16, "n_layers": 3, "n_heads": 4}
MOE = {"name": "moe", "n_experts": 4, "n_active": 2, "d_expert": 24}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"tied": True, "d_head": 6, "attention": {"name": "gqa", "n_kv_heads": 2}},
        {"n_future": 2, "feed_forward": "gelu", "position": "learned"},
        {"attention": "mla", "feed_forward": MOE | {"n_shared": 2, "d_expert": 10}, "n_future": 1, "tied": True},
        {"feed_forward": ["geglu", MOE], "vocab_multiple": 16},
    ],
    ids=str,
)
def test_the_flops_of_the_weights_are_those_of_the_matrix_products(settings: dict[str, object]) -> None:
    model, ids = Decoder(**SHAPE | settings), torch.randint(50, (3, 12))
    with FlopCounterMode(display=False) as counter:
        flow = Flow.of(ids)
        x_BTD = model.trunk(ids, flow=flow)
        heads = [model.final_norm(x_BTD), *model.future_hidden(x_BTD, flow)]
        sum(model.logits(h_BTD).square().mean() for h_BTD in heads).backward()
    counted = sum(n for name, n in counter.flop_counts["Global"].items() if str(name) in ("aten.mm", "aten.addmm"))
    vectors = sum(p.numel() for p in model.parameters() if p.ndim < 2)
    attention = 0.0
    for block in (*model.blocks, *model.future):
        n_numbers = block.attention.query.weight.shape[0] + block.attention.output.weight.shape[1]
        attention += 6 * n_numbers * (12 + 1) / 2  # as many keys as the mean token has before it, and itself
    assert training_flops(model) - 6 * vectors - attention == pytest.approx(counted / ids.numel())


def test_a_window_bounds_what_the_scores_cost() -> None:
    def cost(context: int, *attention: dict[str, object]) -> float:
        return training_flops(Decoder(**SHAPE | {"context": context, "attention": list(attention) or "gqa"}))

    weights = 2 * cost(12) - cost(25)  # the scores alone grow, by 6.5 keys from 6.5
    window = {"name": "gqa", "window": 3}
    per_key = 3 * 6 * 32
    assert cost(12) - weights == pytest.approx(6.5 * per_key)
    means = [sum(min(t, n) for t in range(1, 13)) / 12 for n in (3, 5, 12)]
    assert cost(12, window) - weights == pytest.approx(means[0] * per_key)
    assert cost(12, window | {"window_keeps": 2}) - weights == pytest.approx(means[1] * per_key)
    assert cost(12, window | {"window": 500}) == cost(12)
    mixed = cost(12, window, {"name": "gqa"}, window) - weights
    assert mixed == pytest.approx((2 * means[0] + means[2]) * per_key / 3)


def test_the_active_parameters_are_those_that_mistral_published() -> None:
    overrides = ("model.feed_forward=moe", "model.d_model=4096", "model.n_layers=32", "model.n_heads=32")
    sizes = ("model.attention.n_kv_heads=8", "model.d_ff=14336", "model.context=32768", "model.n_future=0")
    plan = make_plan(recipe_of(*overrides, *sizes), n_vocab=32000)
    assert plan.n_params == 46_702_792_704  # 8x7B is 46.7 billion
    assert plan.n_active_params == 12_879_925_248  # of which a token meets 12.9
    further = make_plan(recipe_of(*overrides, *sizes[:-1], "model.n_future=1"), n_vocab=32000)
    assert further.n_active_params == plan.n_active_params
    assert further.n_params > plan.n_params


def test_the_activations_grow_with_the_experts_that_are_active_not_with_those_there_are() -> None:
    def plan(n_experts: int, n_active: int) -> int:
        spec = f'model.feed_forward={{name = "moe", n_experts = {n_experts}, n_active = {n_active}, d_expert = 64}}'
        return make_plan(recipe_of(*SMALL, spec), n_vocab=123).activations

    tokens = 4 * 16 * 16 * 2  # bytes, windows, context, layers
    assert plan(8, 3) - plan(8, 2) == tokens * (3 * 64 + 2 * 32)
    assert plan(16, 2) - plan(8, 2) == tokens * 3 * 8


def test_only_idle_experts_are_not_active() -> None:
    model = Decoder(**SHAPE | {"feed_forward": ["swiglu", MOE | {"n_shared": 1}, "gelu"]})
    assert active_params(model) == model.n_params - 2 * (3 * 24 * 16)
