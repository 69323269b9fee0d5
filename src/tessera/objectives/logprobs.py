"""How likely a model thinks an answer: the log-probabilities that every preference loss is made of.

log pi(y | x) = sum over t of log p(y_t | x, y_<t), over the learned targets alone. The logits of all of them at once
would be the largest tensor by far, so they are made a chunk at a time, and made again for the gradient (Chen et al.
2016, "Training Deep Nets with Sublinear Memory Cost", section 3).

B batch, T time, D model width, V vocabulary, N learned targets.
"""

from collections.abc import Callable

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

    def scores_of(logits_CV: Tensor, targets_C: Tensor) -> Tensor:
        return of_logits(logits_CV, targets_C)[:, None]

    return _scored(model, h_BTD, targets_BT, scores_of, temperature)[..., 0]


def token_scores(
    model: Decoder, h_BTD: Tensor, targets_BT: Tensor, *, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The same, and the entropy of what each learned target was chosen from."""

    def scores_of(logits_CV: Tensor, targets_C: Tensor) -> Tensor:
        logps_CV = log_softmax(logits_CV)
        entropies_C = -(logps_CV.exp() * logps_CV).sum(dim=-1)
        return torch.stack((logps_CV.gather(-1, targets_C[:, None])[:, 0], entropies_C), dim=-1)

    logps_BT, entropies_BT = _scored(model, h_BTD, targets_BT, scores_of, temperature).unbind(dim=-1)
    return logps_BT, entropies_BT


def _scored(
    model: Decoder,
    h_BTD: Tensor,
    targets_BT: Tensor,
    scores_of: Callable[[Tensor, Tensor], Tensor],
    temperature: float,
) -> Tensor:
    """(B, T, C): what `scores_of` makes of the logits (N, V) and the target (N,) of each learned one, and else 0."""
    learned_BT = targets_BT != IGNORE
    h_ND, targets_N = h_BTD[learned_BT], targets_BT[learned_BT]

    def chunk_of(h_CD: Tensor, targets_C: Tensor) -> Tensor:
        return scores_of(model.logits(h_CD) / temperature, targets_C)

    size = rows_at_once(model.n_vocab)
    keep = torch.is_grad_enabled()
    parts = [
        checkpoint(chunk_of, h_CD, targets_C, use_reentrant=False) if keep else chunk_of(h_CD, targets_C)
        for h_CD, targets_C in zip(h_ND.split(size), targets_N.split(size), strict=True)
    ]
    scores_NC = torch.cat(parts)
    zeros_BTC = torch.zeros(*targets_BT.shape, scores_NC.shape[-1], dtype=scores_NC.dtype, device=targets_BT.device)
    return zeros_BTC.masked_scatter(learned_BT[..., None], scores_NC)


def answer_logprobs(model: Decoder, batch: Batch, flow: Flow | None = None) -> tuple[Tensor, Tensor]:
    """(B,) the summed log-probability of each row's learned targets, and (B,) how many they are.

    An `InputError` for a row without any: its likelihood would be that of nothing.
    """
    lengths_B = (batch.targets_BT != IGNORE).sum(dim=1)
    if not bool(lengths_B.all()):
        raise InputError("a row of the batch has no learned target: it holds no answer to be compared")
    h_BTD = model.hidden(batch.inputs_BT, flow=flow)
    return token_logprobs(model, h_BTD, batch.targets_BT).sum(dim=1), lengths_B
