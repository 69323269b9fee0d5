"""A parameter: what the model learns, its gradient, and the two averages that Adam keeps of it."""

from collections.abc import Mapping

import numpy as np

from tessera.errors import InputError


class Parameter:
    """Four arrays of one shape and type.

    - `data`: the numbers that the model computes with.
    - `grad`: the sum of the gradients since the last `zero_grad`. A backward pass adds to it, so that two uses of one
      parameter (a tied head) and several batches (accumulation) need nothing more.
    - `m`, `v`: the running means of the gradient and of its square; None until Adam makes them.

    >>> weight = Parameter(np.array([1.0, 2.0]))
    >>> weight.add_grad(np.array([0.5, 0.0]))
    >>> weight.set(weight.get() - 0.1 * weight.grad)
    >>> weight.data
    array([0.95, 2.  ])
    """

    __slots__ = ("data", "grad", "m", "v")

    def __init__(self, data: np.ndarray) -> None:
        self.data = data
        self.grad = np.zeros_like(data)
        self.m: np.ndarray | None = None
        self.v: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def size(self) -> int:
        return self.data.size

    def get(self) -> np.ndarray:
        """A copy of the numbers."""
        return self.data.copy()

    def set(self, value: np.ndarray) -> None:
        """Other numbers, in the same memory and type."""
        value = np.asarray(value)
        if value.shape != self.shape:
            raise InputError(f"numbers of shape {value.shape} for a parameter of shape {self.shape}")
        self.data[...] = value

    def add_grad(self, grad: np.ndarray) -> None:
        if grad.shape != self.shape:
            raise InputError(f"a gradient of shape {grad.shape} for a parameter of shape {self.shape}")
        self.grad += grad

    def zero_grad(self) -> None:
        self.grad.fill(0)


def within(name: str, parameters: Mapping[str, Parameter]) -> dict[str, Parameter]:
    """The parameters of a part under its name in the whole.

    >>> list(within("query", {"weight": Parameter(np.zeros((2, 2)))}))
    ['query.weight']
    """
    return {f"{name}.{inner}": parameter for inner, parameter in parameters.items()}
