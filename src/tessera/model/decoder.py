"""The decoder-only transformer: embed, N blocks of attention and feed-forward, one head.

The block is Vaswani et al. 2017, "Attention Is All You Need", without the encoder (Radford et al. 2018, GPT). Every
part that people vary is a slot filled by a piece: position, norm, where the norm stands, attention, feed-forward and
initialisation. GPT-2, Llama, Gemma and DeepSeek are settings of this one class; `presets.py` has them.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tessera.config import Spec, build, check_spec
from tessera.errors import InputError, SettingError
from tessera.model.block import PLACEMENTS, Block
from tessera.model.cache import Cache
from tessera.model.flow import Flow
from tessera.model.linear import Linear
from tessera.model.pieces import SLOTS
from tessera.model.position import Position
from tessera.model.recompute import recomputed
from tessera.model.settings import GIVEN, DecoderSettings
from tessera.ops.dropout import dropout
from tessera.ops.loss import Reduction, linear_cross_entropy

Piece = Spec | str | dict[str, Any]
Pattern = Piece | Sequence[Piece]


class Decoder(nn.Module):
    """Token ids to the logits of the next token.

    Pieces are given by name or as a spec: `attention="gqa"`, `attention={"name": "gqa", "n_kv_heads": 2}`. A list of
    them is a pattern over the layers. On `torch.device("meta")` it is built without memory: the way to check settings
    and count parameters of a large one.

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
        d_head: int | None = None,
        d_ff: int | None = None,
        embedding: Piece = "table",
        attention: Pattern = "gqa",
        position: Pattern = "rope",
        norm: Piece = "rms",
        placement: str = "pre",
        feed_forward: Pattern = "swiglu",
        tied: bool = False,
        embedding_scale: float = 1.0,
        logit_cap: float | None = None,
        vocab_multiple: int = 1,
        n_future: int = 0,
        dropout: float = 0.0,
        init: Piece = "normal",
        bias: bool = False,
    ) -> None:
        super().__init__()
        sizes = {"n_vocab": n_vocab, "context": context, "d_model": d_model, "n_layers": n_layers, "n_heads": n_heads}
        d_head = _check_sizes(sizes | {"vocab_multiple": vocab_multiple}, d_head)
        if placement not in PLACEMENTS:
            raise SettingError("model.placement", placement, f"one of {', '.join(PLACEMENTS)}")
        if n_future < 0:
            raise SettingError("model.n_future", n_future, "0 or more")
        if not 0.0 <= dropout < 1.0:
            raise SettingError("model.dropout", dropout, "a share from 0 to less than 1")
        make = _Maker(sizes | {"d_head": d_head, "d_ff": d_ff, "dropout": dropout, "bias": bias})
        patterns = {"attention": attention, "position": position, "feed_forward": feed_forward}
        pieces = {slot: make.pattern(slot, pattern) for slot, pattern in patterns.items()}

        self.n_vocab, self.context, self.dropout = n_vocab, context, dropout
        self.embedding_scale, self.logit_cap = embedding_scale, logit_cap
        self.recompute_every: int | None = None
        """While training, keep the input of every so many blocks alone, and make the rest again (`recompute.py`)."""
        self.recompute_products = True
        """Whether that rest is all, or what is cheap alone."""
        self.training_blocks: list[Callable[..., Tensor]] | None = None
        """What trains in the place of `blocks`: the same, compiled."""
        n_rows = -(-n_vocab // vocab_multiple) * vocab_multiple
        self.embedding = make.piece("embedding", embedding, n_vocab=n_rows)
        self.positions = nn.ModuleList()

        def block(layer: int, like: int) -> Block:
            return PLACEMENTS[placement](
                attention=_turn(pieces["attention"], like)(layer=layer),
                feed_forward=_turn(pieces["feed_forward"], like)(),
                build_norm=lambda: make.piece("norm", norm),
                dropout=dropout,
            )

        self.blocks = nn.ModuleList(block(i, i) for i in range(n_layers))
        self._add_positions(pieces["position"])
        self.final_norm = make.piece("norm", norm) if PLACEMENTS[placement].final_norm else nn.Identity()
        self.head = None if tied else Linear(d_in=d_model, d_out=n_rows, bias=False)
        # After all else, so that the draws of `init` for the rest are those of a model without.
        self.future = nn.ModuleList(block(n_layers + i, n_layers - 1) for i in range(n_future))
        initialise = make.piece("init", init)
        if not self.embedding.weight.is_meta:  # nothing to fill, and torch would load seconds of code to do it
            initialise(self)

    def _add_positions(self, makers: Sequence[Callable[..., Position]]) -> None:
        """One module for each entry of the pattern, as wide as the heads that it turns."""
        n = len(makers)
        for j, make in enumerate(makers[: len(self.blocks)]):
            widths = {block.attention.d_rotated for block in self.blocks[j::n]}  # type: ignore[union-attr]
            if len(widths) > 1:
                raise SettingError("model.position", n, f"one width of heads for entry {j}, found {sorted(widths)}")  # type: ignore[type-var]
            self.positions.append(make(d_head=widths.pop()))

    @classmethod
    def from_settings(cls, settings: DecoderSettings, *, n_vocab: int) -> "Decoder":
        return cls(n_vocab=n_vocab, **{name: getattr(settings, name) for name in DecoderSettings.model_fields})

    @property
    def head_weight(self) -> Tensor:
        """The output table, (n_vocab or more rows, d_model): the embedding itself if the head is tied."""
        return self.embedding.weight if self.head is None else self.head.weight

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.parameters()).device

    @property
    def n_params(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def new_cache(self, batch_size: int, length: int | None = None) -> Cache:
        """An empty cache for `length` tokens (the whole context unless said), where and how the weights are."""
        length = self.context if length is None else length
        if not 0 < length <= self.context:
            raise InputError(f"a cache of {length} tokens for a model whose context is {self.context}")
        weight = next(self.parameters())
        attentions: list[Any] = [block.attention for block in self.blocks]
        looks_back = self.embedding.n_before > 0
        ids_BS = torch.empty(batch_size, length, dtype=torch.long, device=weight.device) if looks_back else None
        return Cache([each.new_cache(batch_size, length, weight.dtype, weight.device) for each in attentions], ids_BS)

    def hidden(self, ids_BT: Tensor, cache: Cache | None = None, flow: Flow | None = None) -> Tensor:
        """What the head reads, (B, T, d_model): the trunk's residual stream under the final norm."""
        x_BTD = self.trunk(ids_BT, cache, flow)
        with _gradients(cache):
            return self.final_norm(x_BTD)

    def trunk(self, ids_BT: Tensor, cache: Cache | None = None, flow: Flow | None = None) -> Tensor:
        """The residual stream after the last block, (B, T, d_model).

        With a cache the ids go on from its `length`, are appended to it, and no gradient is kept. A `flow` of the ids
        says which document each is in, and hears what the pieces have to say.
        """
        start = 0 if cache is None else cache.length
        self._check_ids(ids_BT, start, flow)
        flow = Flow.of(ids_BT, start) if flow is None else flow
        if cache is not None and flow.documents_BT is not None:
            raise InputError("several documents in a row cannot be cached: give each a row of its own")
        with _gradients(cache):
            x_BTD = self.embedding(ids_BT, flow) if cache is None else cache.embedded(self.embedding, ids_BT, flow)
            if self.embedding_scale != 1.0:
                x_BTD = x_BTD * self.embedding_scale
            for position in self.positions:
                x_BTD = position.embed(x_BTD, flow)  # type: ignore[operator]
            x_BTD = dropout(x_BTD, self.dropout if self.training else 0.0)
            n = len(self.blocks)
            if self.recompute_every is None or cache is not None or not torch.is_grad_enabled():
                return self._through(range(n), x_BTD, flow, cache)
            for start in range(0, n, self.recompute_every):
                layers = range(start, min(start + self.recompute_every, n))
                keep = not self.recompute_products
                x_BTD = recomputed(partial(self._through, layers), x_BTD, flow, keep_products=keep)
            return x_BTD

    def _through(self, layers: range, x_BTD: Tensor, flow: Flow, cache: Cache | None = None) -> Tensor:
        """The stream after some of the blocks."""
        compiled = self.training_blocks if torch.is_grad_enabled() and cache is None else None
        blocks: Sequence[Any] = self.blocks if compiled is None else compiled  # type: ignore[assignment]
        for i in layers:
            flow.layer = i
            x_BTD = blocks[i](x_BTD, self._position(i), flow, None if cache is None else cache.layers[i])
        return x_BTD

    def future_hidden(self, x_BTD: Tensor, flow: Flow) -> Iterator[Tensor]:
        """What the head reads to say the token after the next one, the one after that, ..., from the trunk's stream.

        Multi-token prediction (Gloeckle et al. 2024, "Better & Faster Large Language Models via Multi-token
        Prediction"): for each of `n_future` tokens a block of its own, like the last of the trunk; final norm and head
        are shared. It makes the trunk look ahead while it learns; to generate has no use for it.
        """
        n = len(self.blocks)
        for i, block in enumerate(self.future):
            flow.layer = n + i
            yield self.final_norm(block(x_BTD, self._position(n - 1), flow))

    def _position(self, layer: int) -> Any:
        return self.positions[layer % len(self.positions)]

    def logits(self, h_BTD: Tensor) -> Tensor:
        """What the head makes of hidden states: logits over the vocabulary, without its padding, under the cap."""
        scores_BTV = self.embedding.scores(h_BTD) if self.head is None else self.head(h_BTD)
        logits_BTV = scores_BTV[..., : self.n_vocab]
        cap = self.logit_cap
        return logits_BTV if cap is None else cap * torch.tanh(logits_BTV / cap)

    def loss(self, h_BTD: Tensor, targets_BT: Tensor, *, reduction: Reduction = "mean", **options: Any) -> Tensor:
        """`linear_cross_entropy` of the head: as from `logits(h_BTD)`, without ever holding all of them."""
        weight_VD = self.head_weight
        n_vocab = None if self.n_vocab == len(weight_VD) else self.n_vocab
        return linear_cross_entropy(
            h_BTD.flatten(0, -2),
            weight_VD,
            targets_BT.flatten(),
            reduction=reduction,
            logit_cap=self.logit_cap,
            n_vocab=n_vocab,
            **options,
        )

    def forward(self, ids_BT: Tensor, cache: Cache | None = None, flow: Flow | None = None) -> Tensor:
        """The logits (B, T, n_vocab) of the token after each one."""
        h_BTD = self.hidden(ids_BT, cache, flow)
        with _gradients(cache):
            return self.logits(h_BTD)

    def updated(self) -> None:
        """To be called after each update of the weights: some pieces learn without a gradient."""
        for block in (*self.blocks, *self.future):
            block.feed_forward.updated()

    def passed_over(self) -> None:
        """To be called in its place where a step was not made."""
        for block in (*self.blocks, *self.future):
            block.feed_forward.passed_over()

    def _check_ids(self, ids_BT: Tensor, start: int, flow: Flow | None) -> None:
        if ids_BT.ndim != 2 or 0 in ids_BT.shape:
            raise InputError(f"token ids of shape {tuple(ids_BT.shape)}: expected (batch, time), neither of them empty")
        end = start + ids_BT.shape[1] if flow is None else flow.end
        if end > self.context:
            raise InputError(f"{end} tokens are longer than the model's context of {self.context}")
        # Reading a value back from a GPU would make every step wait, and index_select checks there by itself.
        if ids_BT.device.type == "cpu":
            low, high = (int(bound) for bound in ids_BT.aminmax())
            if low < 0 or high >= self.n_vocab:
                raise InputError(f"token id {low if low < 0 else high} is outside of the vocabulary of {self.n_vocab}")


class _Maker:
    """Makes pieces from specs, with what the decoder gives to all."""

    def __init__(self, shared: dict[str, Any]) -> None:
        self.shared = shared

    def piece(self, slot: str, spec: Piece, path: str = "", **own: Any) -> Any:
        path = path or f"model.{slot}"
        return build(SLOTS[slot], check_spec(SLOTS[slot], spec, path, GIVEN), path=path, **(self.shared | own))

    def pattern(self, slot: str, pattern: Pattern) -> list[Callable[..., Any]]:
        """One maker for each entry; a single spec is a pattern of one."""
        if isinstance(pattern, (Spec, str, dict)):
            return [lambda **own: self.piece(slot, pattern, **own)]
        if not pattern:
            raise SettingError(f"model.{slot}", pattern, "at least one piece")
        return [
            lambda spec=spec, i=i, **own: self.piece(slot, spec, f"model.{slot}[{i}]", **own)
            for i, spec in enumerate(pattern)
        ]


def _turn(makers: Sequence[Callable[..., Any]], layer: int) -> Callable[..., Any]:
    return makers[layer % len(makers)]


def _gradients(cache: Cache | None) -> torch.set_grad_enabled:
    """As they are, but none through a cache: what it holds was made by calls that are over."""
    return torch.set_grad_enabled(torch.is_grad_enabled() and cache is None)


def _check_sizes(sizes: dict[str, int], d_head: int | None) -> int:
    """The width of a head."""
    for name, size in (sizes if d_head is None else sizes | {"d_head": d_head}).items():
        if size < 1:
            raise SettingError(f"model.{name}", size, "at least 1")
    if d_head is None and sizes["d_model"] % sizes["n_heads"]:
        expected = f"a multiple of n_heads = {sizes['n_heads']}, unless d_head is said"
        raise SettingError("model.d_model", sizes["d_model"], expected)
    return sizes["d_model"] // sizes["n_heads"] if d_head is None else d_head
