"""Which models the CPU engine has kernels for. Nothing here needs numba."""

from collections.abc import Iterator

import torch

from tessera.errors import SettingError
from tessera.model.attention import GroupedQueryAttention
from tessera.model.block import Block
from tessera.model.decoder import Decoder
from tessera.model.dense import SwigluFeedForward
from tessera.model.embedding import TableEmbedding
from tessera.model.linear import Linear
from tessera.model.norm import RMSNorm
from tessera.model.position import RotaryPosition
from tessera.model.settings import DecoderSettings

HEAD_MULTIPLE = 16


def why_not(settings: DecoderSettings) -> str | None:
    """Why a model of these settings has to take the torch path, as a sentence; None if it need not."""
    try:
        with torch.device("meta"):
            model = Decoder.from_settings(settings, n_vocab=1)
    except SettingError as error:
        return str(error)
    return why_not_model(model)


def why_not_model(model: Decoder) -> str | None:
    """The same of a model that is there, of which a part may have been replaced."""
    return next(_reasons(model), None)


def _reasons(model: Decoder) -> Iterator[str]:
    if type(model.embedding) is not TableEmbedding:
        yield f"its embedding is a {type(model.embedding).__name__}, and kernels are for a plain table"
    if model.logit_cap is not None:
        yield "its logits are capped"
    if len(model.positions) != 1 or type(model.positions[0]) is not RotaryPosition:
        yield "its positions are not one rotation for all layers"
    if type(model.final_norm) is not RMSNorm:
        yield "it does not end with an RMSNorm"
    if model.head is not None and type(model.head) is not Linear:
        yield f"its head is a {type(model.head).__name__}"
    for number, block in enumerate(model.blocks):
        for reason in _block_reasons(block):
            yield f"layer {number}: {reason}"
    if len({_heads(block) for block in model.blocks}) > 1:
        yield "its layers have heads of different numbers or widths"


def _heads(block: object) -> object:
    found = getattr(block, "attention", None)
    if not isinstance(found, GroupedQueryAttention):
        return None
    return found.n_heads, found.n_kv_heads, found.d_head, found.scale


def _block_reasons(block: object) -> Iterator[str]:
    if type(block) is not Block:
        yield f"a {type(block).__name__}, and kernels are for a plain pre-norm block"
        return
    attention, feed_forward = block.attention, block.feed_forward
    if type(block.attention_norm) is not RMSNorm or type(block.feed_forward_norm) is not RMSNorm:
        yield "its norms are not RMSNorm"
    if type(attention) is not GroupedQueryAttention:
        yield f"its attention is a {type(attention).__name__}"
        return
    options: dict[str, object] = {"window": attention.window, "score_cap": attention.score_cap}
    options |= {"sinks": attention.sinks, "value_residual": attention.value_mix}
    for name, value in options.items():
        if value is not None:
            yield f"its attention has {name}"
    if attention.d_head % HEAD_MULTIPLE:
        yield f"its heads are {attention.d_head} wide, no multiple of {HEAD_MULTIPLE}"
    if type(feed_forward) is not SwigluFeedForward:
        yield f"its feed-forward is a {type(feed_forward).__name__}, and kernels are for SwiGLU"
        return
    maps = {name: getattr(attention, name) for name in ("query", "key", "value", "output")}
    maps |= {name: getattr(feed_forward, name) for name in ("gate", "input", "output")}
    for name, each in maps.items():
        if type(each) is not Linear:
            yield f"its {name} is a {type(each).__name__}"
