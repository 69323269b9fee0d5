"""AWQ: columns that matter are made larger before rounding, and what feeds them smaller by as much.

A column of W multiplied by s, and its input divided by s, is the same map; but the rounding error of that column,
relative to it, is 1/s of what it was, while the levels of its group hardly change. Which columns matter is told by what
they are multiplied by in use (Lin et al. 2023, "AWQ", eq. 4 and 5):

    s = mean |x|^alpha,      alpha the best of a few in [0, 1]: the least error of the layer's output.

The division is folded into what makes the input, so that the model that comes out has the same parts as before: the
norm before queries, keys and values and before the feed-forward layer; the values' rows before the attention's output
(one s for all heads that share a value head); the input's rows before the output of a gated layer. Other maps (of
experts, from a latent) keep their columns. For all, the levels are then laid over the best share of their range.

The error is had from H = X^T X without the text: |(W' - W) X|^2 = tr((W' - W) H (W' - W)^T).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tessera.generate.quantize.calibrate import Moments
from tessera.generate.quantize.kinds import Kind, fits, group_for
from tessera.generate.quantize.rounding import from_codes, layer_error, nearest
from tessera.model.attention import GroupedQueryAttention
from tessera.model.block import Block, ParallelBlock, PostNormBlock
from tessera.model.dense import ReluFeedForward, SwigluFeedForward
from tessera.model.norm import LayerNorm, RMSNorm

STEPS = 20
"""Values of alpha that are tried, from 0."""
_DENSE = (ReluFeedForward, SwigluFeedForward)


@dataclass(frozen=True)
class Fold:
    """Maps that read the same input, and the module that makes it: its weight's rows (and bias) are divided.

    `n_shared` = m: each of `d_head` numbers that the maker makes is read at m places, heads next to each other.
    """

    readers: tuple[str, ...]
    maker: str
    n_shared: int = 1
    d_head: int = 1

    def tied(self, size_D: Tensor) -> Tensor:
        """The mean over the places that read the same number, as wide as the maker."""
        if self.n_shared == 1:
            return size_D
        return size_D.view(-1, self.n_shared, self.d_head).mean(dim=1).flatten()

    def spread(self, scale: Tensor) -> Tensor:
        """A number for each place."""
        if self.n_shared == 1:
            return scale
        return scale.view(-1, 1, self.d_head).expand(-1, self.n_shared, -1).flatten()

    def made(self, scale_D: Tensor) -> Tensor:
        """A number for each that the maker makes."""
        return scale_D if self.n_shared == 1 else scale_D.view(-1, self.n_shared, self.d_head)[:, 0].flatten()


def folds_of(block: nn.Module) -> list[Fold]:
    """Where a block's maps can hand a factor on to what feeds them."""
    assert isinstance(block, Block)
    gqa, dense = isinstance(block.attention, GroupedQueryAttention), isinstance(block.feed_forward, _DENSE)
    gated = isinstance(block.feed_forward, SwigluFeedForward)
    first = tuple(f"attention.{name}" for name in ("query", "key", "value")) if gqa else ()
    second = (("feed_forward.gate",) if gated else ()) + ("feed_forward.input",) if dense else ()
    found: list[Fold] = []
    if isinstance(block, ParallelBlock):
        if first and second and _scales(block.attention_norm):
            found.append(Fold(first + second, "attention_norm"))
    elif not isinstance(block, PostNormBlock):
        if first and _scales(block.attention_norm):
            found.append(Fold(first, "attention_norm"))
        if second and _scales(block.feed_forward_norm):
            found.append(Fold(second, "feed_forward_norm"))
    if gqa and block.attention.value_mix is None:
        n_shared, d_head = block.attention.n_heads // block.attention.n_kv_heads, block.attention.d_head
        found.append(Fold(("attention.output",), "attention.value", n_shared, d_head))
    if gated:
        found.append(Fold(("feed_forward.output",), "feed_forward.input"))
    return found


def mixes_values(blocks: Sequence[Any]) -> bool:
    """Whether later blocks read the values of the first: a factor folded into them would be seen there."""
    return any(getattr(block.attention, "value_mix", None) is not None for block in blocks)


def _scales(norm: nn.Module) -> bool:
    return isinstance(norm, RMSNorm | LayerNorm)


def best_scale(
    kind: Kind, weights: Sequence[Tensor], moments: Moments, fold: Fold, group: int, *, steps: int = STEPS
) -> Tensor:
    """The factor of each column, (D,), with the least error of all maps together; 1 where none is better."""
    hessian_DD, size_D = moments.hessians[0], moments.sizes[0]
    size = fold.tied(size_D).clamp(min=1e-8)
    best, least = torch.ones_like(size_D), float("inf")
    for step in range(steps):
        scale = size ** (step / steps)
        scale_D = fold.spread(scale / (scale.max() * scale.min()).sqrt())
        error = 0.0
        for w_RD in weights:
            made_RD = from_codes(*nearest(kind, w_RD * scale_D, group))
            error += layer_error(made_RD / scale_D - w_RD, hessian_DD)
        if error < least:
            best, least = scale_D, error
    return best


@torch.no_grad()
def fold_scale(block: nn.Module, fold: Fold, moments: Moments, kind: Kind, wanted: int | None) -> Tensor:
    """Find the factor of the readers' columns and apply it to them and, divided by it, to the maker; (D,)."""
    readers: list[Any] = [block.get_submodule(path) for path in fold.readers]
    width = readers[0].weight.shape[1]
    if not fits(kind, width):
        return torch.ones(width)
    weights = [reader.weight.float() for reader in readers]
    scale_D = best_scale(kind, weights, moments, fold, group_for(kind, width, wanted))
    for reader in readers:
        reader.weight.mul_(scale_D)
    maker: Any = block.get_submodule(fold.maker)
    divisor = fold.made(scale_D)
    maker.weight.div_(divisor if maker.weight.ndim == 1 else divisor.unsqueeze(1))
    if not isinstance(maker, RMSNorm) and maker.bias is not None:
        maker.bias.div_(divisor)
    return scale_D
