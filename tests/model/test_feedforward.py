import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tessera.model.feedforward import FEED_FORWARDS, GeluFeedForward, SwigluFeedForward


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("name", "activate"),
    [("relu", F.relu), ("relu2", lambda x: F.relu(x) ** 2), ("gelu", nn.GELU(approximate="tanh"))],
)
def test_plain_kinds_equal_torch(name: str, activate, bias: bool) -> None:
    layer = FEED_FORWARDS[name](d_model=6, bias=bias)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 3, 6)
    inner = activate(F.linear(x, layer.input.weight, layer.input.bias))
    assert inner.shape[-1] == 24
    torch.testing.assert_close(layer(x), F.linear(inner, layer.output.weight, layer.output.bias))


def test_gelu_has_the_exact_form_too() -> None:
    layer = GeluFeedForward(d_model=1, d_ff=1, approximate="none")
    nn.init.ones_(layer.input.weight)
    nn.init.ones_(layer.output.weight)
    x = torch.linspace(-3, 3, 7)[:, None]
    torch.testing.assert_close(layer(x), x * torch.distributions.Normal(0, 1).cdf(x))


def test_swiglu_equals_its_formula() -> None:
    layer = SwigluFeedForward(d_model=6, d_ff=5, bias=True)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 3, 6)
    gate, inner = (F.linear(x, part.weight, part.bias) for part in (layer.gate, layer.input))
    expected = F.linear(gate / (1 + torch.exp(-gate)) * inner, layer.output.weight, layer.output.bias)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize(("d_model", "d_ff"), [(96, 256), (256, 704), (4096, 10944), (1, 32)])
def test_default_width_of_swiglu(d_model: int, d_ff: int) -> None:
    with torch.device("meta"):
        assert SwigluFeedForward(d_model=d_model).gate.weight.shape == (d_ff, d_model)
