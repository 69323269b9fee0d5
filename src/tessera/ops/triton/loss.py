"""The step of `linear_cross_entropy` on a chunk of logits as one kernel: statistics, loss, and the gradient in place.

The maximum and the sum of a row are found in one reading of it (Milakov and Gimelshein 2018, "Online normalizer
calculation for softmax"), its gradient is written in a second. The logits may be of 16 bits: nothing wider is stored.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096


def loss_step(
    logits_CV: Tensor,
    targets_C: Tensor,
    shares_C: Tensor,
    label_smoothing: float,
    z_loss: float,
    logit_cap: float | None,
    make_gradient: bool,
) -> Tensor:
    """As `linear_loss.loss_step`: the loss of each row; with `make_gradient` the gradient in place of the logits."""
    n_rows, n_vocab = logits_CV.shape
    losses_C = torch.empty(n_rows, dtype=torch.float32, device=logits_CV.device)
    _loss_kernel[(n_rows,)](
        logits_CV,
        targets_C.contiguous(),
        shares_C.contiguous(),
        losses_C,
        logits_CV.stride(0),
        n_vocab,
        label_smoothing,
        z_loss,
        1.0 if logit_cap is None else logit_cap,
        CAPPED=logit_cap is not None,
        MAKE_GRADIENT=make_gradient,
        BLOCK=min(BLOCK, triton.next_power_of_2(n_vocab)),
    )
    return losses_C


@triton.jit
def _tanh(x):
    """By a series where the quotient would lose its digits."""
    square = x * x
    series = x * (1.0 + square * (-1.0 / 3.0 + square * (2.0 / 15.0 - square * (17.0 / 315.0))))
    return tl.where(tl.abs(x) < 0.1, series, 1.0 - 2.0 / (tl.exp(2.0 * x) + 1.0))


@triton.jit
def _loss_kernel(
    logits,
    targets,
    shares,
    losses,
    stride,
    n_vocab,
    smoothing,
    z,
    cap,
    CAPPED: tl.constexpr,
    MAKE_GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    target = tl.load(targets + row)
    highest = float("-inf")
    total = 0.0
    plain_sum = 0.0
    for start in range(0, n_vocab, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < n_vocab
        x = tl.load(logits + columns, mask=inside, other=0.0).to(tl.float32)
        if CAPPED:
            x = cap * _tanh(x / cap)
        plain_sum += tl.sum(tl.where(inside, x, 0.0), axis=0)
        x = tl.where(inside, x, float("-inf"))
        risen = tl.maximum(highest, tl.max(x, axis=0))
        total = total * tl.exp(highest - risen) + tl.sum(tl.exp(x - risen), axis=0)
        highest = risen
    chosen = tl.load(logits + target).to(tl.float32)
    if CAPPED:
        chosen = cap * _tanh(chosen / cap)
    log_total = tl.log(total)
    normalizer = log_total + highest
    mean = plain_sum / n_vocab - highest
    loss = log_total - ((1.0 - smoothing) * (chosen - highest) + smoothing * mean) + z * normalizer * normalizer
    tl.store(losses + row, loss)
    if MAKE_GRADIENT:
        share = tl.load(shares + row).to(tl.float32)
        factor = share * (1.0 + 2.0 * z * normalizer) / total
        for start in range(0, n_vocab, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            inside = columns < n_vocab
            x = tl.load(logits + columns, mask=inside, other=0.0).to(tl.float32)
            slope = 1.0
            if CAPPED:
                tanh = _tanh(x / cap)
                x = cap * tanh
                slope = 1.0 - tanh * tanh
            gradient = factor * tl.exp(x - highest) - share * smoothing / n_vocab
            gradient = tl.where(columns == target, gradient - share * (1.0 - smoothing), gradient) * slope
            tl.store(logits + columns, gradient.to(logits.dtype.element_ty), mask=inside)
