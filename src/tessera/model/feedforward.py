"""Feed-forward layers: each token on its own, wider inside than outside.

Plain: output(f(input(x))), with f = ReLU (Vaswani et al. 2017), ReLU squared (So et al. 2021, "Primer") or GELU
(GPT-2). Gated: output(silu(gate(x)) * input(x)) (Shazeer 2020, "GLU Variants Improve Transformer").
"""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from tessera.model.linear import Linear


class ReluFeedForward(nn.Module):
    """output(max(0, input(x))); `d_ff` is 4 d_model unless said."""

    def __init__(self, *, d_model: int, d_ff: int | None = None, bias: bool = False) -> None:
        super().__init__()
        d_ff = 4 * d_model if d_ff is None else d_ff
        self.input = Linear(d_in=d_model, d_out=d_ff, bias=bias)
        self.output = Linear(d_in=d_ff, d_out=d_model, bias=bias)

    def activate(self, x_BTF: Tensor) -> Tensor:
        return x_BTF.relu()

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.output(self.activate(self.input(x_BTD)))


class SquaredReluFeedForward(ReluFeedForward):
    """output(max(0, input(x))^2)."""

    def activate(self, x_BTF: Tensor) -> Tensor:
        return x_BTF.relu().square()


class GeluFeedForward(ReluFeedForward):
    """output(x Phi(x)), Phi the normal distribution function (Hendrycks and Gimpel 2016).

    `approximate = "tanh"`: Phi(x) by (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2, as in GPT-2; "none" is exact.
    """

    def __init__(
        self,
        *,
        d_model: int,
        d_ff: int | None = None,
        bias: bool = False,
        approximate: Literal["tanh", "none"] = "tanh",
    ) -> None:
        super().__init__(d_model=d_model, d_ff=d_ff, bias=bias)
        self.approximate = approximate

    def activate(self, x_BTF: Tensor) -> Tensor:
        return F.gelu(x_BTF, approximate=self.approximate)


class SwigluFeedForward(nn.Module):
    """output(silu(gate(x)) * input(x)), silu(x) = x sigmoid(x).

    `d_ff` is 8/3 d_model unless said, rounded up to a multiple of 32: its three matrices cost what two of 4 d_model do.
    """

    def __init__(self, *, d_model: int, d_ff: int | None = None, bias: bool = False) -> None:
        super().__init__()
        d_ff = -(-8 * d_model // 96) * 32 if d_ff is None else d_ff
        self.gate = Linear(d_in=d_model, d_out=d_ff, bias=bias)
        self.input = Linear(d_in=d_model, d_out=d_ff, bias=bias)
        self.output = Linear(d_in=d_ff, d_out=d_model, bias=bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.output(F.silu(self.gate(x_BTD)) * self.input(x_BTD))


FEED_FORWARDS = {
    "relu": ReluFeedForward,
    "relu2": SquaredReluFeedForward,
    "gelu": GeluFeedForward,
    "swiglu": SwigluFeedForward,
}
