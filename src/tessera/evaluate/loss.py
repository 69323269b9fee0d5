"""Held-out loss, and bits per byte: the figure that compares across tokenizers.

bits per byte = (sum of -log2 p(token)) / (bytes of the text). A general compressor's output size gives the same figure
for the same bytes, so that a model and `xz` stand on one scale.
"""

import bz2
import lzma
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Union

import numpy as np

from tessera.data.batches import Batch, validation_batches
from tessera.data.prepared import Prepared
from tessera.data.shards import Shard
from tessera.errors import InputError
from tessera.scratch.decoder import Decoder as ByHand
from tessera.tokenizers import Tokenizer

if TYPE_CHECKING:
    from tessera.model.decoder import Decoder

Model = Union["Decoder", ByHand]

CHECKED_TOKENS = 2**20
COMPRESSORS = {
    "xz -9e": lambda text: lzma.compress(text, preset=9 | lzma.PRESET_EXTREME),
    "bz2 -9": lambda text: bz2.compress(text, 9),
}


@dataclass(frozen=True)
class HeldOutLoss:
    """The total over held-out tokens, each predicted once."""

    nats: float
    n_tokens: int
    sources: "dict[str, HeldOutLoss]" = field(default_factory=dict)
    """That of each source of a mixture, of which this is the sum."""

    @property
    def mean(self) -> float:
        """Nats a token."""
        return self.nats / self.n_tokens

    def bits_per_byte(self, n_bytes: int) -> float:
        """Over a text of `n_bytes` UTF-8 bytes."""
        return self.nats / math.log(2) / n_bytes


def perplexity(loss: float) -> float:
    """exp(loss), of nats a token: among how many equally likely tokens the loss is that of a guess. Always finite."""
    return math.exp(min(loss, 700.0))


def held_out_loss(model: Model, batches: Iterable[Batch], *, max_tokens: int | None = None) -> HeldOutLoss:
    """The loss of a model of either engine over `batches`, in evaluation mode; stops after `max_tokens` targets."""
    nats, n_tokens = 0.0, 0
    with _by_hand(model) if isinstance(model, ByHand) else _by_torch(model) as nats_of:
        for batch in batches:
            nats += nats_of(batch)
            n_tokens += batch.n_targets
            if max_tokens is not None and n_tokens >= max_tokens:
                break
    if n_tokens == 0:
        raise InputError("there is no held-out token to measure the loss on")
    return HeldOutLoss(nats=nats, n_tokens=n_tokens)


@contextmanager
def _by_torch(model: "Decoder") -> Iterator[Callable[[Batch], float]]:
    """What gives the summed loss of a batch; the model is as it was after the block."""
    import torch

    from tessera.model.flow import Flow

    was_training = model.training
    device = next(model.parameters()).device

    def nats_of(batch: Batch) -> float:
        batch = batch.to(device)
        flow = Flow.of(batch.inputs_BT, documents_BT=batch.documents_BT)
        return model.loss(model.hidden(batch.inputs_BT, flow=flow), batch.targets_BT, reduction="sum").item()

    model.eval()
    try:
        with torch.inference_mode():
            yield nats_of
    finally:
        model.train(was_training)


@contextmanager
def _by_hand(model: ByHand) -> Iterator[Callable[[Batch], float]]:
    """The same of the NumPy engine."""

    def nats_of(batch: Batch) -> float:
        if not (n_targets := batch.n_targets):
            return 0.0
        return model.loss(batch.inputs_BT, batch.targets_BT, batch.documents_BT) * n_targets

    yield nats_of


def text_loss(
    model: Model,
    prepared: Prepared,
    *,
    batch_size: int,
    separate_at: int | None = None,
    max_tokens: int | None = None,
    overlap: float = 0.0,
) -> HeldOutLoss:
    """The loss over the held-out text, or about `max_tokens` of it: of a mixture, as large a part of each source.

    `overlap` is the share of each window that was predicted in the one before it, and is only read.
    """
    shared = int(overlap * model.context)

    def loss(shard: Shard, limit: int | None) -> HeldOutLoss:
        batches = validation_batches(shard, model.context, batch_size, separate_at=separate_at, overlap=shared)
        return held_out_loss(model, batches, max_tokens=limit)

    shards = prepared.part_shards("validation")
    if not shards:
        return loss(prepared.validation, max_tokens)
    n_tokens = sum(map(len, shards.values()))
    losses = {
        name: loss(shard, None if max_tokens is None else math.ceil(max_tokens * len(shard) / n_tokens))
        for name, shard in shards.items()
    }
    return HeldOutLoss(
        nats=sum(each.nats for each in losses.values()),
        n_tokens=sum(each.n_tokens for each in losses.values()),
        sources=losses,
    )


def compressor_bits_per_byte(text: bytes) -> dict[str, float]:
    """What `xz -9e` and `bz2 -9` need for `text`, in bits a byte."""
    if not text:
        raise InputError("there is no held-out text to compress")
    return {name: 8 * len(compress(text)) / len(text) for name, compress in COMPRESSORS.items()}


def holds_text(tokenizer: Tokenizer, prepared: Prepared, text: bytes) -> bool:
    """Whether the held-out ids give the held-out text back (the first CHECKED_TOKENS of them): only then does the loss
    measure what a compressor does. Bins of values or lower-cased words leave some of it out."""
    ids = prepared.validation.tokens[:CHECKED_TOKENS]
    end_id = -1 if tokenizer.end_id is None else tokenizer.end_id
    documents = np.split(ids, np.flatnonzero(ids == end_id))
    decoded = b"".join(tokenizer.decode_bytes(document[document != end_id].tolist()) for document in documents)
    return text == decoded if len(ids) == len(prepared.validation) else text.startswith(decoded)
