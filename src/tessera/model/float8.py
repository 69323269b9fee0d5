"""Training in 8 bits: the linear layers of the blocks make their products by `tessera.ops.float8`.

Embedding and head stay as they are: one is no product, and the other's results, the logits, need the digits. So does
what is between the products. The weights are the same parameters as before, in fp32, and so is what is saved: a model
that was trained like this is a model like any other, and outside of training it computes like one.
"""

import torch
from torch import Tensor, nn

from tessera.model.decoder import Decoder
from tessera.model.linear import Linear
from tessera.ops.float8 import fits, float8_linear


class Float8Linear(Linear):
    """A linear layer with the parameters of another one; in 8 bits while gradients are kept, if the sizes allow it."""

    def __init__(self, like: Linear) -> None:
        nn.Module.__init__(self)
        self.weight, self.bias = like.weight, like.bias

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled() or not fits(x.numel() // x.shape[-1], x.shape[-1], len(self.weight)):
            return super().forward(x)
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.weight.dtype
        return float8_linear(x, self.weight, self.bias, dtype)


def use_float8(model: Decoder) -> tuple[int, int]:
    """Let the linear layers of the blocks train in 8 bits; returns how many do, of how many.

    Those of sizes that the kernels do not take stay as they are. What is done already is done.
    """
    found = [
        (parent, name, child)
        for blocks in (model.blocks, model.future)
        for parent in blocks.modules()
        for name, child in parent.named_children()
        if isinstance(child, Linear)
    ]
    n = 0
    for parent, name, child in found:
        d_out, d_in = child.weight.shape
        if fits(0, d_in, d_out):
            n += 1
            if not isinstance(child, Float8Linear):
                setattr(parent, name, Float8Linear(child))
    return n, len(found)
