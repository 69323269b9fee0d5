"""The decoder-only transformer: embed, N blocks of attention and feed-forward, one head.

The block is Vaswani et al. 2017, "Attention Is All You Need", without the encoder (Radford et al. 2018, GPT). Every
part that people vary is a slot filled by a piece: position, norm, where the norm stands, attention, feed-forward and
initialisation. GPT-2 and Llama are two settings of this one class; `presets.py` has both.
"""

from typing import Any, Literal

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor, nn

from tessera.config import Settings, Spec, build, check_spec
from tessera.errors import InputError, SettingError
from tessera.model.attention import ATTENTIONS
from tessera.model.cache import Cache
from tessera.model.feedforward import FEED_FORWARDS
from tessera.model.init import INITS
from tessera.model.linear import Embedding, Linear
from tessera.model.norm import NORMS
from tessera.model.position import POSITIONS, Position
from tessera.ops.dropout import dropout


class DecoderSettings(Settings):
    """The shape of a model and the pieces in its slots; the vocabulary comes from the tokenizer."""

    context: int = Field(256, gt=0)
    """The longest text that the model sees at once, in tokens."""
    d_model: int = Field(256, gt=0)
    """The width of the residual stream."""
    n_layers: int = Field(6, gt=0)
    n_heads: int = Field(4, gt=0)
    d_ff: int | None = Field(None, gt=0)
    """The inner width of the feed-forward; the piece chooses (4 x d_model, or 8/3 x d_model if gated) when None."""
    attention: Spec = Spec("gqa")
    position: Spec = Spec("rope")
    norm: Spec = Spec("rms")
    placement: Literal["pre", "post"] = "pre"
    """Whether a norm stands before each sublayer (and once at the end), or after each residual sum."""
    feed_forward: Spec = Spec("swiglu")
    tied: bool = False
    """Whether the head is the embedding table."""
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    init: Spec = Spec("normal")
    bias: bool = False
    """Whether linear layers and layer norms have a bias, where their own spec does not say."""

    @field_validator("attention", "position", "norm", "feed_forward", "init")
    @classmethod
    def _piece(cls, spec: Spec, info: ValidationInfo) -> Spec:
        return check_spec(_SLOTS[str(info.field_name)], spec, f"model.{info.field_name}", _GIVEN)


class Block(nn.Module):
    """One layer: attention mixes over time, the feed-forward over the width, each around the residual stream.

    This is pre-norm (Xiong et al. 2020, "On Layer Normalization in the Transformer Architecture"): x + f(norm(x)).
    """

    final_norm = True

    def __init__(
        self,
        *,
        attention: nn.Module,
        attention_norm: nn.Module,
        feed_forward: nn.Module,
        feed_forward_norm: nn.Module,
        dropout: float,
    ) -> None:
        super().__init__()
        self.attention_norm = attention_norm
        self.attention = attention
        self.feed_forward_norm = feed_forward_norm
        self.feed_forward = feed_forward
        self.dropout = dropout

    def drop(self, x_BTD: Tensor) -> Tensor:
        return dropout(x_BTD, self.dropout if self.training else 0.0)

    def forward(self, x_BTD: Tensor, position: Position, cache: Any = None) -> Tensor:
        x_BTD = x_BTD + self.drop(self.attention(self.attention_norm(x_BTD), position, cache))
        return x_BTD + self.drop(self.feed_forward(self.feed_forward_norm(x_BTD)))


class PostNormBlock(Block):
    """The original placement (Vaswani et al. 2017): norm(x + f(x)). No norm follows the last block."""

    final_norm = False

    def forward(self, x_BTD: Tensor, position: Position, cache: Any = None) -> Tensor:
        x_BTD = self.attention_norm(x_BTD + self.drop(self.attention(x_BTD, position, cache)))
        return self.feed_forward_norm(x_BTD + self.drop(self.feed_forward(x_BTD)))


PLACEMENTS: dict[str, type[Block]] = {"pre": Block, "post": PostNormBlock}


