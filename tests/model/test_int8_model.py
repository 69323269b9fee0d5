"""A model that trains in integers of 8 bits: the same parameters, close losses, and fp32 outside of training."""

from pathlib import Path

import pytest
import torch

from tessera.model.decoder import Decoder
from tessera.model.int8 import Int8Linear, use_int8
from tessera.model.linear import Linear
from tessera.ops.int8 import is_exact
from tessera.train.precision import Precision

pytestmark = pytest.mark.skipif(not is_exact(), reason="this processor's products of 8 bits are not exact")
IDS_BT = torch.arange(32).view(2, 16)


def made(**pieces: object) -> Decoder:
    torch.manual_seed(0)
    return Decoder(**({"n_vocab": 64, "context": 32, "d_model": 32, "n_layers": 2, "n_heads": 2} | pieces))


def loss_of(model: Decoder) -> torch.Tensor:
    return model.loss(model.hidden(IDS_BT), IDS_BT)


def test_the_layers_of_the_blocks_change_and_their_parameters_stay() -> None:
    plain, model = made(), made()
    parameters = dict(model.named_parameters())
    assert use_int8(model.blocks, model.future) == use_int8(model.blocks, model.future) == 14
    layers = {name for name, module in model.named_modules() if isinstance(module, Int8Linear)}
    assert len(layers) == 14 and all(name.startswith("blocks.") for name in layers)
    now = dict(model.named_parameters())
    assert list(now) == list(parameters) and all(now[name] is parameters[name] for name in now)
    model.load_state_dict(plain.state_dict())


@pytest.mark.parametrize(
    "pieces",
    [
        {},
        {"bias": True, "feed_forward": "gelu", "norm": "layer", "position": "learned", "tied": True},
        {"attention": "mla", "feed_forward": "relu2"},
        {"attention": {"name": "gqa", "n_kv_heads": 1, "qk_norm": True}, "placement": "parallel"},
        {"feed_forward": {"name": "moe", "n_experts": 4, "n_active": 2}},
        {"n_future": 1},
    ],
    ids=str,
)
def test_it_learns_in_8_bits_and_answers_in_fp32(pieces: dict) -> None:
    plain, model = made(**pieces), made(**pieces)
    Precision("int8").prepare(model)
    with torch.inference_mode():
        assert torch.equal(plain(IDS_BT), model(IDS_BT))
    exact, close = plain(IDS_BT), model(IDS_BT)
    assert not torch.equal(exact, close)
    assert (exact - close).norm() < 0.06 * exact.norm()
    loss_of(plain).backward()
    loss_of(model).backward()
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        if theirs.grad is not None and theirs.grad.norm() > 1e-4:
            assert torch.cosine_similarity(ours.grad.flatten(), theirs.grad.flatten(), dim=0) > 0.95, name


def test_what_is_saved_is_a_model_like_any_other(tmp_path: Path) -> None:
    model = made()
    Precision("int8").prepare(model)
    torch.save(model.state_dict(), tmp_path / "weights")
    again = made()
    again.load_state_dict(torch.load(tmp_path / "weights"))
    with torch.inference_mode():
        assert torch.equal(again(IDS_BT), model(IDS_BT))


def test_a_layer_that_someone_watches_or_has_changed_runs_itself() -> None:
    class Adapted(Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 2

    model, seen = made(), []
    attention = model.blocks[0].attention
    attention.key = Adapted(d_in=32, d_out=32)
    torch.nn.init.normal_(attention.key.weight)
    use_int8(model.blocks)
    assert type(attention.key) is Adapted
    attention.query.register_forward_hook(lambda module, given, y: seen.append(y))
    model.blocks[1].feed_forward.input.register_forward_hook(lambda module, given, y: seen.append(y))
    loss_of(model).backward()
    assert len(seen) == 2 and attention.key.weight.grad.any()


def test_frozen_layers_get_no_gradient() -> None:
    model = made()
    use_int8(model.blocks)
    model.blocks[0].requires_grad_(False)
    loss_of(model).backward()
    assert all(parameter.grad is None for parameter in model.blocks[0].parameters())
    assert all(parameter.grad is not None for parameter in model.blocks[1].parameters())


@pytest.mark.parametrize("keep_products", [False, True])
def test_checkpointing_gives_the_same_gradients(keep_products: bool) -> None:
    gradients = []
    for every in (None, 1):
        model = made()
        use_int8(model.blocks)
        model.recompute_every, model.recompute_products = every, not keep_products
        loss_of(model).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_under_autocast_it_is_a_layer_like_any_other() -> None:
    plain, model = made(), made()
    use_int8(model.blocks)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(plain(IDS_BT), model(IDS_BT))
