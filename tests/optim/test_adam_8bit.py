"""AdamW in 8 bits: its step against AdamW's on the same means, its memory, and what it learns."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.errors import SettingError
from tessera.model.decoder import Decoder
from tessera.optim import AdamW, groups
from tessera.optim.adam import adamw_step
from tessera.optim.adam_8bit import AdamW8Bit, adamw_8bit_step, pieces
from tessera.optim.quantize import code, dequantize

CPU = torch.device("cpu")
SETTINGS = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}


def test_a_step_is_adamws_on_the_means_that_are_kept() -> None:
    """Before each step the means are read back and given to AdamW: the weights must come out the same."""
    generator = torch.Generator().manual_seed(0)
    weights, block = torch.randn(70, 50, generator=generator), 64
    state = {name: torch.zeros(70, 50, dtype=torch.uint8) for name in ("mean", "square")}
    state |= {f"{name}_scale": torch.zeros(55) for name in ("mean", "square")}
    for step in range(1, 6):
        mean, square = (
            dequantize(
                state[name].view(-1), state[f"{name}_scale"], code(signed=name == "mean", device=CPU), block=block
            ).view(70, 50)
            for name in ("mean", "square")
        )
        expected, grad = weights.clone(), torch.randn(70, 50, generator=generator)
        adamw_step(expected, grad, mean, square, step=step, **SETTINGS)
        adamw_8bit_step(weights, grad, state, step=step, block=block, **SETTINGS)
        assert torch.allclose(weights, expected, atol=1e-6)
        kept = dequantize(state["mean"].view(-1), state["mean_scale"], code(signed=True, device=CPU), block=block)
        assert (kept.view(70, 50) - mean).norm() / mean.norm() < 0.015


@given(n=st.integers(1, 5000), block=st.integers(2, 300), size=st.integers(1, 3000))
@settings(max_examples=60, deadline=None)
def test_pieces_hold_every_number_once_and_whole_blocks(n: int, block: int, size: int) -> None:
    numbers, blocks = [], []
    for rows, of_block in pieces(n, block, size):
        numbers += range(n)[rows]
        blocks += range(-(-n // block))[of_block]
        assert -(-(rows.stop - rows.start) // block) == len(range(-(-n // block))[of_block])
    assert numbers == list(range(n))
    assert blocks == list(range(-(-n // block)))


def test_memory_is_two_bytes_a_weight() -> None:
    param = torch.nn.Parameter(torch.randn(256, 256))
    optimizer = AdamW8Bit([param], lr=0.01)
    param.grad = torch.randn(256, 256)
    optimizer.step()
    real = sum(value.numel() * value.element_size() for value in optimizer.state[param].values())
    assert optimizer.memory() == real == 2 * 256 * 256 + 2 * 4 * 256 + 4
    assert AdamW([param], lr=0.01).memory() / real > 3.8


def test_small_tensors_and_tables_are_kept_in_full() -> None:
    small, table, matrix = (torch.nn.Parameter(torch.randn(n, 64)) for n in (63, 64, 64))
    parts = [{"params": [small, matrix], "kind": "matrix"}, {"params": [table], "kind": "table"}]
    optimizer = AdamW8Bit(parts, lr=0.01)
    other = [torch.nn.Parameter(param.detach().clone()) for param in (small, table)]
    adamw = AdamW(other, lr=0.01)
    for _ in range(3):
        for param in (small, table, matrix):
            param.grad = param.detach().clone()
        for param in other:
            param.grad = param.detach().clone()
        optimizer.step()
        adamw.step()
    assert torch.equal(small, other[0])
    assert torch.equal(table, other[1])
    assert optimizer.state[matrix]["mean"].dtype == torch.uint8
    keep_none = AdamW8Bit([{"params": [table], "kind": "table"}], lr=0.01, keep=())
    assert keep_none.memory() < 3 * 64 * 64


def test_it_learns_what_adamw_learns() -> None:
    """A small model that learns to count: the losses stay together, with all matrices and tables in 8 bits."""

    def losses(kind: type[AdamW], **settings: object) -> torch.Tensor:
        torch.manual_seed(0)
        model = Decoder(n_vocab=64, context=16, d_model=64, n_layers=2, n_heads=2)
        optimizer = kind(groups(model), lr=3e-3, **settings)  # type: ignore[arg-type]
        values = []
        for _ in range(60):
            ids = (torch.randint(64, (8, 1)) + torch.arange(17)) % 64
            optimizer.zero_grad()
            loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
            loss.backward()
            optimizer.step()
            values.append(loss.item())
        return torch.tensor(values)

    exact, small = losses(AdamW), losses(AdamW8Bit, keep=())
    assert exact[-1] < 0.2 * exact[0]
    assert (small - exact).abs().max() < 0.05 * exact[0]
    assert (small - exact).abs().max() > 0, "they are not the same optimizer"


def test_a_transposed_parameter_is_learned_in_place() -> None:
    weight = torch.nn.Parameter(torch.randn(80, 64).T)
    assert not weight.is_contiguous()
    same = torch.nn.Parameter(weight.detach().contiguous())
    grad = torch.randn(64, 80)
    for param in (weight, same):
        param.grad = grad.clone()
        AdamW8Bit([param], lr=0.1).step()
    assert torch.equal(weight, same)


@pytest.mark.parametrize(
    ("wrong", "what"), [({"block": 1}, "block = 1"), ({"keep": ("tables",)}, "did you mean 'table'")]
)
def test_wrong_settings_are_named(wrong, what) -> None:
    with pytest.raises(SettingError, match=what):
        AdamW8Bit([torch.nn.Parameter(torch.zeros(2))], lr=0.1, **wrong)
