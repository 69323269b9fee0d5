"""Activations: f(x) number by number, each also as two functions that write into memory that is given.

`activation(x)` is the plain one, which autograd knows. The other two are for operations that have a backward pass of
their own and go slice by slice: `into` writes f(x), `gradient_into` writes grad f'(x).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Approximate = Literal["tanh", "none"]
_aten = torch.ops.aten


class Activation(ABC):
    """Has no state, so one object serves all layers."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """f(x)."""

    @abstractmethod
    def into(self, x: Tensor, out: Tensor) -> Tensor:
        """f(x) in `out`, which is of x's shape and type."""

    @abstractmethod
    def gradient_into(self, grad: Tensor, x: Tensor, out: Tensor) -> Tensor:
        """grad f'(x) in `out`, which may be `grad`."""


@dataclass(frozen=True)
class Relu(Activation):
    """max(0, x)."""

    def __call__(self, x: Tensor) -> Tensor:
        return x.relu()

    def into(self, x: Tensor, out: Tensor) -> Tensor:
        return torch.clamp_min(x, 0, out=out)

    def gradient_into(self, grad: Tensor, x: Tensor, out: Tensor) -> Tensor:
        return _aten.threshold_backward.grad_input(grad, x, 0, grad_input=out)


@dataclass(frozen=True)
class SquaredRelu(Activation):
    """max(0, x)^2 (So et al. 2021, "Primer")."""

    def __call__(self, x: Tensor) -> Tensor:
        return x.relu().square()

    def into(self, x: Tensor, out: Tensor) -> Tensor:
        return torch.clamp_min(x, 0, out=out).square_()

    def gradient_into(self, grad: Tensor, x: Tensor, out: Tensor) -> Tensor:
        return torch.mul(grad, x.clamp_min(0).mul_(2), out=out)


@dataclass(frozen=True)
class Gelu(Activation):
    """x Phi(x) (Hendrycks and Gimpel 2016); "tanh" is GPT-2's approximation of Phi, "none" is exact."""

    approximate: Approximate = "tanh"

    def __call__(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate=self.approximate)

    def into(self, x: Tensor, out: Tensor) -> Tensor:
        return _aten.gelu.out(x, approximate=self.approximate, out=out)

    def gradient_into(self, grad: Tensor, x: Tensor, out: Tensor) -> Tensor:
        return _aten.gelu_backward.grad_input(grad, x, approximate=self.approximate, grad_input=out)


@dataclass(frozen=True)
class Silu(Activation):
    """x sigmoid(x)."""

    def __call__(self, x: Tensor) -> Tensor:
        return F.silu(x)

    def into(self, x: Tensor, out: Tensor) -> Tensor:
        return _aten.silu.out(x, out=out)

    def gradient_into(self, grad: Tensor, x: Tensor, out: Tensor) -> Tensor:
        return _aten.silu_backward.grad_input(grad, x, grad_input=out)
