"""The mathematics of LoRA and DoRA: gradients by differences, and the lengths of rows that are never there."""

import math

import pytest
import torch
from torch import Tensor, nn

from tessera.adapt.low_rank import Decomposed, LowRank, changed_lengths, lora
from tessera.errors import SettingError
from tessera.model.linear import Linear


def base(d_in: int = 5, d_out: int = 7, dtype: torch.dtype = torch.float64) -> Linear:
    torch.manual_seed(0)
    made = Linear(d_in=d_in, d_out=d_out, bias=True)
    for param in made.parameters():
        nn.init.normal_(param)
    return made.to(dtype).requires_grad_(False)


def test_by_hand() -> None:
    """x = (1, 2), A = (3, 4), B = (5, 6)^T, s = 2: B A x = (5, 6) * 11, so y + 2 * (55, 66)."""
    y, x, down, up = ([[1.0, 1.0]], [[1.0, 2.0]], [[3.0, 4.0]], [[5.0], [6.0]])
    y = lora(torch.tensor(y), torch.tensor(x), torch.tensor(down), torch.tensor(up), 2.0)
    assert y.tolist() == [[111.0, 133.0]]


def test_gradcheck_of_lora() -> None:
    torch.manual_seed(0)
    sizes = ((3, 7), (3, 5), (2, 5), (7, 2))
    y, x, down, up = (torch.randn(*size, dtype=torch.float64, requires_grad=True) for size in sizes)
    assert torch.autograd.gradcheck(lambda *tensors: lora(*tensors, 0.7), (y, x, down, up))


def test_gradcheck_of_dora_with_the_lengths_held() -> None:
    """No gradient goes through |W + s B A| (section 4.3), so the differences are taken with it held as well."""
    frozen = base()
    adapter = Decomposed(base=frozen, rank=2, alpha=3.0)
    nn.init.normal_(adapter.up)
    held = adapter._stretch(frozen).detach() * 0 + 1 / (frozen.weight + 1.5 * adapter.up @ adapter.down).norm(dim=1)
    held = held.detach()

    def forward(x: Tensor, down: Tensor, up: Tensor, magnitude: Tensor) -> Tensor:
        return lora(x @ frozen.weight.T, x, down, up, adapter.scale) * (magnitude * held)

    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(forward, (x, adapter.down, adapter.up, adapter.magnitude))
    expected = forward(x, adapter.down, adapter.up, adapter.magnitude)
    assert torch.allclose(adapter(x, frozen), expected, atol=1e-12)
    toward = torch.randn_like(expected)
    inputs = (x, adapter.down, adapter.up, adapter.magnitude)
    mine = torch.autograd.grad((adapter(x, frozen) * toward).sum(), inputs)
    for one, other in zip(mine, torch.autograd.grad((expected * toward).sum(), inputs), strict=True):
        assert torch.allclose(one, other, atol=1e-10)


def test_the_lengths_of_rows_that_are_not_made() -> None:
    torch.manual_seed(0)
    weight, down, up = torch.randn(9, 6), torch.randn(3, 6), torch.randn(9, 3)
    found = changed_lengths(weight.norm(dim=1), weight @ down.T, down, up, 0.5)
    assert torch.allclose(found, (weight + 0.5 * up @ down).norm(dim=1), atol=1e-5)
    against = changed_lengths(weight.norm(dim=1), weight @ weight.T[:, :6], weight[:6], -torch.eye(9)[:, :6], 1.0)
    assert against[:6].max() < 1e-2, "rows that cancel have no length, and no NaN"


@pytest.mark.parametrize("kind", [LowRank, Decomposed])
def test_a_new_adapter_changes_nothing_and_its_matrix_does_what_it_does(kind: type[LowRank]) -> None:
    frozen = base()
    adapter = kind(base=frozen, rank=3, alpha=4.0)
    x = torch.randn(4, 2, 5, dtype=torch.float64)
    assert torch.allclose(adapter(x, frozen), x @ frozen.weight.T, atol=1e-12)
    nn.init.normal_(adapter.up)
    if isinstance(adapter, Decomposed):
        nn.init.uniform_(adapter.magnitude)
    assert torch.allclose(adapter(x, frozen), x @ adapter.weight(frozen).T, atol=1e-10)


def test_the_scales() -> None:
    assert LowRank(base=base(), rank=4, alpha=8.0).scale == 2.0
    assert LowRank(base=base(), rank=4, alpha=8.0, rslora=True).scale == 4.0
    bound = 1 / math.sqrt(5)
    down = LowRank(base=base(), rank=500).down
    assert 0.95 * bound < down.abs().max() <= bound


def test_dropout_falls_on_what_the_adapter_reads_while_it_trains() -> None:
    frozen = base(d_in=400)
    adapter = LowRank(base=frozen, rank=2, dropout=0.5)
    nn.init.normal_(adapter.up)
    x = torch.ones(1, 400, dtype=torch.float64)
    plain = x @ frozen.weight.T
    adapter.eval()
    assert torch.equal(adapter(x, frozen), adapter(x, frozen))
    adapter.train()
    first, second = adapter(x, frozen), adapter(x, frozen)
    assert not torch.equal(first, second)
    many = torch.stack([adapter(x, frozen) - plain for _ in range(2000)])
    adapter.eval()
    expected = adapter(x, frozen) - plain
    error = many.std(dim=0) / math.sqrt(len(many))
    assert ((many.mean(dim=0) - expected).abs() < 5 * error).all()


def test_half_precision_maps_have_adapters_in_float32() -> None:
    frozen = base(dtype=torch.bfloat16)
    for kind in (LowRank, Decomposed):
        adapter = kind(base=frozen, rank=2)
        assert adapter.down.dtype == torch.float32
        y = adapter(torch.randn(3, 5, dtype=torch.bfloat16), frozen)
        assert y.dtype == torch.bfloat16
        y.float().sum().backward()
        assert adapter.up.grad is not None


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ({"rank": 0}, "rank = 0"),
        ({"alpha": 0.0}, "alpha = 0"),
        ({"alpha": math.inf}, "alpha = inf"),
        ({"dropout": 1.0}, "dropout = 1"),
    ],
)
def test_wrong_settings_are_named(wrong: dict[str, float], what: str) -> None:
    with pytest.raises(SettingError, match=what):
        LowRank(base=base(), **wrong)  # type: ignore[arg-type]
