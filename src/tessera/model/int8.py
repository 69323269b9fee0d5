"""Training in 8 bits on a CPU: the linear layers of the blocks make their products by `tessera.ops.int8`.

Embedding, attention and head stay in fp32, as does all that is between the products. The weights are the same
parameters as before, in fp32, and so is what is saved: a model that was trained like this is a model like any other,
and outside of training it computes like one.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from tessera.model.linear import Linear
from tessera.ops.activation import Activation
from tessera.ops.int8 import int8_linears
from tessera.ops.int8_feedforward import int8_feed_forward


class Int8Linear(Linear):
    """A linear layer with the parameters of another one; in 8 bits while gradients are kept."""

    def __init__(self, like: Linear) -> None:
        nn.Module.__init__(self)
        self.weight, self.bias = like.weight, like.bias

    def forward(self, x: Tensor) -> Tensor:
        return int8_linears(x, [(self.weight, self.bias)])[0] if in_8_bits(x, [self]) else super().forward(x)


def in_8_bits(x: Tensor, maps: Sequence[nn.Module]) -> bool:
    """Whether these maps of x are made in 8 bits, as one operation if they are several: to learn from, on a CPU."""
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    if x.dtype != torch.float32 or x.device.type != "cpu" or not x.numel():
        return False
    alone = len(maps) == 1
    return all(
        type(each) is Int8Linear
        and (alone or not each.is_watched)
        and type(each.weight) in (Tensor, nn.Parameter)
        and each.weight.dtype == torch.float32
        for each in maps
    )


def maps_of(x: Tensor, *maps: nn.Module) -> tuple[Tensor, ...]:
    """What each of the maps makes of x, which is rounded once if all are in 8 bits."""
    if in_8_bits(x, maps):
        return int8_linears(x, [(each.weight, each.bias) for each in maps])  # type: ignore[misc]
    return tuple(each(x) for each in maps)


def feed_forward_of(x_BTD: Tensor, maps: Sequence[nn.Module], activate: Activation) -> Tensor | None:
    """The layer of these maps, the last of which is its output, as one operation; none if they are not in 8 bits."""
    if not in_8_bits(x_BTD, maps):
        return None
    *into, output = [(each.weight, each.bias) for each in maps]
    return int8_feed_forward(x_BTD, into, output, activate)  # type: ignore[arg-type]


def use_int8(*stacks: nn.Module) -> int:
    """Let the linear layers in these train in 8 bits; returns how many do. What is done already is done."""
    n = 0
    for parent, name, layer in list(_linears(stacks)):
        n += 1
        if not isinstance(layer, Int8Linear):
            setattr(parent, name, Int8Linear(layer))
    return n


def _linears(stacks: Sequence[nn.Module]) -> Iterator[tuple[nn.Module, str, Linear]]:
    for stack in stacks:
        for parent in stack.modules():
            for name, child in parent.named_children():
                if type(child) in (Linear, Int8Linear):
                    yield parent, name, child  # type: ignore[misc]
