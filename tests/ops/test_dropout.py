import torch
import torch.nn.functional as F

from tessera.ops.dropout import dropout


def test_equals_torch_with_the_same_seed() -> None:
    x = torch.randn(64, 64)
    torch.manual_seed(3)
    expected = F.dropout(x, 0.3)
    torch.manual_seed(3)
    torch.testing.assert_close(dropout(x, 0.3), expected)


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
    x = torch.ones(1000, requires_grad=True)
    y = dropout(x, 0.5)
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, y.detach())
