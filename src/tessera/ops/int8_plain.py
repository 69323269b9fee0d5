"""To 8 bits and back in plain PyTorch: what the compiled twins must equal, and what runs where nothing is compiled.

A row is brought to [-127, 127] by its largest number and rounded to the nearest, ties to even:

    x8 = round(x / s),  s = max |x| / 127

A row of zeros has the scale 0, one with a NaN or an infinity the scale NaN, so that all that is made of it is NaN.
"""

import torch
from torch import Tensor

LARGEST = 127.0
SMALLEST = 2.0**-100
"""A row without anything larger is as good as zero."""


def factors(largest: Tensor) -> tuple[Tensor, Tensor]:
    """Of largest numbers: what brings them to 127, and what brings them back."""
    none, wrong = largest < SMALLEST, ~largest.isfinite()
    up = (LARGEST / largest).masked_fill(none | wrong, 0.0)
    return up, (largest / LARGEST).masked_fill(none, 0.0).masked_fill(wrong, torch.nan)


def to_8_bits(x: Tensor) -> Tensor:
    """Rounded; what is not finite becomes 0, as its scale is NaN."""
    return x.round().nan_to_num(0.0, 0.0, 0.0).to(torch.int8)


def round_rows(x_NK: Tensor, x8_NK: Tensor, scale_N: Tensor) -> None:
    up_N, scales_N = factors(x_NK.abs().amax(dim=1))
    scale_N.copy_(scales_N)
    x8_NK.copy_(to_8_bits(x_NK * up_N[:, None]))


def round_both(
    g_NO: Tensor, by_N: Tensor, by_O: Tensor, *, rows: tuple[Tensor, Tensor], columns: tuple[Tensor, Tensor]
) -> None:
    """g * by_O by rows, and g * by_N by columns."""
    round_rows(g_NO * by_O, *rows)
    column8_NO, scale_O = columns
    g_NO = g_NO * by_N[:, None]
    up_O, scales_O = factors(g_NO.abs().amax(dim=0))
    scale_O.copy_(scales_O)
    column8_NO.copy_(to_8_bits(g_NO * up_O))


def bring_back(sum_NO: Tensor, scale_N: Tensor, scale_O: Tensor | None, y_NO: Tensor, *, add: bool) -> None:
    y = sum_NO * scale_N[:, None]
    if scale_O is not None:
        y.mul_(scale_O)
    (y_NO.add_ if add else y_NO.copy_)(y)
