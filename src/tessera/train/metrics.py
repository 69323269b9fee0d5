"""What an objective measures in a step: numbers by name, averaged over the step's micro-batches."""

from collections.abc import Mapping

import torch
from torch import Tensor


def on_host(metrics: Mapping[str, Tensor | float], like: Tensor, *, vectors: bool = True) -> dict[str, float]:
    """The metrics as floats, brought from the device of `like` in one transfer: to wait for each would cost a step.

    A vector becomes a number for each of its entries, unless `vectors` are not wanted.

    >>> on_host({"loss": 2.0, "load": torch.tensor([0.25, 0.75])}, like=torch.tensor(0.0))
    {'loss': 2.0, 'load.0': 0.25, 'load.1': 0.75}
    """
    names, numbers = packed(metrics, like, vectors=vectors)
    return dict(zip(names, numbers.tolist(), strict=True))


def packed(metrics: Mapping[str, Tensor | float], like: Tensor, *, vectors: bool = True) -> tuple[list[str], Tensor]:
    """The names of `on_host`, and the numbers as one tensor where and as `like` is."""
    names: list[str] = []
    parts: list[Tensor] = []
    for name, value in metrics.items():
        part = torch.as_tensor(value).detach().to(device=like.device, dtype=like.dtype)
        if part.ndim == 0 or vectors:
            names += [name] if part.ndim == 0 else [f"{name}.{i}" for i in range(part.numel())]
            parts.append(part.flatten())
    return names, torch.cat(parts) if parts else like.new_empty(0)


class Means:
    """Weighted means by name, over those additions in which the name was there."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._weights: dict[str, float] = {}

    def add(self, values: Mapping[str, float], weight: float) -> None:
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value * weight
            self._weights[name] = self._weights.get(name, 0.0) + weight

    def values(self) -> dict[str, float]:
        return {name: total / self._weights[name] for name, total in self._sums.items() if self._weights[name]}
