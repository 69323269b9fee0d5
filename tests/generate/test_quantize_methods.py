"""GPTQ and AWQ: against a naive GPTQ written as the paper's loop, and against plain rounding."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tessera.errors import InputError, SettingError
from tessera.generate.quantize import (
    KINDS,
    METHODS,
    Quantization,
    QuantizedLinear,
    QuantizedWeight,
    quantize_model,
)
from tessera.generate.quantize.awq import Fold, best_scale, fold_scale, folds_of
from tessera.generate.quantize.calibrate import Moments, Walk, Watch, layers_of
from tessera.generate.quantize.gptq import gptq
from tessera.generate.quantize.rounding import from_codes, layer_error, nearest
from tessera.model.decoder import Decoder


def layer(n_rows: int = 24, width: int = 96, n: int = 400) -> tuple[Tensor, Tensor]:
    """A weight, and the second moments of inputs that go together and of which a few are large."""
    made = torch.Generator().manual_seed(3)
    x_ND = torch.randn(n, width, generator=made) @ torch.randn(width, width, generator=made) / width**0.5
    x_ND[:, ::17] *= 12
    return torch.randn(n_rows, width, generator=made), x_ND.T @ x_ND / n


def naive_gptq(kind: Any, w_RD: Tensor, hessian_DD: Tensor, group: int, damping: float) -> Tensor:
    """Optimal brain quantization in a fixed order (the paper's eq. 2), the inverse made anew without each column."""
    w_RD, D = w_RD.double().clone(), w_RD.shape[1]
    h_DD = hessian_DD.double() + damping * hessian_DD.double().diagonal().mean() * torch.eye(D, dtype=torch.float64)
    made_RD = torch.empty_like(w_RD)
    for i in range(D):
        if i % group == 0:
            grid = kind.lay(w_RD[:, None, i : i + group].float(), 1.0)
        scale, offset = grid.column(0)
        code = kind.round(w_RD[:, i].float(), scale, offset)
        made_RD[:, i] = code * scale + (0 if offset is None else offset)
        inverse = torch.linalg.inv(h_DD[i:, i:])  # of the columns that are left, this one included
        error_R = (w_RD[:, i] - made_RD[:, i]) / inverse[0, 0]
        w_RD[:, i:] -= torch.outer(error_R, inverse[0])
    return made_RD.float()


@pytest.mark.parametrize(("kind", "group"), [("int4", 32), ("int4", 96), ("q4_0", 32), ("int8", 48)])
def test_gptq_is_the_plain_loop(kind: str, group: int) -> None:
    w_RD, h_DD = layer()
    made = from_codes(*gptq(KINDS[kind], w_RD, h_DD, group, damping=0.01, search=False))
    expected = naive_gptq(KINDS[kind], w_RD, h_DD, group, 0.01)
    # Where a number lies between two levels, the last bit decides: the error is the same, if not every code.
    assert float(torch.isclose(made, expected, rtol=1e-4, atol=1e-5).float().mean()) > 0.97
    assert layer_error(made - w_RD, h_DD) == pytest.approx(layer_error(expected - w_RD, h_DD), rel=0.02)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("kind", ["int4", "q4_0", "q4_1", "int8"])
def test_gptq_loses_less_than_rounding(kind: str, act_order: bool) -> None:
    w_RD, h_DD = layer()
    plain = layer_error(from_codes(*nearest(KINDS[kind], w_RD, 32)) - w_RD, h_DD)
    made = from_codes(*gptq(KINDS[kind], w_RD, h_DD, 32, act_order=act_order))
    assert layer_error(made - w_RD, h_DD) < 0.8 * plain


def test_gptq_of_independent_columns_is_rounding() -> None:
    w_RD, _ = layer()
    codes, _ = gptq(KINDS["int4"], w_RD, torch.eye(96), 32, search=False)
    assert torch.equal(codes, nearest(KINDS["int4"], w_RD, 32)[0])


def test_a_column_without_input_is_rounded_by_itself() -> None:
    w_RD, h_DD = layer()
    h_DD[5], h_DD[:, 5] = 0, 0
    made = from_codes(*gptq(KINDS["int8"], w_RD, h_DD, 32))
    assert float((made - w_RD)[:, 5].abs().max()) < 0.1
    nothing = gptq(KINDS["int8"], w_RD, torch.zeros(96, 96), 32, search=False)[0]
    assert torch.equal(nothing, nearest(KINDS["int8"], w_RD, 32)[0])


def test_a_broken_hessian_is_an_error() -> None:
    w_RD, h_DD = layer()
    h_DD[0, 0] = float("nan")
    with pytest.raises(InputError, match="Hessian"):
        gptq(KINDS["int4"], w_RD, h_DD, 32)


def test_awq_loses_less_than_rounding() -> None:
    """On a layer a few of whose inputs are large."""
    w_RD, h_DD = layer()
    moments = Moments((h_DD,), (h_DD.diagonal().sqrt(),), (400,))
    kind = KINDS["int4"]
    scale_D = best_scale(kind, [w_RD], moments, Fold(("reader",), "maker"), 96)
    plain = layer_error(from_codes(*nearest(kind, w_RD, 96)) - w_RD, h_DD)
    made = from_codes(*nearest(kind, w_RD * scale_D, 96)) / scale_D
    assert layer_error(made - w_RD, h_DD) < 0.8 * plain


MODELS: dict[str, dict[str, Any]] = {
    "llama": {"attention": {"name": "gqa", "n_kv_heads": 2}},
    "gpt2": {"norm": "layer", "feed_forward": "gelu", "position": "learned", "bias": True, "tied": True},
    "parallel": {"placement": "parallel", "norm": "layer"},
    "post": {"placement": "post"},
    "moe": {"feed_forward": {"name": "moe", "n_experts": 4, "n_active": 2}},
    "mla": {"attention": "mla"},
    "value_residual": {"attention": {"name": "gqa", "value_residual": True}},
}


def model(name: str) -> tuple[Decoder, Tensor]:
    """A model whose layers matter, and tokens."""
    torch.manual_seed(1)
    made = Decoder(
        n_vocab=48, context=32, d_model=64, n_layers=2, n_heads=4, init={"name": "normal", "std": 0.15}, **MODELS[name]
    )
    for each in made.parameters():
        if each.ndim == 1:
            torch.nn.init.normal_(each, mean=float(each.detach().mean()), std=0.3)
    return made.eval().requires_grad_(False), torch.randint(0, 48, (12, 32))


@pytest.mark.parametrize("name", MODELS)
def test_factors_change_nothing_but_the_weights(name: str) -> None:
    made, ids_BT = model(name)
    expected = made(ids_BT)
    walk = Walk(made, ids_BT)
    n = 0
    for i, block in enumerate(made.blocks):
        watch = Watch()
        walk.run(i, watch, layers_of(block))
        for fold in folds_of(block):
            if name == "value_residual" and fold.maker == "attention.value":
                continue
            scale_D = fold_scale(block, fold, watch.moments[fold.readers[0]], KINDS["int4"], 32)
            n += int(bool((scale_D != 1).any()))
        walk.x_BTD = walk.run(i)
    torch.testing.assert_close(made(ids_BT), expected, rtol=1e-3, atol=1e-3)
    assert n > 0 or name in ("post", "moe", "mla", "value_residual")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_quantized_and_near_to_what_it_was(name: str, method: str) -> None:
    made, ids_BT = model(name)
    expected = made(ids_BT)
    assert quantize_model(made, Quantization(to="int8", method=method), rows_BT=ids_BT) == []
    assert not any(layers_of(block) for block in made.blocks)
    # A router that is near to a tie may choose otherwise.
    assert float((made(ids_BT) - expected).square().mean() / expected.square().mean()) < (
        0.1 if name == "moe" else 0.01
    )


@pytest.mark.parametrize("to", ["int4", "q4_1"])
@pytest.mark.parametrize(("name", "path"), [("llama", "attention.value"), ("mla", "attention.latent")])
def test_what_several_heads_read_keeps_8_bits(name: str, path: str, to: str) -> None:
    made, ids_BT = model(name)
    (note,) = quantize_model(made, Quantization(to=to, method="gptq"), rows_BT=ids_BT)
    assert f"2 {path}" in note
    kinds = {stored.kind.bits for at, stored in stored_weights(made).items() if at.endswith(path)}
    assert kinds == {8}
    others = {stored.kind.bits for at, stored in stored_weights(made).items() if at.endswith("attention.output")}
    assert others == {4}


def test_the_first_and_the_last_of_many_blocks_keep_8_bits_in_their_feed_forward_layers() -> None:
    made = Decoder(n_vocab=48, context=32, d_model=32, n_layers=24, n_heads=2)
    quantize_model(made, Quantization(to="int4"))
    bits = {path: stored.kind.bits for path, stored in stored_weights(made).items()}
    assert {path for path, n in bits.items() if n == 8} - {"head"} == {
        f"blocks.{i}.feed_forward.{name}" for i in (0, 23) for name in ("gate", "input", "output")
    }


def test_values_of_one_head_each_are_like_all_other_maps() -> None:
    made, _ = model("gpt2")
    quantize_model(made, Quantization(to="int4"))
    assert stored_weights(made)["blocks.0.attention.value"].kind.name == "int4"


def test_few_inputs_that_are_far_larger_than_all_others_are_seen() -> None:
    x_ND = torch.randn(512, 16, generator=torch.Generator().manual_seed(0))
    assert not Moments.of([x_ND]).is_massive
    assert Moments.of([x_ND]).held_by[0] == pytest.approx(512 / (1 + 2 / 16), rel=0.05)  # of normal numbers
    x_ND[0] *= 100
    assert Moments.of([x_ND]).held_by[0] == pytest.approx(1, abs=0.2)
    assert Moments.of([x_ND]).is_massive
    assert not Moments.of([x_ND[:0]]).is_massive


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_maps_of_massive_inputs_keep_8_bits(method: str) -> None:
    made, ids_BT = model("llama")
    made.embedding.weight[7] *= 300  # a token that is far larger than all others before any norm
    made.blocks[0].attention_norm = torch.nn.Identity()
    ids_BT[:, 1:][ids_BT[:, 1:] == 7] = 8
    ids_BT[:, 0] = 7
    quantize_model(made, Quantization(to="int4", method=method), rows_BT=ids_BT)
    bits = {path: stored.kind.bits for path, stored in stored_weights(made).items()}
    assert bits["blocks.0.attention.query"] == 8
    assert bits["blocks.1.attention.query"] == 4


def stored_weights(made: Decoder) -> dict[str, QuantizedWeight]:
    return {path: part.stored for path, part in made.named_modules() if isinstance(part, QuantizedLinear)}


def test_gptq_sees_what_the_layers_before_lost() -> None:
    """The inputs of each layer are those of the quantized ones before it: the output is nearer than by rounding."""
    errors = {}
    for method in METHODS:
        made, ids_BT = model("llama")
        expected = made(ids_BT)
        quantize_model(made, Quantization(to="int4", method=method), rows_BT=ids_BT)
        errors[method] = float((made(ids_BT) - expected).square().mean())
    assert errors["gptq"] < 0.8 * errors["rtn"]
    assert errors["awq"] < errors["rtn"]


def test_what_is_missing_is_said() -> None:
    made, _ = model("llama")
    with pytest.raises(SettingError, match="calibrate"):
        quantize_model(made, Quantization(to="int4", method="gptq"))
    quantize_model(made, Quantization(to="int4"))
    with pytest.raises(InputError, match="nothing to quantize"):
        quantize_model(made, Quantization(to="int4"))


def test_rows_that_make_no_blocks_stay_floats() -> None:
    made = Decoder(n_vocab=48, context=32, d_model=64, n_layers=1, n_heads=4, d_ff=40)
    (note,) = quantize_model(made, Quantization(to="q4_0"))
    assert "feed_forward.output" in note
    assert list(layers_of(made.blocks[0])) == ["feed_forward.output"]
