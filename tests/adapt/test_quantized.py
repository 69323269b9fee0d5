"""Maps of stored weights: the products and gradients of the weights that the codes stand for, and what is kept."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tessera.adapt import Lora, build_quantized, dequantize_base, quantize_base
from tessera.adapt import quantized as module
from tessera.adapt.blockwise import QuantizedWeight
from tessera.adapt.quantized import QuantizedExpertLinear, QuantizedLinear
from tessera.config import check
from tessera.errors import InputError, SettingError
from tessera.formats import open_model
from tessera.formats.own import export_own
from tessera.model.decoder import Decoder
from tessera.model.linear import ExpertLinear, Linear
from tessera.model.settings import DecoderSettings
from tessera.ops.grouped import grouped_linear
from tessera.tokenizers.byte import ByteTokenizer

SHAPE: dict[str, Any] = {"context": 16, "d_model": 24, "n_layers": 2, "n_heads": 2, "d_ff": 40, "bias": True}
MOE = {"name": "moe", "n_experts": 4, "n_active": 2, "n_shared": 1}


def model(**settings: Any) -> Decoder:
    torch.manual_seed(0)
    return Decoder(n_vocab=300, **(SHAPE | settings)).eval()


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("piece", [24 * 3, 2**21])
def test_a_map_is_the_product_of_its_weight(kind: str, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.PIECE, "cpu", piece)
    torch.manual_seed(0)
    stored = QuantizedWeight.of(torch.randn(40, 24), kind)
    layer = QuantizedLinear(stored=stored, bias=torch.nn.Parameter(torch.randn(40)))
    x = torch.randn(2, 5, 24, requires_grad=True)
    other = x.detach().clone().requires_grad_()
    y, expected = layer(x), other @ stored.whole().T + layer.bias
    assert torch.allclose(y, expected, atol=1e-5)
    toward = torch.randn_like(y)
    (gradient,) = torch.autograd.grad((y * toward).sum(), x)
    (wanted,) = torch.autograd.grad((expected * toward).sum(), other)
    assert torch.allclose(gradient, wanted, atol=1e-5)


def test_gradcheck() -> None:
    stored = QuantizedWeight.of(torch.randn(7, 5), "nf4")
    layer = QuantizedLinear(stored=stored)
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))


def test_experts_are_the_grouped_product_of_their_weights() -> None:
    torch.manual_seed(0)
    stored = QuantizedWeight.of(torch.randn(3, 9, 7), "nf4")
    layer, sizes = QuantizedExpertLinear(stored=stored), (4, 0, 2)
    x = torch.randn(6, 7, requires_grad=True)
    other = x.detach().clone().requires_grad_()
    y, expected = layer(x, sizes), grouped_linear(other, stored.whole(), sizes)
    assert torch.allclose(y, expected, atol=1e-6)
    y.square().sum().backward()
    expected.square().sum().backward()
    assert torch.allclose(x.grad, other.grad, atol=1e-5)
    with pytest.raises(InputError, match="groups of"):
        layer(x, (4, 0, 1))


def test_nothing_of_the_weights_size_is_kept_for_the_backward_pass() -> None:
    layer = QuantizedLinear(stored=QuantizedWeight.of(torch.randn(64, 64), "nf4"))
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor), lambda tensor: tensor):
        layer(torch.randn(2, 64, requires_grad=True))
    assert kept == []


@pytest.mark.parametrize("feed_forward", ["swiglu", MOE])
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_the_blocks_are_stored_and_the_rest_stays(kind: str, feed_forward: Any) -> None:
    made, plain = model(feed_forward=feed_forward), model(feed_forward=feed_forward)
    paths = quantize_base(made, kind)
    layers = {path: part for path, part in plain.named_modules() if isinstance(part, Linear | ExpertLinear)}
    assert set(paths) == {path for path in layers if path.startswith("blocks.") and not path.endswith("router")}
    for path in paths:
        expected = QuantizedWeight.of(layers[path].weight, kind).whole()
        assert torch.equal(made.get_submodule(path).weight, expected)
    ids = torch.randint(300, (2, 9))
    for path in paths:
        layers[path].weight.data.copy_(made.get_submodule(path).weight)
    assert torch.allclose(made(ids), plain(ids), atol=1e-5)
    dequantize_base(made)
    assert torch.equal(made(ids), plain(ids))
    with pytest.raises(InputError, match="nothing to quantize"):
        quantize_base(model(n_layers=1).requires_grad_(False).final_norm, kind)


def test_autocast_and_recomputing_give_the_same_gradients() -> None:
    made = model(dropout=0.0)
    Lora(rank=2, base="nf4")(made)
    for name, param in made.named_parameters():
        if name.endswith(".up"):
            torch.nn.init.normal_(param, std=0.1)
    made.train()
    ids = torch.randint(300, (2, 12))

    def gradients(**context: Any) -> Tensor:
        made.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, **context):
            loss = made.loss(made.hidden(ids[:, :-1]), ids[:, 1:])
        loss.backward()
        return torch.cat([param.grad.flatten() for param in made.parameters() if param.grad is not None])

    exact = gradients(enabled=False)
    assert torch.nn.functional.cosine_similarity(exact, gradients(), dim=0) > 0.99
    made.recompute_every = 1
    assert torch.allclose(gradients(enabled=False), exact, atol=1e-6)


@pytest.mark.parametrize("feed_forward", ["swiglu", MOE])
def test_a_model_that_is_stored_while_it_is_read_is_the_same(tmp_path: Path, feed_forward: Any) -> None:
    plain, path = model(feed_forward=feed_forward), tmp_path / "model.safetensors"
    settings = check(DecoderSettings, SHAPE | {"feed_forward": feed_forward})
    export_own(settings, 300, plain.state_dict(), ByteTokenizer(specials=["<|endoftext|>"]), path, dtype="fp32")
    quantize_base(plain, "nf4")
    read = build_quantized(open_model(path), "nf4")
    assert not read.training
    first, second = plain.state_dict(), read.state_dict()
    assert list(first) == list(second)
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
    assert not any(tensor.is_meta for tensor in second.values())


def test_an_unknown_kind_is_an_error_before_anything_is_changed() -> None:
    made = model()
    with pytest.raises(SettingError, match=r"base = 'int4': expected one of nf4, int8"):
        quantize_base(made, "int4")
    assert isinstance(made.blocks[0].attention.query, Linear)
