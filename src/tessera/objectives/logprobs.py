"""How likely a model thinks an answer: the log-probabilities that every preference loss is made of.

log pi(y | x) = sum over t of log p(y_t | x, y_<t), over the learned targets alone. The logits of all of them at once
would be the largest tensor by far, so they are made a chunk at a time, and made again for the gradient (Chen et al.
2016, "Training Deep Nets with Sublinear Memory Cost", section 3).

B batch, T time, D model width, V vocabulary, N learned targets.
"""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tessera.data.batches import IGNORE, Batch
from tessera.errors import InputError
from tessera.model.decoder import Decoder
from tessera.model.flow import Flow
from tessera.ops.linear_loss import rows_at_once


def log_softmax(logits_NV: Tensor) -> Tensor:
    """In fp32 or better."""
    return torch.log_softmax(logits_NV, dim=-1, dtype=torch.promote_types(logits_NV.dtype, torch.float32))


def of_logits(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """The log-probability of each target."""
    return log_softmax(logits_NV).gather(-1, targets_N[..., None]).squeeze(-1)


def entropy(logits_NV: Tensor) -> Tensor:
    """-sum p log p of each row, in nats."""
    logps_NV = log_softmax(logits_NV)
    return -(logps_NV.exp() * logps_NV).sum(dim=-1)


def token_logprobs(model: Decoder, h_BTD: Tensor, targets_BT: Tensor, *, temperature: float = 1.0) -> Tensor:
    """(B, T): the log-probability of each learned target, and 0 where the target is IGNORE."""
    learned_BT = targets_BT != IGNORE
    h_ND, targets_N = h_BTD[learned_BT], targets_BT[learned_BT]

    def chunk_of(h_CD: Tensor, targets_C: Tensor) -> Tensor:
        return of_logits(model.logits(h_CD) / temperature, targets_C)

    size = rows_at_once(model.n_vocab)
    keep = torch.is_grad_enabled()
    parts = [
        checkpoint(chunk_of, h_CD, targets_C, use_reentrant=False) if keep else chunk_of(h_CD, targets_C)
        for h_CD, targets_C in zip(h_ND.split(size), targets_N.split(size), strict=True)
    ]
    logps_N = torch.cat(parts) if parts else h_ND.new_zeros(0, dtype=torch.float32)
    return torch.zeros_like(targets_BT, dtype=logps_N.dtype).masked_scatter(learned_BT, logps_N)


def answer_logprobs(model: Decoder, batch: Batch, flow: Flow | None = None) -> tuple[Tensor, Tensor]:
    """(B,) the summed log-probability of each row's learned targets, and (B,) how many they are.

    An `InputError` for a row without any: its likelihood would be that of nothing.
    """
    lengths_B = (batch.targets_BT != IGNORE).sum(dim=1)
    if not bool(lengths_B.all()):
        raise InputError("a row of the batch has no learned target: it holds no answer to be compared")
    h_BTD = model.hidden(batch.inputs_BT, flow=flow)
    return token_logprobs(model, h_BTD, batch.targets_BT).sum(dim=1), lengths_B
