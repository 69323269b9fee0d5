"""Supervised fine-tuning: the next token, of what the assistant says alone (Ouyang et al. 2022, section 3.5).

loss = mean over the learned tokens of -log p(token | all before it). It is the loss of pretraining on other batches:
what the user and the template say has no target (`tessera.data.conversations`). The mean is over the learned tokens of
a whole step, so that padding, packing and how a batch is split change nothing.
"""

from typing import ClassVar

from tessera.objectives.next_token import NextToken


class SFT(NextToken):
    """Next-token prediction on conversations."""

    reads: ClassVar[str] = "conversations"
