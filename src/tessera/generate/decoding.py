"""Rows of tokens that grow together: prompts of one length, the cache that goes with them, a token a row a step.

A prompt goes through the model once, however many answers it shall have: then its row of the cache is copied for each.
A row that has ended is taken out, so that what is left costs no more than it would alone.

B rows, T time, V vocabulary.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tessera.generate.sampling import Sampling, sample
from tessera.model.cache import Cache
from tessera.model.decoder import Decoder


class Decoding:
    """The rows. `logits` are those after the last of the ids that it is given, which it adds to the cache."""

    def __init__(
        self,
        model: Decoder,
        logits: Callable[[Tensor, Cache], Tensor],
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        generators: Sequence[torch.Generator],
        *,
        begin_id: int | None,
    ) -> None:
        """Each prompt has as many rows, one after the other, as there are `generators` for it."""
        self.context, self._logits, self._sampling = model.context, logits, sampling
        self._generators, self._begin_id = list(generators), begin_id
        self._cache = model.new_cache(len(prompts), min(self.context, len(prompts[0]) + sampling.max_tokens))
        self._previous_BT = torch.tensor([list(prompt) for prompt in prompts], device=model.head_weight.device)
        self._new_BT = self._previous_BT
        self._begins_B = self._previous_BT[:, 0] == (-1 if begin_id is None else begin_id)

    @torch.inference_mode()
    def step(self) -> list[int]:
        """The next id of each row."""
        if self._cache.length + self._new_BT.shape[1] > self.context:
            self._cache.reset()
            self._new_BT = self._window()
        logits_BV = self._logits(self._new_BT, self._cache)
        if len(logits_BV) < len(self._generators):  # the prompts have been read: from here on each answer is a row
            rows_B = torch.arange(len(logits_BV), device=logits_BV.device)
            rows_B = rows_B.repeat_interleave(len(self._generators) // len(rows_B))
            logits_BV = logits_BV[rows_B]
            self._take(rows_B)
        next_B = sample(logits_BV, self._sampling, self._generators, self._previous_BT)
        self._new_BT = next_B[:, None]
        self._previous_BT = torch.cat((self._previous_BT, self._new_BT), dim=1)
        if self._sampling.repetition_penalty == 1.0:
            self._previous_BT = self._previous_BT[:, -self.context :]
        return next_B.tolist()

    @torch.inference_mode()
    def keep(self, rows: Sequence[int]) -> None:
        """Go on with the rows of these numbers alone."""
        rows_B = torch.tensor(rows, device=self._new_BT.device)
        self._generators = [self._generators[row] for row in rows]
        self._new_BT = self._new_BT[rows_B]
        self._take(rows_B)

    def _take(self, rows_B: Tensor) -> None:
        self._cache.take(rows_B)
        self._previous_BT, self._begins_B = self._previous_BT[rows_B], self._begins_B[rows_B]

    def _window(self) -> Tensor:
        """What stays in sight when the context is full. Where the first of the prompt was the begin token, that takes
        the place of the oldest."""
        kept_BT = self._previous_BT[:, -max(1, self.context // 2) :].clone()
        if self._begin_id is not None and kept_BT.shape[1] > 1:
            kept_BT[self._begins_B, 0] = self._begin_id
        return kept_BT


def of_one_length(lengths: Sequence[int], most: int) -> list[list[int]]:
    """The numbers of the prompts that can be decoded together, at most so many at once.

    >>> of_one_length([5, 3, 5, 5], most=2)
    [[0, 2], [3], [1]]
    """
    alike: dict[int, list[int]] = {}
    for number, length in enumerate(lengths):
        alike.setdefault(length, []).append(number)
    return [numbers[start : start + most] for numbers in alike.values() for start in range(0, len(numbers), most)]
