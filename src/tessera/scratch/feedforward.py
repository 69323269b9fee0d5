"""Feed-forward layers: each token on its own, wider inside than outside.

Plain: output(f(input(x))), with f = ReLU, ReLU squared or GELU. Gated: output(f(gate(x)) * input(x)), with f = SiLU or
GELU (Shazeer 2020, "GLU Variants Improve Transformer").
"""

from typing import Any, Literal

import numpy as np

from tessera.scratch.linear import Linear
from tessera.scratch.ops.activation import (
    GELUS,
    RELU,
    SILU,
    SQUARED_RELU,
    Activation,
    gated_backward,
    gated_forward,
)
from tessera.scratch.parameter import Parameter, within

Approximate = Literal["tanh", "none"]


class ReluFeedForward:
    """output(max(0, input(x))); `d_ff` is 4 d_model unless said. Base of the others that have no gate."""

    activation: Activation = RELU

    def __init__(self, *, d_model: int, d_ff: int | None = None, bias: bool = False, dtype: Any = np.float32) -> None:
        d_ff = 4 * d_model if d_ff is None else d_ff
        self.input = Linear(d_in=d_model, d_out=d_ff, bias=bias, dtype=dtype)
        self.output = Linear(d_in=d_ff, d_out=d_model, bias=bias, dtype=dtype)

    @property
    def parameters(self) -> dict[str, Parameter]:
        return within("input", self.input.parameters) | within("output", self.output.parameters)

    def forward(self, x_BTD: np.ndarray) -> tuple[np.ndarray, Any]:
        inner_BTF, saved_input = self.input.forward(x_BTD)
        active_BTF, saved_activation = self.activation.forward(inner_BTF)
        y_BTD, saved_output = self.output.forward(active_BTF)
        return y_BTD, (saved_input, saved_activation, saved_output)

    def backward(self, dy_BTD: np.ndarray, saved: Any) -> np.ndarray:
        saved_input, saved_activation, saved_output = saved
        dactive_BTF = self.output.backward(dy_BTD, saved_output)
        return self.input.backward(self.activation.backward(dactive_BTF, saved_activation), saved_input)


class SquaredReluFeedForward(ReluFeedForward):
    """output(max(0, input(x))^2)."""

    activation = SQUARED_RELU


class GeluFeedForward(ReluFeedForward):
    """output(gelu(input(x))); `approximate`: "tanh" as in GPT-2, "none" is exact."""

    def __init__(
        self,
        *,
        d_model: int,
        d_ff: int | None = None,
        bias: bool = False,
        approximate: Approximate = "tanh",
        dtype: Any = np.float32,
    ) -> None:
        super().__init__(d_model=d_model, d_ff=d_ff, bias=bias, dtype=dtype)
        self.activation = GELUS[approximate]


def gated_width(d_model: int) -> int:
    """8/3 d_model, rounded up to a multiple of 32: three matrices of it cost what two of 4 d_model do."""
    return -(-8 * d_model // 96) * 32


class SwigluFeedForward:
    """output(silu(gate(x)) * input(x)); `d_ff` is `gated_width(d_model)` unless said."""

    activation: Activation = SILU

    def __init__(self, *, d_model: int, d_ff: int | None = None, bias: bool = False, dtype: Any = np.float32) -> None:
        d_ff = gated_width(d_model) if d_ff is None else d_ff
        self.gate = Linear(d_in=d_model, d_out=d_ff, bias=bias, dtype=dtype)
        self.input = Linear(d_in=d_model, d_out=d_ff, bias=bias, dtype=dtype)
        self.output = Linear(d_in=d_ff, d_out=d_model, bias=bias, dtype=dtype)

    @property
    def parameters(self) -> dict[str, Parameter]:
        parts = {"gate": self.gate, "input": self.input, "output": self.output}
        return {name: p for part, layer in parts.items() for name, p in within(part, layer.parameters).items()}

    def forward(self, x_BTD: np.ndarray) -> tuple[np.ndarray, Any]:
        gate_BTF, saved_gate = self.gate.forward(x_BTD)
        inner_BTF, saved_input = self.input.forward(x_BTD)
        active_BTF, saved_product = gated_forward(gate_BTF, inner_BTF, self.activation)
        y_BTD, saved_output = self.output.forward(active_BTF)
        return y_BTD, (saved_gate, saved_input, saved_product, saved_output)

    def backward(self, dy_BTD: np.ndarray, saved: Any) -> np.ndarray:
        saved_gate, saved_input, saved_product, saved_output = saved
        dactive_BTF = self.output.backward(dy_BTD, saved_output)
        dgate_BTF, dinner_BTF = gated_backward(dactive_BTF, saved_product)
        # Both maps read the same x, so its gradients add.
        return self.gate.backward(dgate_BTF, saved_gate) + self.input.backward(dinner_BTF, saved_input)


class GegluFeedForward(SwigluFeedForward):
    """output(gelu(gate(x)) * input(x)) (Gemma); `approximate` as in `GeluFeedForward`, `d_ff` as with SwiGLU."""

    def __init__(
        self,
        *,
        d_model: int,
        d_ff: int | None = None,
        bias: bool = False,
        approximate: Approximate = "tanh",
        dtype: Any = np.float32,
    ) -> None:
        super().__init__(d_model=d_model, d_ff=d_ff, bias=bias, dtype=dtype)
        self.activation = GELUS[approximate]


FEED_FORWARDS = {
    "relu": ReluFeedForward,
    "relu2": SquaredReluFeedForward,
    "gelu": GeluFeedForward,
    "swiglu": SwigluFeedForward,
    "geglu": GegluFeedForward,
}
