"""Next-token prediction: the pretraining objective of every GPT.

loss = mean over the targets of -log p(target | the tokens before it), in nats (Bengio et al. 2003, eq. 3; Radford et
al. 2018, eq. 1). Targets that the data marks as ignored are neither in the sum nor in the count.
"""

from torch import Tensor

from tessera.data.batches import IGNORE, Batch
from tessera.model.decoder import Decoder
from tessera.objectives.objective import Metrics, Objective
from tessera.ops.loss import linear_cross_entropy


class NextToken(Objective):
    """Each token from those before it. The logits of a whole batch are never held: head and loss are one function."""

    model: Decoder

    def forward(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """The mean loss in nats a target; an `InputError` for a batch that has none."""
        h_ND = self.model.hidden(batch.inputs_BT).flatten(0, 1)
        targets_N = batch.targets_BT.flatten()
        loss = linear_cross_entropy(h_ND, self.model.head_weight, targets_N, ignore_index=IGNORE)
        return loss, {"loss": loss.detach()}
