"""Dense feed-forward layers: each token on its own, wider inside than outside.

Plain: output(f(input(x))), with f = ReLU (Vaswani et al. 2017), ReLU squared (So et al. 2021, "Primer") or GELU
(GPT-2). Gated: output(f(gate(x)) * input(x)), with f = SiLU or GELU (Shazeer 2020, "GLU Variants Improve Transformer").
"""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from tessera.model.flow import Flow
from tessera.model.int8 import feed_forward_of
from tessera.model.linear import Linear
from tessera.model.plain import gated_width
from tessera.ops.activation import Activation, Approximate, Gelu, Relu, Silu, SquaredRelu
from tessera.ops.autocast import as_multiplied
from tessera.ops.feedforward import chunked_feed_forward, serves
from tessera.ops.gated import geglu, swiglu


class FeedForward(nn.Module, ABC):
    """What fills the slot. Most need no `flow`; it takes what a layer has to say beside its output."""

    @abstractmethod
    def forward(self, x_BTD: Tensor, flow: Flow) -> Tensor:
        """What is added to the residual stream, as wide as `x_BTD`."""

    def updated(self) -> None:
        """Called after each update of the weights, for what is learned without a gradient."""

    def passed_over(self) -> None:
        """Called in its place where a step was not made: what its forward passes noted is to be forgotten."""


def in_chunks(x_BTD: Tensor, into: tuple[nn.Module, ...], output: nn.Module, activate: Activation) -> Tensor | None:
    """The layer as one operation, if that is for it: none where a map is not a plain one, as an adapter's."""
    maps = (*into, output)
    if (y_BTD := feed_forward_of(x_BTD, maps, activate)) is not None:
        return y_BTD
    if not all(type(each) is Linear and not each.is_watched for each in maps):
        return None
    weights = [(each.weight, each.bias) for each in maps]
    if not serves(x_BTD, weights):  # type: ignore[arg-type]
        return None
    return chunked_feed_forward(x_BTD, weights[:-1], weights[-1], activate)  # type: ignore[arg-type]


class ReluFeedForward(FeedForward):
    """output(max(0, input(x))); `d_ff` is 4 d_model unless said."""

    activate: Activation = Relu()

    def __init__(self, *, d_model: int, d_ff: int | None = None, bias: bool = False) -> None:
        super().__init__()
        d_ff = 4 * d_model if d_ff is None else d_ff
        self.input = Linear(d_in=d_model, d_out=d_ff, bias=bias)
        self.output = Linear(d_in=d_ff, d_out=d_model, bias=bias)

    def forward(self, x_BTD: Tensor, flow: Flow) -> Tensor:
        y_BTD = in_chunks(x_BTD, (self.input,), self.output, self.activate)
        return self.output(self.activate(self.input(x_BTD))) if y_BTD is None else y_BTD


class SquaredReluFeedForward(ReluFeedForward):
    """output(max(0, input(x))^2)."""

    activate = SquaredRelu()


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
        self.activate = Gelu(approximate)


class SwigluFeedForward(FeedForward):
    """output(silu(gate(x)) * input(x)), silu(x) = x sigmoid(x); `d_ff` is `gated_width(d_model)` unless said."""

    def __init__(self, *, d_model: int, d_ff: int | None = None, bias: bool = False) -> None:
        super().__init__()
        d_ff = gated_width(d_model) if d_ff is None else d_ff
        self.gate = Linear(d_in=d_model, d_out=d_ff, bias=bias)
        self.input = Linear(d_in=d_model, d_out=d_ff, bias=bias)
        self.output = Linear(d_in=d_ff, d_out=d_model, bias=bias)
        self.gate_by: Activation = Silu()

    def activate(self, gate_BTF: Tensor, x_BTF: Tensor) -> Tensor:
        return swiglu(gate_BTF, x_BTF)

    def forward(self, x_BTD: Tensor, flow: Flow) -> Tensor:
        x_BTD = as_multiplied(x_BTD)
        y_BTD = in_chunks(x_BTD, (self.gate, self.input), self.output, self.gate_by)
        return self.output(self.activate(self.gate(x_BTD), self.input(x_BTD))) if y_BTD is None else y_BTD


class GegluFeedForward(SwigluFeedForward):
    """output(gelu(gate(x)) * input(x)) (Gemma); `approximate` as in `GeluFeedForward`, `d_ff` as with SwiGLU."""

    def __init__(
        self, *, d_model: int, d_ff: int | None = None, bias: bool = False, approximate: Approximate = "tanh"
    ) -> None:
        super().__init__(d_model=d_model, d_ff=d_ff, bias=bias)
        self.approximate = approximate
        self.gate_by = Gelu(approximate)

    def activate(self, gate_BTF: Tensor, x_BTF: Tensor) -> Tensor:
        return geglu(gate_BTF, x_BTF, self.approximate)
