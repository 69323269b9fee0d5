"""Shards -> batches: windows of consecutive tokens, and the same windows one token later as targets.

Which windows come next is a pure function of (seed, cursor), never of what was drawn before (`shuffle`), so a stream is
resumed exactly by two integers. The targets after the end of the data are IGNORE, which the loss leaves out.

B batch, T time (the context).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from tessera.data.shards import Shard
from tessera.data.shuffle import Purpose, permutation, random_words
from tessera.errors import InputError, SettingError

IGNORE = -100
"""The target that `cross_entropy` leaves out."""


@dataclass(frozen=True)
class Batch:
    """What the model reads, and what it should say next at each place; all int64.

    `documents_BT`, where it is there, numbers the documents of each row: a token then sees its own document only.
    """

    inputs_BT: Tensor
    targets_BT: Tensor
    documents_BT: Tensor | None = None

    @property
    def n_targets(self) -> int:
        """How many tokens are predicted: what a loss is averaged over."""
        return int((self.targets_BT != IGNORE).sum())

    def to(self, device: torch.device | str) -> "Batch":
        tensors = (self.inputs_BT, self.targets_BT, self.documents_BT)
        return Batch(*(None if one is None else one.to(device, non_blocking=True) for one in tensors))  # type: ignore[arg-type]

    def pinned(self) -> "Batch":
        """In memory that a GPU fetches from by itself, while the processor goes on."""
        tensors = (self.inputs_BT, self.targets_BT, self.documents_BT)
        return Batch(*(None if one is None else one.pin_memory() for one in tensors))  # type: ignore[arg-type]

    def in_rows_of(self, length: int) -> "Batch":
        """The same tokens in shorter rows: of `length`, or of the largest divisor of the context below it.

        >>> batch = Batch(torch.tensor([[1, 2, 3, 4]]), torch.tensor([[2, 3, 4, 5]]))
        >>> batch.in_rows_of(2).targets_BT
        tensor([[2, 3],
                [4, 5]])
        """
        context = self.inputs_BT.shape[1]
        length = next(size for size in range(min(length, context), 0, -1) if context % size == 0)
        tensors = (self.inputs_BT, self.targets_BT, self.documents_BT)
        return Batch(*(None if one is None else one.reshape(-1, length) for one in tensors))  # type: ignore[arg-type]


def windows(tokens: np.ndarray, starts_B: np.ndarray, context: int, separate_at: int | None = None) -> Batch:
    """The windows that begin at `starts_B`; past the end, targets are IGNORE and inputs repeat the last token.

    With `separate_at`, the id of the end token, each such token begins another document of its row: the first word of
    a document is then predicted from the end token alone, as it is when a text is generated from nothing.
    """
    place_BS = starts_B.astype(np.int64)[:, None] + np.arange(context + 1)  # S = T + 1
    token_BS = np.asarray(tokens[np.minimum(place_BS, len(tokens) - 1)]).astype(np.int64)
    targets_BT = np.where(place_BS[:, 1:] < len(tokens), token_BS[:, 1:], IGNORE)
    inputs_BT = torch.from_numpy(token_BS[:, :-1].copy())
    documents_BT = None if separate_at is None else (inputs_BT == separate_at).cumsum(dim=1)
    return Batch(inputs_BT, torch.from_numpy(targets_BT), documents_BT)


def _check_sizes(context: int, batch_size: int) -> None:
    for name, value in (("context", context), ("batch_size", batch_size)):
        if value < 1:
            raise SettingError(name, value, "a whole number from 1")


class _Windows:
    """What the two streams share: the checks before the start, and a cursor that is refused by other data.

    `separate_at` is the id that separates documents, where they shall not see each other.
    """

    kind: str

    def __init__(
        self, *, shard: Shard, context: int, batch_size: int, seed: int, separate_at: int | None = None
    ) -> None:
        _check_sizes(context, batch_size)
        if len(shard) < context + 1:
            raise InputError(
                f"context longer than the data: context {context} needs {context + 1} tokens, the data has {len(shard)}"
            )
        random_words(0, seed=seed, purpose=Purpose.SPLIT)  # refuses a bad seed now, not at the first batch
        self.shard = shard
        self.context = context
        self.batch_size = batch_size
        self.seed = seed
        self.separate_at = separate_at

    def __iter__(self) -> Self:
        return self

    def _windows(self, starts_B: np.ndarray) -> Batch:
        return windows(self.shard.tokens, starts_B, self.context, self.separate_at)

    def _identity(self) -> dict[str, Any]:
        """What has to be equal for a cursor to mean the same windows; the batch size may change."""
        return {"kind": self.kind, "seed": self.seed, "context": self.context, "n_tokens": len(self.shard)}

    def _check_identity(self, state: Mapping[str, Any]) -> None:
        for name, value in self._identity().items():
            if state.get(name) != value:
                raise InputError(
                    f"the data cursor belongs to other batches: {name} was {state.get(name)!r} and is now {value!r}"
                )


class RandomWindows(_Windows):
    """Windows at uniformly random places, without end: draw `step` is a function of (seed, step)."""

    kind = "random"

    def __init__(
        self, *, shard: Shard, context: int, batch_size: int, seed: int = 0, separate_at: int | None = None
    ) -> None:
        super().__init__(shard=shard, context=context, batch_size=batch_size, seed=seed, separate_at=separate_at)
        self.step = 0

    def __next__(self) -> Batch:
        words = random_words(self.batch_size, seed=self.seed, purpose=Purpose.RANDOM_WINDOWS, counter=self.step)
        self.step += 1
        return self._windows(words % np.uint64(len(self.shard) - self.context))

    def state(self) -> dict[str, Any]:
        """The cursor, as JSON-able data."""
        return {**self._identity(), "step": self.step}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on exactly where the stream that gave `state` stood."""
        self._check_identity(state)
        self.step = int(state["step"])


