"""trl's own loss code, called with the little of a trainer that it looks at: the reference for ours.

Each function takes a model as `(ids) -> logits` and gives trl's loss, through which a gradient flows.
"""

import warnings
from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

trl = pytest.importorskip("trl", reason="the losses are compared with trl's: pip install trl datasets")
pytest.importorskip("datasets", reason="trl's trainers need the package datasets")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.gkd import GKDTrainer
    from trl.experimental.orpo import ORPOTrainer
    from trl.trainer.dpo_trainer import DPOTrainer
    from trl.trainer.grpo_trainer import GRPOTrainer
    from trl.trainer.kto_trainer import KTOTrainer
    from trl.trainer.reward_trainer import RewardTrainer

Logits = Callable[[Tensor], Tensor]


def _same(value: Any, **settings: Any) -> Any:
    return value


ACCELERATOR = SimpleNamespace(
    device=torch.device("cpu"),
    gather=_same,
    gather_for_metrics=_same,
    reduce=_same,
    num_processes=1,
    unwrap_model=_same,
    sync_gradients=True,
)


def _trainer(**settings: Any) -> SimpleNamespace:
    common = {
        "accelerator": ACCELERATOR,
        "model": SimpleNamespace(training=False),
        "aux_loss_enabled": False,
        "precompute_ref_logps": True,
        "_metrics": {"train": defaultdict(list), "eval": defaultdict(list)},
        "_total_train_tokens": 0,
        "_tp_size": 1,
    }
    return SimpleNamespace(**(common | settings))


def _head(logits_of: Logits) -> Callable[..., Any]:
    """What trl's trainers call a model for: of each token after the first its log-probability, 0 where not learned."""

    def outputs(*, input_ids: Tensor, labels: Tensor | None = None, **ignored: Any) -> Any:
        logits = logits_of(input_ids)
        if labels is None:
            return SimpleNamespace(logits=logits)
        after, labels = logits[:, :-1], labels[:, 1:]
        logps = -F.cross_entropy(after.transpose(1, 2), labels, ignore_index=-100, reduction="none")
        zeros = torch.zeros_like(logps)
        return SimpleNamespace(log_probs=logps, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())

    return outputs


def dpo(
    logits_of: Logits,
    ids: Tensor,
    answer_mask: Tensor,
    reference_B2: Tensor,
    *,
    kind: str,
    beta: float,
    smoothing: float,
) -> Tensor:
    """`ids`: the chosen of all pairs, then the rejected."""
    trainer = _trainer(
        ld_alpha=None,
        f_divergence_type="reverse_kl",
        loss_types=[kind],
        loss_weights=[1.0],
        beta=beta,
        label_smoothing=smoothing,
        use_weighting=False,
    )
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "completion_mask": answer_mask,
        "ref_chosen_logps": reference_B2[:, 0],
        "ref_rejected_logps": reference_B2[:, 1],
    }
    return DPOTrainer._compute_loss(trainer, _head(logits_of), inputs, False)


def kto(
    logits_of: Logits,
    ids: Tensor,
    answer_mask: Tensor,
    mismatched_logps_B: Tensor,
    reference_B2: Tensor,
    is_good_B: Tensor,
    *,
    beta: float,
    weights: tuple[float, float],
) -> Tensor:
    trainer = _trainer(
        loss_type="kto",
        beta=beta,
        calculate_KL=True,
        desirable_weight=weights[0],
        undesirable_weight=weights[1],
        _compute_kl_logps=lambda model, batch: mismatched_logps_B,
    )
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "completion_mask": answer_mask,
        "label": is_good_B,
        "ref_logps": reference_B2[:, 0],
        "ref_KL_logps": reference_B2[:, 1],
    }
    return KTOTrainer._compute_loss(trainer, _head(logits_of), inputs, False)


def cpo(chosen_B: Tensor, rejected_B: Tensor, *, kind: str, beta: float, gamma: float, smoothing: float) -> Tensor:
    settings = {"alpha": 0.0, "loss_type": kind, "beta": beta, "simpo_gamma": gamma, "label_smoothing": smoothing}
    return CPOTrainer.cpo_loss(_trainer(**settings), chosen_B, rejected_B)[0]


def orpo(chosen_B: Tensor, rejected_B: Tensor, *, beta: float) -> Tensor:
    """beta log s(log odds ratio), which trl takes from the loss of the chosen answer."""
    return ORPOTrainer.odds_ratio_loss(_trainer(beta=beta), chosen_B, rejected_B)[0]


def reward(chosen_B: Tensor, rejected_B: Tensor, margins_B: Tensor | None, *, center: float | None) -> Tensor:
    trainer = _trainer(args=SimpleNamespace(center_rewards_coefficient=center))
    inputs = {} if margins_B is None else {"margin": margins_B}
    inputs["attention_mask"] = torch.ones(1)
    both = torch.cat([chosen_B, rejected_B])[:, None]
    return RewardTrainer.compute_loss(trainer, lambda **ignored: SimpleNamespace(logits=both), inputs)


def grpo(
    logps_BT: Tensor,
    old_BT: Tensor,
    advantages_B: Tensor,
    mask_BT: Tensor,
    *,
    kind: str,
    beta: float,
    reference_BT: Tensor,
    clip: tuple[float, float],
    length: int,
) -> Tensor:
    trainer = _trainer(
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        beta=beta,
        loss_type=kind,
        epsilon_low=clip[0],
        epsilon_high=clip[1],
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None),
        use_vllm=False,
        max_completion_length=length,
        current_gradient_accumulation_steps=1,
        _entropy_bonus_enabled=False,
        _get_per_token_logps_and_entropies=lambda *a, **k: (logps_BT, torch.zeros_like(logps_BT), None),
    )
    inputs = {
        "prompt_ids": torch.zeros(len(logps_BT), 1, dtype=torch.long),
        "prompt_mask": torch.ones(len(logps_BT), 1, dtype=torch.long),
        "completion_ids": torch.zeros_like(logps_BT, dtype=torch.long),
        "completion_mask": mask_BT.long(),
        "advantages": advantages_B,
        "old_per_token_logps": old_BT,
        "ref_per_token_logps": reference_BT,
        "num_items_in_batch": mask_BT.sum(),
    }
    return GRPOTrainer._compute_loss(trainer, None, inputs)


def jsd(student: Tensor, teacher: Tensor, *, beta: float, temperature: float) -> Tensor:
    return GKDTrainer.generalized_jsd_loss(student, teacher, beta=beta, temperature=temperature, reduction="none").sum(
        -1
    )