class Decoder(nn.Module):
    """Token ids to the logits of the next token.

    Pieces are given by name or as a spec: `attention="gqa"`, `attention={"name": "gqa", "n_kv_heads": 2}`. On
    `torch.device("meta")` it is built without memory: the way to check settings and count parameters of a large one.

    >>> model = Decoder(n_vocab=256, context=64, d_model=64, n_layers=2, n_heads=4)
    >>> model(torch.tensor([[72, 101, 108]])).shape
    torch.Size([1, 3, 256])
    """

    def __init__(
        self,
        *,
        n_vocab: int,
        context: int,
        d_model: int,
        n_layers: int,
        n_heads: int,
        d_ff: int | None = None,
        attention: Spec | str | dict[str, Any] = "gqa",
        position: Spec | str | dict[str, Any] = "rope",
        norm: Spec | str | dict[str, Any] = "rms",
        placement: str = "pre",
        feed_forward: Spec | str | dict[str, Any] = "swiglu",
        tied: bool = False,
        dropout: float = 0.0,
        init: Spec | str | dict[str, Any] = "normal",
        bias: bool = False,
    ) -> None:
        super().__init__()
        sizes = {"n_vocab": n_vocab, "context": context, "d_model": d_model, "n_layers": n_layers, "n_heads": n_heads}
        _check_sizes(sizes)
        if placement not in PLACEMENTS:
            raise SettingError("model.placement", placement, f"one of {', '.join(PLACEMENTS)}")
        if not 0.0 <= dropout < 1.0:
            raise SettingError("model.dropout", dropout, "a share from 0 to less than 1")
        shared: dict[str, Any] = sizes | {"d_head": d_model // n_heads, "d_ff": d_ff, "dropout": dropout, "bias": bias}

        def piece(slot: str, spec: Spec | str | dict[str, Any]) -> Any:
            path = f"model.{slot}"
            return build(_SLOTS[slot], check_spec(_SLOTS[slot], spec, path, _GIVEN), path=path, **shared)

        self.n_vocab, self.context, self.dropout = n_vocab, context, dropout
        self.embedding = Embedding(n_vocab=n_vocab, d_model=d_model)
        self.position: Position = piece("position", position)
        self.blocks = nn.ModuleList(
            PLACEMENTS[placement](
                attention_norm=piece("norm", norm),
                attention=piece("attention", attention),
                feed_forward_norm=piece("norm", norm),
                feed_forward=piece("feed_forward", feed_forward),
                dropout=dropout,
            )
            for _ in range(n_layers)
        )
        self.final_norm = piece("norm", norm) if PLACEMENTS[placement].final_norm else nn.Identity()
        self.head = None if tied else Linear(d_in=d_model, d_out=n_vocab, bias=False)
        piece("init", init)(self)

    @classmethod
    def from_settings(cls, settings: DecoderSettings, *, n_vocab: int) -> "Decoder":
        return cls(n_vocab=n_vocab, **{name: getattr(settings, name) for name in DecoderSettings.model_fields})

    @property
    def head_weight(self) -> Tensor:
        """The output table (n_vocab, d_model): the embedding itself if the head is tied."""
        return self.embedding.weight if self.head is None else self.head.weight

    @property
    def n_params(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def new_cache(self, batch_size: int, length: int | None = None) -> Cache:
        """An empty cache for `length` tokens (the whole context unless said), where and how the weights are."""
        length = self.context if length is None else length
        if not 0 < length <= self.context:
            raise InputError(f"a cache of {length} tokens for a model whose context is {self.context}")
        weight = self.embedding.weight
        attentions: list[Any] = [block.attention for block in self.blocks]
        return Cache([each.new_cache(batch_size, length, weight.dtype, weight.device) for each in attentions])

    def hidden(self, ids_BT: Tensor, cache: Cache | None = None) -> Tensor:
        """What the head reads, (B, T, d_model): the last hidden state of each token.

        With a cache the ids go on from its `length`, are appended to it, and no gradient is kept.
        """
        start = 0 if cache is None else cache.length
        self._check_ids(ids_BT, start)
        with _gradients(cache):
            x_BTD = self.position.embed(self.embedding(ids_BT), start)
            x_BTD = dropout(x_BTD, self.dropout if self.training else 0.0)
            for i, block in enumerate(self.blocks):
                x_BTD = block(x_BTD, self.position, None if cache is None else cache.layers[i])
            return self.final_norm(x_BTD)

    def forward(self, ids_BT: Tensor, cache: Cache | None = None) -> Tensor:
        """The logits (B, T, n_vocab) of the token after each one."""
        h_BTD = self.hidden(ids_BT, cache)
        with _gradients(cache):
            return h_BTD @ self.head_weight.T

    def _check_ids(self, ids_BT: Tensor, start: int) -> None:
        if ids_BT.ndim != 2 or 0 in ids_BT.shape:
            raise InputError(f"token ids of shape {tuple(ids_BT.shape)}: expected (batch, time), neither of them empty")
        end = start + ids_BT.shape[1]
        if end > self.context:
            raise InputError(f"{end} tokens are longer than the model's context of {self.context}")
        # Reading a value back from a GPU would make every step wait, and index_select checks there by itself.
        if ids_BT.device.type == "cpu":
            low, high = (int(bound) for bound in ids_BT.aminmax())
            if low < 0 or high >= self.n_vocab:
                raise InputError(f"token id {low if low < 0 else high} is outside of the vocabulary of {self.n_vocab}")


_SLOTS: dict[str, dict[str, Any]] = {
    "attention": ATTENTIONS,
    "position": POSITIONS,
    "norm": NORMS,
    "feed_forward": FEED_FORWARDS,
    "init": INITS,
}
_GIVEN = ("n_vocab", "context", "d_model", "n_layers", "n_heads", "d_head", "d_ff")
"""What the decoder gives to every piece, so that a spec may not set it."""


def _gradients(cache: Cache | None) -> torch.set_grad_enabled:
    """As they are, but none through a cache: what it holds was made by calls that are over."""
    return torch.set_grad_enabled(torch.is_grad_enabled() and cache is None)


def _check_sizes(sizes: dict[str, int]) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise SettingError(f"model.{name}", size, "at least 1")
    if sizes["d_model"] % sizes["n_heads"]:
        raise SettingError("model.d_model", sizes["d_model"], f"a multiple of n_heads = {sizes['n_heads']}")
