"""Dense feed-forward layers: each token on its own, wider inside than outside.

Plain: output(f(input(x))), with f = ReLU (Vaswani et al. 2017), ReLU squared (So et al. 2021, "Primer") or GELU
(GPT-2). Gated: output(f(gate(x)) * input(x)), with f = SiLU or GELU (Shazeer 2020, "GLU Variants Improve Transformer").
"""

from abc import ABC, abstractmethod

import torch.nn.functional as F
from torch import Tensor, nn

from tessera.model.flow import Flow
from tessera.model.linear import Linear
from tessera.ops.gated import Approximate, geglu, swiglu


class FeedForward(nn.Module, ABC):
    """What fills the slot. Most need no `flow`; it takes what a layer has to say beside its output."""

    @abstractmethod
    def forward(self, x_BTD: Tensor, flow: Flow) -> Tensor:
        """What is added to the residual stream, as wide as `x_BTD`."""

    def updated(self) -> None:
        """Called after each update of the weights, for what is learned without a gradient."""

    def passed_over(self) -> None:
        """Called in its place where a step was not made: what its forward passes noted is to be forgotten."""


class ReluFeedForward(FeedForward):
    """output(max(0, input(x))); `d_ff` is 4 d_model unless said."""

    def __init__(self, *, d_model: int, d_ff: int | None = None, bias: bool = False) -> None:
        super().__init__()
        d_ff = 4 * d_model if d_ff is None else d_ff
        self.input = Linear(d_in=d_model, d_out=d_ff, bias=bias)
        self.output = Linear(d_in=d_ff, d_out=d_model, bias=bias)

    def activate(self, x_BTF: Tensor) -> Tensor:
        return x_BTF.relu()

    def forward(self, x_BTD: Tensor, flow: Flow) -> Tensor:
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
        approximate: Approximate = "tanh",
    ) -> None:
        super().__init__(d_model=d_model, d_ff=d_ff, bias=bias)
        self.approximate = approximate

    def activate(self, x_BTF: Tensor) -> Tensor:
        return F.gelu(x_BTF, approximate=self.approximate)


def gated_width(d_model: int) -> int:
    """8/3 d_model, rounded up to a multiple of 32: three matrices of it cost what two of 4 d_model do."""
    return -(-8 * d_model // 96) * 32


class SwigluFeedForward(FeedForward):
    """output(silu(gate(x)) * input(x)), silu(x) = x sigmoid(x); `d_ff` is `gated_width(d_model)` unless said."""

    def __init__(self, *, d_model: int, d_ff: int | None = None, bias: bool = False) -> None:
        super().__init__()
        d_ff = gated_width(d_model) if d_ff is None else d_ff
        self.gate = Linear(d_in=d_model, d_out=d_ff, bias=bias)
        self.input = Linear(d_in=d_model, d_out=d_ff, bias=bias)
        self.output = Linear(d_in=d_ff, d_out=d_model, bias=bias)

    def activate(self, gate_BTF: Tensor, x_BTF: Tensor) -> Tensor:
        return swiglu(gate_BTF, x_BTF)

    def forward(self, x_BTD: Tensor, flow: Flow) -> Tensor:
        return self.output(self.activate(self.gate(x_BTD), self.input(x_BTD)))


class GegluFeedForward(SwigluFeedForward):
    """output(gelu(gate(x)) * input(x)) (Gemma); `approximate` as in `GeluFeedForward`, `d_ff` as with SwiGLU."""

    def __init__(
        self, *, d_model: int, d_ff: int | None = None, bias: bool = False, approximate: Approximate = "tanh"
    ) -> None:
        super().__init__(d_model=d_model, d_ff=d_ff, bias=bias)
        self.approximate = approximate

    def activate(self, gate_BTF: Tensor, x_BTF: Tensor) -> Tensor:
        return geglu(gate_BTF, x_BTF, self.approximate)
