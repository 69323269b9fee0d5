"""Linear maps whose weight is stored in 4 or 8 bits and brought back piece by piece while it is used.

The product needs the weight forward and, for the gradient of its input, backward; it is made from its codes both times
and never kept between (Dettmers et al. 2023, "QLoRA", eq. 5 and 6). The codes themselves learn nothing: gradients go
through to the input, and so to the adapters around the map.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tessera.adapt.blockwise import KINDS, QuantizedWeight
from tessera.adapt.places import in_blocks, put_module
from tessera.errors import InputError, SettingError
from tessera.formats.source import ModelSource
from tessera.formats.torch_tensors import put
from tessera.model.decoder import Decoder
from tessera.model.linear import ExpertLinear, Linear
from tessera.native.freed import return_freed_memory
from tessera.ops.autocast import as_multiplied

BITS = {"nf4": 4.127, "int8": 8.5}
"""Of a weight, with its part of what belongs to its block."""
PIECE = {"cpu": 2**21, "cuda": 2**26}
"""Numbers of a weight that are floats at a time: few enough to stay small beside the activations."""


def _pieces(stored: QuantizedWeight, rows: range) -> Iterator[slice]:
    """The rows, a piece at a time."""
    at_once = max(1, PIECE.get(stored.codes.device.type, PIECE["cuda"]) // stored.shape[-1])
    for start in range(rows.start, rows.stop, at_once):
        yield slice(start, min(start + at_once, rows.stop))


def _product(x_ND: Tensor, stored: QuantizedWeight, rows: range) -> Tensor:
    """x W^T for some rows of W."""
    parts = [x_ND @ stored.rows(piece.start, piece.stop, x_ND.dtype).T for piece in _pieces(stored, rows)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _product_back(grad_NF: Tensor, stored: QuantizedWeight, rows: range) -> Tensor:
    """g W for some rows of W."""
    total: Tensor | None = None
    for piece in _pieces(stored, rows):
        columns = grad_NF[:, piece.start - rows.start : piece.stop - rows.start]
        weight = stored.rows(piece.start, piece.stop, grad_NF.dtype)
        total = columns @ weight if total is None else total.addmm_(columns, weight)
    assert total is not None
    return total


class _Product(torch.autograd.Function):
    """x W^T, group by group of rows: a linear map is one group, experts are several. Keeps nothing but the codes."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, stored: QuantizedWeight, sizes: Sequence[int]) -> Tensor:
        ctx.stored, ctx.sizes, ctx.dtype = stored, sizes, x_ND.dtype
        return _by_group(x_ND, stored, sizes, _product, _height(stored, sizes))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NF: Tensor) -> tuple[Tensor, None, None]:
        grad_ND = _by_group(grad_NF, ctx.stored, ctx.sizes, _product_back, ctx.stored.shape[-1])
        return grad_ND.to(ctx.dtype), None, None


def _height(stored: QuantizedWeight, sizes: Sequence[int]) -> int:
    """The rows of W that each group has."""
    return math.prod(stored.shape[:-1]) // len(sizes)


def _by_group(x: Tensor, stored: QuantizedWeight, sizes: Sequence[int], product: Any, width: int) -> Tensor:
    height = _height(stored, sizes)
    if len(sizes) == 1:
        made: Tensor = product(x, stored, range(height))
        return made
    y = x.new_empty(len(x), width)
    start = 0
    for group, size in enumerate(sizes):
        if size:
            rows = range(group * height, (group + 1) * height)
            y[start : start + size] = product(x[start : start + size], stored, rows)
        start += size
    return y


