"""Cross-entropy: the average surprise, -log p(target), in nats.

`linear_cross_entropy` is the head and the loss in one: the logits of a batch are its largest tensor (N rows x a whole
vocabulary), so they are made a chunk at a time and turned into gradients at once (Hsu et al. 2024, "Liger Kernel",
section 3.2). It needs no more products than the plain way and holds one chunk instead of all.
"""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tessera.errors import InputError
from tessera.ops.softmax import log_softmax

Reduction = Literal["mean", "sum"]
CHUNK_BYTES = 8 * 2**20
"""How large a chunk of logits is, so that it stays near the processor ..."""
CHUNK_ROWS = 256
"""... but never fewer rows than this: a product of few rows is slow, and each chunk reads the whole table again."""


def cross_entropy(
    logits_NV: Tensor, targets_N: Tensor, *, ignore_index: int = -100, reduction: Reduction = "mean"
) -> Tensor:
    """-log softmax(logits)[target], over the targets that are not `ignore_index`; if there are none, an InputError."""
    logits_NV, targets_N = _learned(logits_NV, targets_N, logits_NV.shape[-1], ignore_index)
    losses_N = -log_softmax(logits_NV).gather(1, targets_N[:, None]).squeeze(1)
    return losses_N.mean() if reduction == "mean" else losses_N.sum()


def linear_cross_entropy(
    h_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    *,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    chunk: int | None = None,
) -> Tensor:
    """`cross_entropy(h @ weight.T, targets)` that never holds all logits; `chunk` is how many rows it holds at once."""
    h_ND, targets_N = _learned(h_ND, targets_N, weight_VD.shape[0], ignore_index)
    chunk = max(CHUNK_ROWS, CHUNK_BYTES // (4 * len(weight_VD))) if chunk is None else chunk
    total = _LinearCrossEntropy.apply(h_ND, weight_VD, targets_N, chunk)
    return total / len(targets_N) if reduction == "mean" else total


def _learned(rows_ND: Tensor, targets_N: Tensor, n_vocab: int, ignore_index: int) -> tuple[Tensor, Tensor]:
    """The rows whose target counts; no such row (its mean would be 0 / 0) or an id that does not exist is an error."""
    if targets_N.ndim != 1 or rows_ND.ndim != 2 or len(rows_ND) != len(targets_N):
        raise InputError(
            f"{tuple(rows_ND.shape)} rows for targets of shape {tuple(targets_N.shape)}: expected (N, width) and (N,)"
        )
    kept = (targets_N != ignore_index).nonzero().squeeze(1)
    if len(kept) == 0:
        raise InputError(f"all {len(targets_N)} targets of the batch are ignored: there is nothing to learn from")
    if len(kept) < len(targets_N):
        rows_ND, targets_N = rows_ND.index_select(0, kept), targets_N.index_select(0, kept)
    low, high = (int(bound) for bound in targets_N.aminmax())
    if low < 0 or high >= n_vocab:
        raise InputError(f"target {low if low < 0 else high} is outside of the vocabulary of {n_vocab}")
    return rows_ND, targets_N


class _LinearCrossEntropy(torch.autograd.Function):
    """The sum of the losses; both gradients are made in the forward pass, while a chunk's probabilities are at hand.

    d loss / d logits = softmax(logits) - onehot(target).
    """

    @staticmethod
    def forward(ctx: Any, h_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, chunk: int) -> Tensor:
        needs_h, needs_weight = ctx.needs_input_grad[:2]
        wide = torch.promote_types(h_ND.dtype, torch.float32)
        total = h_ND.new_zeros((), dtype=wide)
        grad_h_ND = torch.empty_like(h_ND) if needs_h else None
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=wide) if needs_weight else None
        for start in range(0, len(h_ND), chunk):
            h_CD, targets_C1 = h_ND[start : start + chunk], targets_N[start : start + chunk, None]
            logits_CV = (h_CD @ weight_VD.T).to(wide)
            logits_CV.sub_(logits_CV.amax(dim=1, keepdim=True))
            total -= logits_CV.gather(1, targets_C1).sum()
            sums_C1 = logits_CV.exp_().sum(dim=1, keepdim=True)
            total += sums_C1.log().sum()
            if not (needs_h or needs_weight):
                continue
            grad_CV = logits_CV.div_(sums_C1)
            grad_CV.scatter_add_(1, targets_C1, grad_CV.new_full((1, 1), -1.0).expand_as(targets_C1))
            grad_CV = grad_CV.to(h_ND.dtype)
            if grad_h_ND is not None:
                grad_h_ND[start : start + chunk] = grad_CV @ weight_VD
            if grad_weight_VD is not None:
                grad_weight_VD += grad_CV.T @ h_CD
        ctx.save_for_backward(grad_h_ND, None if grad_weight_VD is None else grad_weight_VD.to(weight_VD.dtype))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        grad_h_ND, grad_weight_VD = ctx.saved_tensors
        scaled = [None if one is None else one * grad.to(one.dtype) for one in (grad_h_ND, grad_weight_VD)]
        return scaled[0], scaled[1], None, None
