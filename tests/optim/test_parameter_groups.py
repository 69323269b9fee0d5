"""Rates of their own for parts of a model, by kind and by name."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tessera.building import build_optimizer
from tessera.config import build
from tessera.errors import InputError, SettingError
from tessera.model.decoder import Decoder
from tessera.objectives import NextToken
from tessera.optim import OPTIMIZERS, groups
from tessera.optim.parameter_groups import matches
from tessera.recipe import load_recipe

SHAPE = {"n_vocab": 11, "context": 8, "d_model": 8, "n_layers": 11, "n_heads": 2}


def rates(module: torch.nn.Module, name: str = "adamw", **settings) -> dict[str, float]:
    names = {id(param): name for name, param in module.named_parameters()}
    optimizer = OPTIMIZERS[name](groups(module), lr=0.5, **settings)
    found = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(found) == sum(len(group["params"]) for group in optimizer.param_groups) == len(names)
    return found


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_takes_them(name: str) -> None:
    model = Decoder(**SHAPE)
    found = rates(model, name, lr_scale={"embedding": 0.5, "vector": 0.0, "blocks.1": 3})
    for param, rate in found.items():
        scale = 0.5 if param == "embedding.weight" else 1.0
        scale *= 3.0 if param.startswith("blocks.1.") else 1.0
        scale *= 0.0 if dict(model.named_parameters())[param].ndim < 2 else 1.0
        assert rate == 0.5 * scale, param


def test_a_rate_of_zero_learns_nothing_and_another_learns_in_proportion() -> None:
    torch.manual_seed(0)
    model = Decoder(**SHAPE | {"n_layers": 2})
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    optimizer = OPTIMIZERS["sgd"](groups(model), lr=0.1, lr_scale={"head": 0.0, "blocks.0.*": 2.0})
    model(torch.tensor([[1, 2, 3]])).square().sum().backward()
    optimizer.step()
    for name, param in model.named_parameters():
        scale = 0.0 if name == "head.weight" else 2.0 if name.startswith("blocks.0.") else 1.0
        assert torch.allclose(param, before[name] - 0.1 * scale * param.grad, atol=1e-7), name


def test_names_match_from_any_part_on_and_in_whole_parts() -> None:
    assert matches("blocks.1", "model.blocks.1.attention.query.weight", "matrix")
    assert not matches("blocks.1", "model.blocks.10.attention.query.weight", "matrix")
    assert matches("blocks.*.attention", "blocks.10.attention.query.weight", "matrix")
    assert matches("weight", "head.weight", "table")
    assert matches("table", "head.weight", "table")
    assert not matches("hea", "head.weight", "table")


@given(st.dictionaries(st.sampled_from(["matrix", "vector", "blocks.*", "query", "blocks.0"]), st.floats(0.1, 4)))
def test_all_scales_that_match_count(lr_scale) -> None:
    model = Decoder(**SHAPE | {"n_layers": 1})
    found = rates(model, lr_scale=lr_scale)
    expected = 0.5
    for pattern in ("matrix", "blocks.*", "query", "blocks.0"):
        expected *= lr_scale.get(pattern, 1.0)
    assert found["blocks.0.attention.query.weight"] == pytest.approx(expected)


def test_without_scales_the_groups_are_as_they_were() -> None:
    optimizer = OPTIMIZERS["adamw"](groups(Decoder(**SHAPE), 0.1), lr=0.5)
    assert [(group["kind"], group["weight_decay"], group["lr"]) for group in optimizer.param_groups] == [
        ("matrix", 0.1, 0.5),
        ("table", 0.1, 0.5),
        ("vector", 0.0, 0.5),
    ]
    assert all("names" not in group for group in optimizer.param_groups)


def test_the_pattern_is_the_same_for_a_model_and_its_objective() -> None:
    recipe = load_recipe(None, ['optimizer.lr_scale={embedding = 0.5, "blocks.0.*" = 0.1}'], sources=["my.txt"])
    model = Decoder.from_settings(recipe.model, n_vocab=11)

    def shares(module: torch.nn.Module) -> list[tuple[str, float, int]]:
        optimizer = build_optimizer(recipe, module)  # type: ignore[arg-type]
        return [(group["kind"], group["lr"], len(group["params"])) for group in optimizer.param_groups]

    assert shares(model) == shares(NextToken(model=model, data=None))  # type: ignore[arg-type]
    assert len(shares(model)) == 6


@pytest.mark.parametrize(
    ("lr_scale", "message"),
    [
        ("{hed = 0.5}", "lr_scale: the model has no 'hed'; did you mean 'head'"),
        ('{"blocks.99.*" = 0.5}', "has no 'blocks.99.*'"),
        ("{head = -1.0}", "lr_scale.head = -1.0"),
        ("0.5", "lr_scale"),
    ],
)
def test_a_recipe_with_a_wrong_scale_is_refused_when_it_is_read(lr_scale: str, message: str) -> None:
    with pytest.raises(SettingError) as error:
        load_recipe(None, [f"optimizer.lr_scale={lr_scale}"], sources=["my.txt"])
    assert message in str(error.value)


def test_a_tied_head_has_no_rate_of_its_own() -> None:
    with pytest.raises(SettingError, match="has no 'head'"):
        OPTIMIZERS["adamw"](groups(Decoder(**SHAPE, tied=True)), lr=0.1, lr_scale={"head": 0.5})


def test_scales_without_names_are_refused() -> None:
    with pytest.raises(InputError, match="groups"):
        build(OPTIMIZERS, "adamw", params=[torch.nn.Parameter(torch.ones(2))], lr=0.1, lr_scale={"vector": 0.5})
