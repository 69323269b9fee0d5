"""In which precisions `benchmarks.train` runs Tessera: as shipped, and in fp32 by the better of the two libraries."""

from functools import lru_cache

import torch

from benchmarks.train_peers import Way
from benchmarks.train_shapes import Shape
from tessera.train import precision
from tessera.train.precision import FP32, Precision
from tessera.train.profile import product_peak

CPU = torch.device("cpu")
THROUGH_ONEDNN = Precision("fp32", onednn=True)
AS_SHIPPED, IN_FP32 = "tessera", "tessera fp32"
SIZE = 512


def chosen(shape: Shape) -> Precision:
    """What `train.precision = "auto"` is here."""
    return precision.choose("auto", CPU, precision.Shape(shape.d_model, shape.n_heads, shape.context, shape.batch_size))


@lru_cache
def best_fp32() -> Precision:
    """fp32 through oneDNN, where that is as exact as PyTorch's own library and a good deal faster."""
    random = torch.Generator().manual_seed(0)
    a, b = (torch.randn(SIZE, SIZE, generator=random) for _ in range(2))
    exact = a.double() @ b.double()
    with THROUGH_ONEDNN.step():
        through = a @ b
    errors = [(product.double() - exact).abs().max().item() for product in (through, a @ b)]
    if errors[0] > precision.EXACT * errors[1]:
        return FP32
    faster = product_peak(CPU, THROUGH_ONEDNN) > precision.WORTH * product_peak(CPU, FP32)
    return THROUGH_ONEDNN if faster else FP32


def of_name(name: str, shape: Shape) -> Precision:
    return best_fp32() if name == IN_FP32 else chosen(shape)


def peers_way(ours: Precision) -> Way | None:
    """How a peer computes in our precision, as far as plain PyTorch can: none for 8 bits."""
    if ours.name == "bf16":
        return Way(torch.bfloat16, onednn=best_fp32().onednn)
    return Way(onednn=ours.onednn) if ours.name == "fp32" else None


def measurable(ours: Precision) -> Precision:
    """The precision of the large product that an MFU is a share of: bf16 or fp32."""
    return ours if ours.name in ("bf16", "fp32") else best_fp32()
