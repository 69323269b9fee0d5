"""The head and the loss in one, so that all logits are never there at once.

The logits of a batch are its largest tensor (N rows x a whole vocabulary), so they are made a chunk at a time and
turned into gradients at once, while they are at hand (Hsu et al. 2024, "Liger Kernel", section 3.2). It needs no more
products than the plain way and holds one chunk instead of all.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tessera.ops.autocast import add_product
from tessera.ops.kernels import kernels_for

CHUNK_BYTES = 8 * 2**20
"""How large a chunk of logits is, so that it stays near the processor ..."""
CHUNK_ROWS = 256
"""... but never fewer rows than this: a product of few rows is slow, and each chunk reads the whole table again."""


def rows_at_once(n_vocab: int) -> int:
    return max(CHUNK_ROWS, CHUNK_BYTES // (4 * n_vocab))


def loss_step(
    logits_CV: Tensor,
    targets_C: Tensor,
    shares_C: Tensor,
    label_smoothing: float,
    z_loss: float,
    logit_cap: float | None,
    make_gradient: bool,
) -> Tensor:
    """The loss of each row; with `make_gradient` the logits become the gradient of sum(shares * losses) in place.

    d loss / d x = (1 + 2 z Z) softmax(x) - (1 - s) onehot(target) - s / V, times 1 - (x / c)^2 with a cap.
    """
    targets_C1, V = targets_C[:, None], logits_CV.shape[1]
    if logit_cap is not None:
        logits_CV.div_(logit_cap).tanh_().mul_(logit_cap)
    slope_CV = (logits_CV / logit_cap).square_().neg_().add_(1) if make_gradient and logit_cap is not None else None
    highest_C1 = logits_CV.amax(dim=1, keepdim=True)
    logits_CV.sub_(highest_C1)
    chosen_C = logits_CV.gather(1, targets_C1).squeeze(1)
    if label_smoothing:
        chosen_C = chosen_C.lerp(logits_CV.mean(dim=1), label_smoothing)
    sums_C1 = logits_CV.exp_().sum(dim=1, keepdim=True)
    losses_C = sums_C1.log().squeeze(1) - chosen_C
    factors_C = shares_C
    if z_loss:
        normalizers_C = (sums_C1.log() + highest_C1).squeeze(1)
        losses_C += z_loss * normalizers_C.square()
        factors_C = shares_C * (1 + 2 * z_loss * normalizers_C)
    if make_gradient:
        grad_CV = logits_CV.mul_(factors_C[:, None] / sums_C1)
        if label_smoothing:
            grad_CV.sub_((label_smoothing / V * shares_C)[:, None])
        grad_CV.scatter_add_(1, targets_C1, ((label_smoothing - 1) * shares_C)[:, None])
        if slope_CV is not None:
            grad_CV.mul_(slope_CV)
    return losses_C


class LinearCrossEntropy(torch.autograd.Function):
    """sum(shares * losses); the gradients are made in the forward pass, while a chunk's probabilities are at hand."""

    @staticmethod
    def forward(
        ctx: Any,
        h_ND: Tensor,
        weight_VD: Tensor,
        targets_N: Tensor,
        shares_N: Tensor,
        chunk: int,
        label_smoothing: float,
        z_loss: float,
        logit_cap: float | None,
        n_vocab: int,
    ) -> Tensor:
        needs_h, needs_weight, _, needs_shares = ctx.needs_input_grad[:4]
        wide = torch.promote_types(h_ND.dtype, torch.float32)
        shares = shares_N.to(wide)
        total = h_ND.new_zeros((), dtype=wide)
        losses_N = torch.empty_like(shares) if needs_shares else None
        grad_h_ND = torch.empty_like(h_ND) if needs_h else None
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=wide) if needs_weight else None
        table_VD = weight_VD[:n_vocab]
        for start in range(0, len(h_ND), chunk):
            rows = slice(start, start + chunk)
            h_CD, shares_C = h_ND[rows], shares[rows]
            logits_CV = h_CD @ table_VD.T
            kernels = kernels_for(logits_CV)
            logits_CV = logits_CV if kernels is not None else logits_CV.to(wide)
            losses_C = (loss_step if kernels is None else kernels.loss_step)(
                logits_CV, targets_N[rows], shares_C, label_smoothing, z_loss, logit_cap, needs_h or needs_weight
            )
            total += (losses_C * shares_C).sum()  # no product of matrices, which autocast would round
            if losses_N is not None:
                losses_N[rows] = losses_C
            grad_CV = logits_CV.to(h_ND.dtype)
            if grad_h_ND is not None:
                grad_h_ND[rows] = grad_CV @ table_VD
            if grad_weight_VD is not None:
                add_product(grad_weight_VD[:n_vocab], grad_CV.T, h_CD)
        ctx.shares_dtype = shares_N.dtype
        weight_grad = None if grad_weight_VD is None else grad_weight_VD.to(weight_VD.dtype)
        ctx.save_for_backward(grad_h_ND, weight_grad, losses_N)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_h_ND, grad_weight_VD, losses_N = ctx.saved_tensors
        if losses_N is not None:
            losses_N = (losses_N * grad).to(ctx.shares_dtype)
        return _times(grad_h_ND, grad), _times(grad_weight_VD, grad), None, losses_N, *(None,) * 5


def _times(gradient: Tensor | None, grad: Tensor) -> Tensor | None:
    """On a CPU a factor of 1 costs nothing: the table's gradient is as large as the table."""
    if gradient is None or (grad.device.type == "cpu" and grad.item() == 1.0):
        return gradient
    return gradient * grad.to(gradient.dtype)
