"""Adapters by the names and in the forms of Hugging Face's modules.

Most maps differ by name only. Where several of ours are one of theirs (GPT-2's query, key and value; DeepSeek's maps
from the latent), their adapters are one adapter, exactly: what they read from is stacked, the ranks add up, and each
has its own columns of what goes out. The other way around each of ours gets all of what is read from and its own rows.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tessera.adapt.low_rank import Decomposed, LowRank
from tessera.errors import SettingError
from tessera.formats.families.links import Joined, JoinedByHead, JoinedTransposed, Link, Transposed
from tessera.formats.torch_tensors import TorchRead

_ROWS_MOVE = (Link, Transposed, Joined, JoinedTransposed, JoinedByHead)
WEIGHT = ".weight"


@dataclass(frozen=True)
class Matrices:
    """One adapter's numbers, whoever's it is: y = W x + scale up (down x), and DoRA's magnitudes."""

    down_RD: Tensor
    up_FR: Tensor
    magnitude_F: Tensor | None
    scale: float

    @classmethod
    def of(cls, adapter: LowRank) -> "Matrices":
        magnitude = adapter.magnitude.detach() if isinstance(adapter, Decomposed) else None
        return cls(adapter.down.detach(), adapter.up.detach(), magnitude, adapter.scale)

    @property
    def rank(self) -> int:
        return len(self.down_RD)

    def alpha(self, *, rslora: bool) -> float:
        """What gives the scale with this rank."""
        return self.scale * (math.sqrt(self.rank) if rslora else self.rank)


def is_turned(link: Link) -> bool:
    """Whether the matrix of theirs lies the other way around."""
    return isinstance(link, Transposed | JoinedTransposed)


def their_module(link: Link) -> str:
    return link.theirs[0].removesuffix(WEIGHT)


def our_modules(link: Link) -> list[str]:
    return [name.removesuffix(WEIGHT) for name in link.ours]


def map_links(links: Sequence[Link]) -> Iterator[Link]:
    """Those of matrices that an adapter can be beside."""
    for link in links:
        one = len(link.theirs) == 1 and link.theirs[0].endswith(WEIGHT)
        if one and type(link) in _ROWS_MOVE and all(len(shape) == 2 for shape in link.shapes):
            yield link


def to_theirs(
    adapters: Mapping[str, Matrices], links: Sequence[Link], lengths: Callable[[str], Tensor]
) -> dict[str, Matrices]:
    """Adapters by their modules, of ours by our paths. `lengths(path)`: the lengths of the rows of one of our maps."""
    made: dict[str, Matrices] = {}
    covered: set[str] = set()
    for link in map_links(links):
        ours = our_modules(link)
        if any(path in adapters for path in ours):
            made[their_module(link)] = _joined(link, [adapters.get(path) for path in ours], lengths)
            covered.update(ours)
    for path in adapters:
        if path not in covered:
            raise SettingError("adapter", path, "a linear map that the model's family in Hugging Face's libraries has")
    return made


def _joined(link: Link, parts: list[Matrices | None], lengths: Callable[[str], Tensor]) -> Matrices:
    present = [part for part in parts if part is not None]
    first = present[0]
    alone = len(parts) == 1
    same = len(present) == len(parts) and all(torch.equal(part.down_RD, first.down_RD) for part in present)
    n_columns = first.rank if same else sum(part.rank for part in present)
    ups, start = [], 0
    for part, (height, _) in zip(parts, link.shapes, strict=True):
        up_FR = torch.zeros(height, n_columns)
        if part is not None:
            stop = start + part.rank
            up_FR[:, start:stop] = part.up_FR * (part.scale / first.scale)
            start = 0 if same else stop
        ups.append(up_FR)
    magnitude = None
    if any(part.magnitude_F is not None for part in present):
        found = [
            lengths(path) if part is None or part.magnitude_F is None else part.magnitude_F
            for part, path in zip(parts, our_modules(link), strict=True)
        ]
        magnitude = _give(link, [each.unsqueeze(1) for each in found]).squeeze(1)
    down_RD = first.down_RD if alone or same else torch.cat([part.down_RD for part in present])
    return Matrices(down_RD, _give(link, ups), magnitude, first.scale)


def from_theirs(link: Link, theirs: Matrices) -> dict[str, Matrices]:
    """The adapters of our maps by their paths, of one of theirs."""
    made = {}
    for which, path in enumerate(our_modules(link)):
        magnitude = theirs.magnitude_F
        if magnitude is not None:
            magnitude = _take(link, which, magnitude.unsqueeze(1)).squeeze(1)
        made[path] = Matrices(theirs.down_RD.clone(), _take(link, which, theirs.up_FR), magnitude, theirs.scale)
    return made


def _give(link: Link, rows: Sequence[Tensor]) -> Tensor:
    """Rows that belong to those of our matrices, as they lie in theirs."""
    made = link.give(rows)[0]
    return (made.T if is_turned(link) else made).contiguous()


def _take(link: Link, which: int, rows_FR: Tensor) -> Tensor:
    """The rows that belong to one of our matrices, out of theirs."""
    read = TorchRead(lambda name, dtype, out: rows_FR.T if is_turned(link) else rows_FR, rows_FR.dtype)
    return link.take(which, read).clone()
