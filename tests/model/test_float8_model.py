"""A model in 8 bits: which layers, the same parameters, and itself again outside of training."""

import pytest
import torch

from tessera.model.decoder import Decoder
from tessera.model.float8 import Float8Linear, use_float8

SHAPE = {"n_vocab": 48, "context": 16, "d_model": 32, "n_layers": 2, "n_heads": 2, "d_ff": 64}


def made(**pieces: object) -> Decoder:
    torch.manual_seed(0)
    return Decoder(**(SHAPE | pieces))


def test_the_linear_layers_of_the_blocks_and_no_others() -> None:
    plain, model = made(), made()
    parameters = dict(model.named_parameters())
    assert use_float8(model) == (14, 14)
    assert use_float8(model) == (14, 14)  # once is enough
    layers = {name for name, module in model.named_modules() if isinstance(module, Float8Linear)}
    assert len(layers) == 14 and all(name.startswith("blocks.") for name in layers)
    now = dict(model.named_parameters())
    assert list(now) == list(parameters) and all(now[name] is parameters[name] for name in now)
    model.load_state_dict(plain.state_dict())


def test_layers_of_other_sizes_stay() -> None:
    model = made(d_ff=40)
    assert use_float8(model) == (8, 14)
    ids_BT = torch.arange(16)[None]
    model.loss(model.hidden(ids_BT), ids_BT).backward()


@pytest.mark.parametrize("pieces", [{}, {"bias": True, "feed_forward": "gelu"}, {"attention": "mla"}], ids=str)
def test_it_learns_in_8_bits_and_answers_in_all(pieces: dict) -> None:
    plain, model = made(**pieces), made(**pieces)
    use_float8(model)
    ids_BT = torch.arange(32).view(2, 16)
    with torch.inference_mode():
        assert torch.equal(plain(ids_BT), model(ids_BT))
    exact, close = plain(ids_BT), model(ids_BT)
    assert not torch.equal(exact, close)
    assert (exact - close).norm() < 0.2 * exact.norm()
    plain.loss(plain.hidden(ids_BT), ids_BT).backward()
    model.loss(model.hidden(ids_BT), ids_BT).backward()
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        if theirs.grad is not None and theirs.grad.norm() > 1e-4:
            assert torch.cosine_similarity(ours.grad.flatten(), theirs.grad.flatten(), dim=0) > 0.9, name


def test_a_last_batch_of_an_odd_number_of_rows_is_learned_too() -> None:
    model = made()
    use_float8(model)
    ids_BT = torch.arange(9)[None]
    model.loss(model.hidden(ids_BT), ids_BT).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