class QuantizedLinear(nn.Module):
    """A `Linear` whose weight is stored in codes; a bias stays as it is."""

    def __init__(self, *, stored: QuantizedWeight, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        self.stored = stored
        self.bias = bias

    @property
    def weight(self) -> Tensor:
        """The weight that the codes stand for, made anew at each call."""
        return self.stored.whole()

    def product(self, x: Tensor) -> Tensor:
        """x W^T, without the bias."""
        x = as_multiplied(x)
        y_NF: Tensor = _Product.apply(x.reshape(-1, x.shape[-1]), self.stored, (1,))
        return y_NF.view(*x.shape[:-1], -1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.product(x)
        return y if self.bias is None else y + self.bias.to(y.dtype)


class QuantizedExpertLinear(nn.Module):
    """An `ExpertLinear` whose weights are stored in codes."""

    def __init__(self, *, stored: QuantizedWeight) -> None:
        super().__init__()
        self.stored = stored

    @property
    def weight(self) -> Tensor:
        return self.stored.whole()

    def forward(self, x_ND: Tensor, sizes: Sequence[int]) -> Tensor:
        if len(sizes) != self.stored.shape[0] or sum(sizes) != len(x_ND):
            raise InputError(f"groups of {list(sizes)} rows for {len(x_ND)} rows and {self.stored.shape[0]} matrices")
        y_NF: Tensor = _Product.apply(as_multiplied(x_ND), self.stored, tuple(sizes))
        return y_NF


Quantized = QuantizedLinear | QuantizedExpertLinear


def check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise SettingError("base", kind, f"one of {', '.join(KINDS)}")


def quantize_base(model: nn.Module, kind: str) -> list[str]:
    """Store the weights of the model's blocks as `kind` ("nf4" or "int8"), layer by layer, in their place.

    That is each linear map and each expert; tables (embedding, head), norms, biases and routers stay as they are, as in
    the paper. Returns the paths of the layers. A model that is quantized already is an error, as is one with adapters:
    they belong on top.
    """
    check_kind(kind)
    found = {path: part for path, part in model.named_modules() if _is_quantizable(part, path)}
    if not found:
        raise InputError("there is nothing to quantize: the model's blocks have no linear map of floats")
    for path, layer in found.items():
        put_module(model, path, _quantized(layer, layer.weight, kind, path))
    return list(found)


def base_bytes(model: nn.Module, kind: str) -> float:
    """The memory that a plain model's weights take as a base of a kind: "fp32", "nf4" or "int8"."""
    total = sum(param.numel() for param in model.parameters())
    stored = sum(part.weight.numel() for path, part in model.named_modules() if _is_quantizable(part, path))
    return 4 * total if kind == "fp32" else 4 * (total - stored) + stored * BITS[kind] / 8


def build_quantized(source: ModelSource, kind: str) -> Decoder:
    """As `source.build()` and then `quantize_base`, but each weight is quantized when it is read: the model is never
    there in full, only its largest tensor. From then on the process gives memory that it has freed back to the system
    at once: steps take a little longer."""
    check_kind(kind)
    return_freed_memory()

    def store(model: nn.Module, name: str, tensor: Tensor) -> None:
        path, _, leaf = name.rpartition(".")
        layer = model.get_submodule(path)
        if leaf == "weight" and _is_quantizable(layer, path):
            put_module(model, path, _quantized(layer, tensor, kind, path))
        else:
            put(model, name, tensor)

    return source.build(torch.float32, store=store)


def dequantize_base(model: nn.Module) -> None:
    """Linear maps of floats again, of the numbers that the codes stand for: what quantization took does not come
    back."""
    found = {path: part for path, part in model.named_modules() if isinstance(part, Quantized)}
    for path, part in found.items():
        put_module(model, path, _floats(part))


def _floats(part: Quantized) -> nn.Module:
    weight = part.weight
    plain: Linear | ExpertLinear
    with torch.device("meta"):
        if isinstance(part, QuantizedLinear):
            plain = Linear(d_in=weight.shape[1], d_out=weight.shape[0])
            plain.bias = part.bias
        else:
            plain = ExpertLinear(n_experts=weight.shape[0], d_in=weight.shape[2], d_out=weight.shape[1])
    plain.weight = nn.Parameter(weight, requires_grad=False)
    return plain


def _is_quantizable(part: nn.Module, path: str) -> TypeGuard[Linear | ExpertLinear]:
    return in_blocks(path) and isinstance(part, Linear | ExpertLinear)


def _quantized(layer: Linear | ExpertLinear, weight: Tensor, kind: str, path: str) -> Quantized:
    stored = QuantizedWeight.of(weight, kind, name=f"{path}.weight")
    if isinstance(layer, Linear):
        return QuantizedLinear(stored=stored, bias=layer.bias)
    return QuantizedExpertLinear(stored=stored)
