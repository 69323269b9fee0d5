"""Links between our tensors and those of another family's files, usable in both directions.

Most tensors differ by name only. The rest is a handful of forms: a matrix that lies the other way around, several
matrices in one, one tensor for each expert. A link says how ours are read from theirs, how theirs are made of ours, and
which shapes the files must have. All of it is in operations that NumPy's arrays and PyTorch's tensors have alike, so
that a file is read as either.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

Array = Any
"""A `np.ndarray` or a `torch.Tensor`."""


class Read:
    """Reads their tensors in memory of their own, here as arrays of float32; `fetch` reads into its second argument
    where it is given. `torch_tensors.TorchRead` reads tensors of any float type."""

    def __init__(self, fetch: Callable[[str, Any], Array]) -> None:
        self._fetch = fetch

    def __call__(self, name: str, out: Any = None, /) -> Array:
        return self._fetch(name, out)

    def plus_one(self, name: str) -> Array:
        """The tensor and 1, added in float32: a weight near 1 has fewer digits left than its difference to 1 had."""
        found = self._fetch(name, None)
        found += 1
        return found

    def empty(self, shape: tuple[int, ...]) -> Array:
        return np.empty(shape, np.float32)

    def own(self, found: Array) -> Array:
        """A part of a tensor, or one that lies otherwise, in memory of its own."""
        return np.array(found, order="C")


@dataclass(frozen=True)
class Link:
    """Tensors of ours and tensors of theirs that hold the same numbers. This one: the same tensor by another name."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    """The shapes of ours."""

    def their_shapes(self) -> list[tuple[int, ...]]:
        return list(self.shapes)

    def take(self, which: int, read: Read) -> Array:
        """`ours[which]`, in memory of its own."""
        return read(self.theirs[0])

    def give(self, ours: Sequence[Array]) -> list[Array]:
        """Theirs, made of all of ours."""
        return list(ours)


class Transposed(Link):
    """A matrix that is kept as (d_in, d_out)."""

    def their_shapes(self) -> list[tuple[int, ...]]:
        return [self.shapes[0][::-1]]

    def take(self, which: int, read: Read) -> Array:
        return read.own(read(self.theirs[0]).T)

    def give(self, ours: Sequence[Array]) -> list[Array]:
        return [ours[0].T]


class LessOne(Link):
    """A norm's weight that is kept as its difference to 1 (Gemma)."""

    def take(self, which: int, read: Read) -> Array:
        return read.plus_one(self.theirs[0])

    def give(self, ours: "Sequence[Tensor]") -> "list[Tensor]":
        return [ours[0].float() - 1.0]


class Joined(Link):
    """Several of ours, one below the other, in one of theirs."""

    def their_shapes(self) -> list[tuple[int, ...]]:
        return [(sum(shape[0] for shape in self.shapes), *self.shapes[0][1:])]

    def _rows(self, which: int) -> slice:
        """Where one of ours is."""
        begin = sum(shape[0] for shape in self.shapes[:which])
        return slice(begin, begin + self.shapes[which][0])

    def take(self, which: int, read: Read) -> Array:
        return read.own(read(self.theirs[0])[self._rows(which)])

    def give(self, ours: "Sequence[Tensor]") -> "list[Tensor]":
        return [_joined(ours, 0)]


class JoinedTransposed(Joined):
    """The same, kept as (d_in, d_out): GPT-2's query, key and value."""

    def their_shapes(self) -> list[tuple[int, ...]]:
        return [super().their_shapes()[0][::-1]]

    def take(self, which: int, read: Read) -> Array:
        return read.own(read(self.theirs[0])[:, self._rows(which)].T)

    def give(self, ours: "Sequence[Tensor]") -> "list[Tensor]":
        return [_joined(ours, 0).T]


@dataclass(frozen=True)
class JoinedByHead(Link):
    """Two of ours in one of theirs, head by head: the rows of the first, then those of the second (DeepSeek)."""

    n_heads: int

    def their_shapes(self) -> list[tuple[int, ...]]:
        return [(sum(shape[0] for shape in self.shapes), *self.shapes[0][1:])]

    def take(self, which: int, read: Read) -> Array:
        sizes = [shape[0] // self.n_heads for shape in self.shapes]
        begin = sum(sizes[:which])
        rows = read(self.theirs[0])
        rows_HKD = rows.reshape(self.n_heads, sum(sizes), *rows.shape[1:])
        return read.own(rows_HKD[:, begin : begin + sizes[which]].reshape(-1, *rows.shape[1:]))

    def give(self, ours: "Sequence[Tensor]") -> "list[Tensor]":
        by_head = [tensor.unflatten(0, (self.n_heads, -1)) for tensor in ours]
        return [_joined(by_head, 1).flatten(0, 1)]


class Stacked(Link):
    """One of ours for many of theirs: the experts."""

    def their_shapes(self) -> list[tuple[int, ...]]:
        return [self.shapes[0][1:]] * len(self.theirs)

    def take(self, which: int, read: Read) -> Array:
        out = read.empty(self.shapes[0])
        for i, name in enumerate(self.theirs):
            read(name, out[i])
        return out

    def give(self, ours: Sequence[Array]) -> list[Array]:
        return list(ours[0])


def _joined(tensors: "Sequence[Tensor]", dim: int) -> "Tensor":
    import torch  # ours are PyTorch's tensors where files are written

    return torch.cat(list(tensors), dim=dim)


def expected_shapes(link: Link) -> dict[str, tuple[int, ...]]:
    """The shapes that their tensors must have."""
    return dict(zip(link.theirs, link.their_shapes(), strict=True))
