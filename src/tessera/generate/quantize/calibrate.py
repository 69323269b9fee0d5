"""What the linear maps of a block are given when a text goes through the model: for GPTQ and AWQ alike.

The model is walked block by block. The inputs of a block are the outputs of the blocks before it as they are by then,
quantized ones included, so that what they lost is seen here.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tessera.errors import InputError
from tessera.model.decoder import Decoder
from tessera.model.flow import Flow
from tessera.model.linear import ExpertLinear, Linear

FEW = 0.2
"""The share of the inputs that are few."""


@dataclass(frozen=True)
class Moments:
    """Of the inputs x of one map, or of several that read the same; one entry for each expert."""

    hessians: tuple[Tensor, ...]
    """mean of x x^T, (D, D) float32."""
    sizes: tuple[Tensor, ...]
    """mean of |x|, (D,)."""
    n: tuple[int, ...]
    """How many inputs there were."""
    held_by: tuple[float, ...] = ()
    """About how many of them hold what there is of |x|^2: (sum |x|^2)^2 / sum |x|^4, all n where all are as large."""

    @classmethod
    def of(cls, parts: Sequence[Tensor]) -> "Moments":
        """Of these inputs (N, D), for each expert its own."""
        floats = [x_ND.float() for x_ND in parts]
        n = tuple(len(x_ND) for x_ND in floats)
        hessians = tuple(x_ND.T @ x_ND / max(len(x_ND), 1) for x_ND in floats)
        sizes = tuple(x_ND.abs().sum(dim=0) / max(len(x_ND), 1) for x_ND in floats)
        energies = [x_ND.double().square().sum(dim=1) for x_ND in floats]
        held_by = tuple(float(e_N.sum() ** 2 / e_N.square().sum().clamp(min=1e-300)) for e_N in energies)
        return cls(hessians, sizes, n, held_by)

    @property
    def is_massive(self) -> bool:
        """Whether a few inputs are so large that they hold nearly all there is of it."""
        return any(0 < held_by < FEW * n for held_by, n in zip(self.held_by, self.n, strict=False))


Seen = Callable[[str, Moments], None]


class Watch:
    """Gathers the moments of each layer's inputs while its block runs; those of the same input share them.

    `seen(path, moments)` is called before the layer computes.
    """

    def __init__(self, seen: Seen = lambda path, moments: None) -> None:
        self.moments: dict[str, Moments] = {}
        self.seen = seen
        self._last: tuple[Any, ...] = ()
        self._last_moments = Moments((), (), ())

    def see(self, path: str, given: tuple[Any, ...]) -> None:
        x = given[0]
        if len(given) == len(self._last) and all(one is other for one, other in zip(given, self._last, strict=True)):
            self.moments[path] = self._last_moments
        else:
            moments = self.moments[path] = Moments.of(
                x.split(list(given[1])) if len(given) > 1 else [x.reshape(-1, x.shape[-1])]
            )
            self._last, self._last_moments = given, moments
        self.seen(path, self.moments[path])

    @contextmanager
    def on(self, layers: Mapping[str, nn.Module]) -> Iterator[None]:
        handles = [
            layer.register_forward_pre_hook(lambda _, given, path=path: self.see(path, given))
            for path, layer in layers.items()
        ]
        try:
            yield
        finally:
            self._last = ()
            for handle in handles:
                handle.remove()


class Walk:
    """A text on its way through a model, all of its rows together: `x_BTD` is what the next block is given."""

    @torch.no_grad()
    def __init__(self, model: Decoder, rows_BT: Tensor) -> None:
        if rows_BT.ndim != 2 or not rows_BT.numel():
            raise InputError(f"calibration text of shape {tuple(rows_BT.shape)}: expected rows of tokens")
        self.model, self.flow = model, Flow.of(rows_BT)
        blocks, model.blocks = model.blocks, nn.ModuleList()
        try:
            self.x_BTD = model.trunk(rows_BT, flow=self.flow)
        finally:
            model.blocks = blocks

    @torch.no_grad()
    def run(self, block: int, watch: Watch | None = None, layers: Mapping[str, nn.Module] | None = None) -> Tensor:
        """What a block makes of it; `watch` sees what `layers` of the block are given."""
        self.flow.layer = block
        positions = self.model.positions
        with (watch or Watch()).on(layers or {}):
            made: Tensor = self.model.blocks[block](self.x_BTD, positions[block % len(positions)], self.flow)
        return made


def layers_of(block: nn.Module) -> dict[str, Linear | ExpertLinear]:
    """The linear maps of a block by their paths in it; but not a router of experts: what that says is a choice, where a
    small error is a large one."""
    return {
        path: part
        for path, part in block.named_modules()
        if type(part) in (Linear, ExpertLinear) and not path.endswith("router")
    }
