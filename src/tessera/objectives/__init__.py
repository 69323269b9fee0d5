"""Objectives: what is learned. Each yields batches and turns a batch into a loss; one training loop runs them all.

What an objective reads is its `reads`: windows of documents, conversations, pairs of answers, judged
answers, or tasks.
"""

from tessera.objectives.distillation import Distillation
from tessera.objectives.dpo import DPO
from tessera.objectives.grpo import GRPO
from tessera.objectives.kto import KTO
from tessera.objectives.next_token import NextToken
from tessera.objectives.objective import Objective
from tessera.objectives.orpo import ORPO
from tessera.objectives.ppo import PPO
from tessera.objectives.reward import Reward
from tessera.objectives.sft import SFT
from tessera.objectives.simpo import SimPO

OBJECTIVES: dict[str, type[Objective]] = {
    "next-token": NextToken,
    "sft": SFT,
    "reward": Reward,
    "dpo": DPO,
    "simpo": SimPO,
    "orpo": ORPO,
    "kto": KTO,
    "distillation": Distillation,
    "ppo": PPO,
    "grpo": GRPO,
}