class EpochWindows(_Windows):
    """Each window once an epoch, in an order that (seed, epoch) decides, without end.

    Windows begin every `stride` tokens (`context` unless given, so that each token after the first is a target exactly
    once an epoch; less gives overlapping windows). The last window may reach past the end: it is padded with IGNORE.
    The last batch of an epoch holds the windows that are left; no batch spans two epochs.
    """

    kind = "epoch"

    def __init__(
        self,
        *,
        shard: Shard,
        context: int,
        batch_size: int,
        seed: int = 0,
        stride: int | None = None,
        separate_at: int | None = None,
    ) -> None:
        super().__init__(shard=shard, context=context, batch_size=batch_size, seed=seed, separate_at=separate_at)
        self.stride = context if stride is None else stride
        if not 1 <= self.stride <= context:
            raise SettingError("stride", stride, f"from 1 to the context ({context}), as a longer one skips tokens")
        self.n_windows = 1 + -(-(len(shard) - 1 - context) // self.stride)
        self.epoch = 0
        self.position = 0
        self._order: tuple[int, np.ndarray] | None = None

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.n_windows // self.batch_size)

    def __next__(self) -> Batch:
        order = self._epoch_order()
        chosen_B = order[self.position : self.position + self.batch_size].astype(np.int64)
        self.position += len(chosen_B)
        if self.position == self.n_windows:
            self.epoch, self.position = self.epoch + 1, 0
        return self._windows(chosen_B * self.stride)

    def _epoch_order(self) -> np.ndarray:
        if self._order is None or self._order[0] != self.epoch:
            order = permutation(self.n_windows, seed=self.seed, purpose=Purpose.EPOCH, counter=self.epoch)
            self._order = (self.epoch, order)
        return self._order[1]

    def _identity(self) -> dict[str, Any]:
        return {**super()._identity(), "stride": self.stride}

    def state(self) -> dict[str, Any]:
        """The cursor, as JSON-able data."""
        return {**self._identity(), "epoch": self.epoch, "position": self.position}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on exactly where the stream that gave `state` stood."""
        self._check_identity(state)
        self.epoch, self.position = int(state["epoch"]), int(state["position"])


def validation_batches(
    shard: Shard, context: int, batch_size: int, *, separate_at: int | None = None
) -> Iterator[Batch]:
    """All of the shard in order, each token after the first as a target exactly once.

    Data shorter than the context will do: the one window is then as wide as the data.
    """
    _check_sizes(context, batch_size)
    if len(shard) < 2:
        raise InputError(f"{len(shard)} tokens are held out: a loss needs 2 or more")
    context = min(context, len(shard) - 1)
    starts = np.arange(0, len(shard) - 1, context)
    return (
        windows(shard.tokens, starts[i : i + batch_size], context, separate_at)
        for i in range(0, len(starts), batch_size)
    )


BATCHES = {"random": RandomWindows, "epoch": EpochWindows}
