import pytest
import torch
import torch.nn.functional as F

from tessera.ops.dropout import SLICE, dropout


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_it_is_distributed_as_pytorchs(share: float) -> None:
    """Share and mean of the kept, of neighbours and of elements four apart (one random word is drawn for four)."""
    torch.manual_seed(3)
    n = 3 * SLICE + 5
    ours, theirs = dropout(torch.ones(n), share), F.dropout(torch.ones(n), share)
    assert sorted(ours.unique().tolist()) == [0.0, pytest.approx(1 / (1 - share), rel=2e-4)]
    deviation = (share * (1 - share) / n) ** 0.5
    for distance in (0, 1, 2, 3, 4, 8, SLICE):
        shares = []
        for y in (ours, theirs):
            silent = y == 0
            shares.append((silent & silent.roll(distance)).double().mean().item())
        expected = share if distance == 0 else share**2
        assert shares[0] == pytest.approx(expected, abs=5 * deviation)
        assert shares[0] == pytest.approx(shares[1], abs=8 * deviation)


def test_the_same_seed_drops_the_same_and_the_generator_moves() -> None:
    x = torch.randn(7, 33)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, second = dropout(x, 0.3), dropout(x, 0.3)
    torch.set_rng_state(state)
    assert torch.equal(dropout(x, 0.3), first)
    assert torch.equal(dropout(x, 0.3), second)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_it_keeps_the_type_and_any_layout(dtype: torch.dtype) -> None:
    x = (torch.rand(6, 5, 4) + 1).to(dtype).transpose(0, 2)
    y = dropout(x, 0.4)
    assert y.dtype == dtype
    assert y.shape == x.shape
    kept = y != 0
    torch.testing.assert_close(y[kept], (x / 0.6)[kept], rtol=1e-2, atol=0)


def test_keeps_the_mean_and_silences_the_share() -> None:
    torch.manual_seed(0)
    y = dropout(torch.ones(200_000), 0.25)
    assert abs(y.mean().item() - 1.0) < 0.01
    assert abs((y == 0).float().mean().item() - 0.25) < 0.01


def test_zero_is_the_identity_and_draws_nothing() -> None:
    x = torch.randn(5)
    before = torch.get_rng_state()
    assert dropout(x, 0.0) is x
    assert torch.equal(before, torch.get_rng_state())


def test_the_gradient_passes_where_the_value_did() -> None:
    x = torch.randn(1000, requires_grad=True)
    y = dropout(x, 0.5)
    given = torch.randn(1000)
    y.backward(given)
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.where(y == 0, 0.0, 2.0 * given))
