"""Distillation: learn another model's distributions, not only the tokens that were said (Hinton et al. 2015).

With p the teacher's distribution of the next token and q the student's, both at temperature T, a token's loss is

    forward    KL(p || q)            eq. 4 of Hinton et al.: q covers all that p does
    reverse    KL(q || p)            Gu et al. 2024, MiniLLM, eq. 1: q keeps to what p finds likely
    jsd        b KL(p || m) + (1 - b) KL(q || m), m = b p + (1 - b) q     Agarwal et al. 2024, GKD, eq. 1

times T^2, which gives its gradient the size that it has at T = 1 (section 2 of Hinton et al.). With `token_weight` w
the objective is (1 - w) of that plus w of the loss of SFT.

N learned targets, V vocabulary.
"""

import math
from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tessera.data.batches import IGNORE, Batch
from tessera.errors import InputError, SettingError
from tessera.model.decoder import Decoder
from tessera.model.flow import Flow
from tessera.objectives.logprobs import log_softmax, of_logits
from tessera.objectives.objective import Metrics, Objective, Source
from tessera.objectives.preference import check_positive
from tessera.ops.linear_loss import rows_at_once

Kind = Literal["forward", "reverse", "jsd"]


def _kl(log_p_NV: Tensor, log_q_NV: Tensor) -> Tensor:
    """KL(p || q) of each row."""
    return (log_p_NV.exp() * (log_p_NV - log_q_NV)).sum(dim=-1)


def forward_kl(student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
    """KL(teacher || student) of each row of log-probabilities."""
    return _kl(teacher_NV, student_NV)


def reverse_kl(student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
    """KL(student || teacher) of each row of log-probabilities."""
    return _kl(student_NV, teacher_NV)


def jensen_shannon(student_NV: Tensor, teacher_NV: Tensor, *, share: float = 0.5) -> Tensor:
    """The generalised divergence, in which the mixture has `share` of the teacher: 1/2 is symmetric."""
    mixture_NV = torch.logaddexp(teacher_NV + math.log(share), student_NV + math.log1p(-share))
    return share * _kl(teacher_NV, mixture_NV) + (1 - share) * _kl(student_NV, mixture_NV)


def distillation_loss(
    student_NV: Tensor, teacher_NV: Tensor, *, kind: Kind = "forward", temperature: float = 1.0, share: float = 0.5
) -> Tensor:
    """The loss of each row from the logits of both, without the factor T^2."""
    student_NV, teacher_NV = (log_softmax(logits / temperature) for logits in (student_NV, teacher_NV))
    if kind == "jsd":
        return jensen_shannon(student_NV, teacher_NV, share=share)
    return (forward_kl if kind == "forward" else reverse_kl)(student_NV, teacher_NV)


class Distillation(Objective):
    """A student beside a frozen teacher with the same vocabulary. `share` is the teacher's in the mixture of "jsd"."""

    model: Decoder
    reads: ClassVar[str] = "conversations"

    def __init__(
        self,
        *,
        model: Decoder,
        data: Source,
        teacher: Decoder,
        kind: Kind = "forward",
        temperature: float = 1.0,
        share: float = 0.5,
        token_weight: float = 0.0,
    ) -> None:
        super().__init__(model=model, data=data)
        check_positive(temperature=temperature)
        if not 0 < share < 1:
            raise SettingError("share", share, "a number between 0 and 1")
        if not 0 <= token_weight <= 1:
            raise SettingError("token_weight", token_weight, "from 0 to 1")
        if kind not in ("forward", "reverse", "jsd"):
            raise SettingError.unknown("kind", kind, ("forward", "reverse", "jsd"))
        if teacher.n_vocab != model.n_vocab:
            raise InputError(
                f"the teacher has a vocabulary of {teacher.n_vocab} and the student of {model.n_vocab}: distillation "
                "compares them token by token"
            )
        self.kind: Kind = kind
        self.temperature, self.share, self.token_weight = temperature, share, token_weight
        # In a tuple, so that torch does not take its weights for what is learned and saved.
        self._teacher = (teacher.eval().requires_grad_(False),)

    def forward(self, batch: Batch) -> tuple[Tensor, Metrics]:
        learned_BT = batch.targets_BT != IGNORE
        targets_N = batch.targets_BT[learned_BT]
        if len(targets_N) == 0:
            raise InputError("all targets of the batch are ignored: there is nothing to learn from")
        flow = Flow.of(batch.inputs_BT, documents_BT=batch.documents_BT)
        h_ND = self.model.hidden(batch.inputs_BT, flow=flow)[learned_BT]
        with torch.no_grad():
            above = Flow.of(batch.inputs_BT, documents_BT=batch.documents_BT)
            teacher_ND = self._teacher[0].hidden(batch.inputs_BT, flow=above)[learned_BT]
        divergence, nll = self._sums(h_ND, teacher_ND, targets_N) / len(targets_N)
        loss = (1 - self.token_weight) * self.temperature**2 * divergence + self.token_weight * nll
        metrics: Metrics = {"loss": loss.detach(), "divergence": divergence.detach(), "nll": nll.detach()}
        if self.training and flow.losses:
            loss = loss + torch.stack(flow.losses).sum()
        return loss, metrics

    def _sums(self, h_ND: Tensor, teacher_ND: Tensor, targets_N: Tensor) -> Tensor:
        """(2,) the sums of the divergence and of -log p, over chunks whose logits are made again for the gradient."""
        size = rows_at_once(self.model.n_vocab)
        chunks = zip(h_ND.split(size), teacher_ND.split(size), targets_N.split(size), strict=True)
        run: Callable[..., Tensor] = self._chunk
        if torch.is_grad_enabled():
            return torch.stack([checkpoint(run, *chunk, use_reentrant=False) for chunk in chunks]).sum(dim=0)
        return torch.stack([run(*chunk) for chunk in chunks]).sum(dim=0)

    def _chunk(self, h_CD: Tensor, teacher_CD: Tensor, targets_C: Tensor) -> Tensor:
        logits_CV = self.model.logits(h_CD)
        with torch.no_grad():
            teacher_CV = self._teacher[0].logits(teacher_CD)
        losses_C = distillation_loss(
            logits_CV, teacher_CV, kind=self.kind, temperature=self.temperature, share=self.share
        )
        return torch.stack([losses_C.sum(), -of_logits(logits_CV, targets_C).sum()])
