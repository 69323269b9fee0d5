"""The decoder-only transformer: embed, N blocks of attention and feed-forward, one head; and the way back.

Follow one number: `loss` runs down the page, `backward` runs up it, each line undoing one line of `loss`. What a line
must remember for its return stands in `saved`; what it learns is added to the `grad` of its parameters. The model is
that of `tessera.model.decoder`, with the same names for settings and parameters.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tessera.config import Spec, build, check_spec
from tessera.errors import InputError, SettingError
from tessera.scratch.attention import ATTENTIONS
from tessera.scratch.block import PLACEMENTS, Block
from tessera.scratch.cache import Cache
from tessera.scratch.feedforward import FEED_FORWARDS
from tessera.scratch.flow import Flow
from tessera.scratch.init import INITS
from tessera.scratch.linear import EMBEDDINGS, Linear
from tessera.scratch.norm import NORMS, NoNorm
from tessera.scratch.ops.cap import cap_backward, cap_forward
from tessera.scratch.ops.dropout import dropout_backward, dropout_forward, dropout_mask
from tessera.scratch.ops.linear import linear_backward, linear_forward
from tessera.scratch.ops.loss import counted, cross_entropy_backward, cross_entropy_forward
from tessera.scratch.parameter import Parameter, within
from tessera.scratch.position import POSITIONS, Position

Piece = Spec | str | Mapping[str, Any]
Pattern = Piece | Sequence[Piece]

SLOTS: dict[str, dict[str, Any]] = {
    "embedding": EMBEDDINGS,
    "attention": ATTENTIONS,
    "position": POSITIONS,
    "norm": NORMS,
    "feed_forward": FEED_FORWARDS,
    "init": INITS,
}
GIVEN = ("n_vocab", "context", "d_model", "n_layers", "n_heads", "d_head", "d_ff", "layer", "dtype")
"""What the decoder gives to every piece, so that a spec may not set it."""


class Decoder:
    """Token ids to the logits of the next token, and the loss back to every parameter.

    The settings are those of `tessera.model.decoder.Decoder`; a piece that is not in the dicts of this package is a
    `SettingError`. `seed` is that of the initialisation, `dtype` float32 or float64.

    >>> model = Decoder(n_vocab=256, context=64, d_model=64, n_layers=2, n_heads=4)
    >>> model.logits(np.array([[72, 101, 108]])).shape
    (1, 3, 256)
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
        seed: int = 0,
        dtype: Any = np.float32,
    ) -> None:
        sizes = {"n_vocab": n_vocab, "context": context, "d_model": d_model, "n_layers": n_layers, "n_heads": n_heads}
        d_head = _check_sizes(sizes | {"vocab_multiple": vocab_multiple}, d_head)
        _check_choices(placement, n_future, dropout, dtype)
        given = sizes | {"d_head": d_head, "d_ff": d_ff, "dropout": dropout, "bias": bias, "dtype": np.dtype(dtype)}
        make = _Maker(given)

        self.n_vocab, self.context, self.dropout = n_vocab, context, dropout
        self.embedding_scale, self.logit_cap = embedding_scale, logit_cap
        n_rows = -(-n_vocab // vocab_multiple) * vocab_multiple
        self.embedding = make.piece("embedding", embedding, n_vocab=n_rows)
        self.positions: list[Position] = make.pattern("position", position, n_layers)
        attentions = make.pattern("attention", attention, n_layers, repeat=True)
        feed_forwards = make.pattern("feed_forward", feed_forward, n_layers, repeat=True)
        self.blocks: list[Block] = [
            PLACEMENTS[placement](
                attention=layer_attention,
                feed_forward=layer_feed_forward,
                build_norm=lambda: make.piece("norm", norm),
                dropout=dropout,
            )
            for layer_attention, layer_feed_forward in zip(attentions, feed_forwards, strict=True)
        ]
        self.final_norm = make.piece("norm", norm) if PLACEMENTS[placement].final_norm else NoNorm()
        self.head = None if tied else Linear(d_in=d_model, d_out=n_rows, bias=False, dtype=np.dtype(dtype))
        self.parameters: dict[str, Parameter] = self._named()
        """Every parameter under its name in a checkpoint, in the order of the torch engine."""
        self._saved: Any = None
        make.piece("init", init)(self.parameters, np.random.default_rng(seed))

    @classmethod
    def from_settings(cls, settings: Any, *, n_vocab: int, **own: Any) -> "Decoder":
        """The model of `DecoderSettings`; `own` is what they do not say (seed, dtype), or what is to be another."""
        return cls(n_vocab=n_vocab, **(dict(settings) | own))

    def _named(self) -> dict[str, Parameter]:
        parameters = within("embedding", self.embedding.parameters)
        for i, position in enumerate(self.positions):
            parameters |= within(f"positions.{i}", position.parameters)
        for i, block in enumerate(self.blocks):
            parameters |= within(f"blocks.{i}", block.parameters)
        parameters |= within("final_norm", self.final_norm.parameters)
        return parameters if self.head is None else parameters | within("head", self.head.parameters)

    @property
    def n_params(self) -> int:
        return sum(parameter.size for parameter in self.parameters.values())

    @property
    def head_weight(self) -> Parameter:
        """The output table, (n_vocab or more rows, d_model): the embedding itself if the head is tied."""
        return self.embedding.weight if self.head is None else self.head.weight

    def logits(self, ids_BT: np.ndarray, cache: Cache | None = None, *, wanted: np.ndarray | None = None) -> np.ndarray:
        """The logits (B, T, n_vocab) of the token after each one; those after the `wanted` places alone, if given.

        With a cache the ids go on from its `length` and are appended to it.
        """
        start = 0 if cache is None else cache.length
        self._check_ids(ids_BT, start)
        if cache is not None:
            cache.check_room(ids_BT.shape[1])
        h_BTD, _ = self._hidden(ids_BT, Flow(start, ids_BT.shape[1]), cache, keep=False)
        h_BTD = h_BTD if wanted is None else h_BTD[:, wanted]
        logits_BTV, _ = linear_forward(h_BTD, self.head_weight.data[: self.n_vocab])
        return logits_BTV if self.logit_cap is None else cap_forward(logits_BTV, self.logit_cap)[0]

    def loss(
        self,
        ids_BT: np.ndarray,
        targets_BT: np.ndarray,
        documents_BT: np.ndarray | None = None,
        rng: np.random.Generator | None = None,
    ) -> float:
        """The mean of -log p(target) over the targets that are not IGNORE, in nats; remembers what `backward` needs.

        With `rng` the model trains: dropout draws from it. An `InputError` for a batch in which no target counts.
        """
        self._check_ids(ids_BT, 0)
        for name, array in (("targets", targets_BT), ("documents", documents_BT)):
            if array is not None and array.shape != ids_BT.shape:
                raise InputError(f"{name} of shape {array.shape} for ids of shape {ids_BT.shape}")
        places = counted(targets_BT, self.n_vocab)
        flow = Flow(0, ids_BT.shape[1], documents_BT, rng)
        h_BTD, saved_hidden = self._hidden(ids_BT, flow)
        h_ND = h_BTD.reshape(-1, h_BTD.shape[-1])[places]
        logits_NV, saved_head = linear_forward(h_ND, self.head_weight.data[: self.n_vocab])
        saved_cap = None
        if self.logit_cap is not None:
            logits_NV, saved_cap = cap_forward(logits_NV, self.logit_cap)
        loss, saved_loss = cross_entropy_forward(logits_NV, targets_BT.reshape(-1)[places])
        self._saved = (h_BTD.shape, places, flow, saved_hidden, saved_head, saved_cap, saved_loss)
        return loss

    def backward(self, scale: float = 1.0) -> None:
        """Add `scale` times the gradients of the last loss to those of the parameters."""
        if self._saved is None:
            raise InputError("no loss to go back from: call loss() first, once for each backward()")
        shape_BTD, places, flow, saved_hidden, saved_head, saved_cap, saved_loss = self._saved
        self._saved = None
        dlogits_NV = cross_entropy_backward(scale, saved_loss)
        if saved_cap is not None:
            dlogits_NV = cap_backward(dlogits_NV, saved_cap)
        dh_ND, dweight_VD, _ = linear_backward(dlogits_NV, saved_head)
        # The table may have more rows than the vocabulary. If the head is tied, the embedding adds to the same ones.
        self.head_weight.grad[: self.n_vocab] += dweight_VD
        dh_BTD = np.zeros(shape_BTD, dh_ND.dtype)
        dh_BTD.reshape(-1, shape_BTD[-1])[places] = dh_ND
        self._hidden_backward(dh_BTD, flow, saved_hidden)

    def _hidden(
        self, ids_BT: np.ndarray, flow: Flow, cache: Cache | None = None, *, keep: bool = True
    ) -> tuple[np.ndarray, Any]:
        """What the head reads, (B, T, d_model); `keep` is whether the blocks are to go back."""
        x_BTD, saved_embedding = self.embedding.forward(ids_BT)
        if self.embedding_scale != 1.0:
            x_BTD = x_BTD * self.embedding_scale
        for position in self.positions:
            x_BTD = position.embed(x_BTD, flow)
        mask = None
        if flow.rng is not None and self.dropout:
            mask = dropout_mask(x_BTD.shape, self.dropout, flow.rng, x_BTD.dtype)
        x_BTD, saved_dropout = dropout_forward(x_BTD, mask)
        saved_blocks = []
        for i, block in enumerate(self.blocks):
            x_BTD, saved = block.forward(x_BTD, self._position(i), flow, None if cache is None else cache.layers[i])
            if keep:
                saved_blocks.append(saved)
        h_BTD, saved_norm = self.final_norm.forward(x_BTD)
        return h_BTD, (saved_embedding, saved_dropout, saved_blocks, saved_norm)

    def _hidden_backward(self, dh_BTD: np.ndarray, flow: Flow, saved: Any) -> None:
        """The lines of `_hidden` from the last to the first."""
        saved_embedding, saved_dropout, saved_blocks, saved_norm = saved
        dx_BTD = self.final_norm.backward(dh_BTD, saved_norm)
        for i in reversed(range(len(self.blocks))):
            dx_BTD = self.blocks[i].backward(dx_BTD, saved_blocks.pop(), self._position(i), flow)
        dx_BTD = dropout_backward(dx_BTD, saved_dropout)
        for position in reversed(self.positions):
            dx_BTD = position.embed_backward(dx_BTD, flow)
        if self.embedding_scale != 1.0:
            dx_BTD = dx_BTD * self.embedding_scale
        self.embedding.backward(dx_BTD, saved_embedding)

    def _position(self, layer: int) -> Position:
        return self.positions[layer % len(self.positions)]

    def new_cache(self, batch_size: int, length: int | None = None) -> Cache:
        """An empty cache for `length` tokens (the whole context unless said)."""
        length = self.context if length is None else length
        if not 0 < length <= self.context:
            raise InputError(f"a cache of {length} tokens for a model whose context is {self.context}")
        return Cache([block.attention.new_cache(batch_size, length) for block in self.blocks])

    def zero_grad(self) -> None:
        for parameter in self.parameters.values():
            parameter.zero_grad()

    def state(self) -> dict[str, np.ndarray]:
        """A copy of all parameters, by name."""
        return {name: parameter.get() for name, parameter in self.parameters.items()}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """Take the numbers of a `state`; an `InputError`, and nothing taken, if a name or a shape does not fit."""
        if missing := sorted(self.parameters.keys() - state.keys()):
            raise InputError(f"the checkpoint has no {', '.join(missing)}")
        if unknown := sorted(state.keys() - self.parameters.keys()):
            raise InputError(f"the model has no {', '.join(unknown)}")
        for name, parameter in self.parameters.items():
            if state[name].shape != parameter.shape:
                raise InputError(f"{name} of shape {state[name].shape} for a parameter of shape {parameter.shape}")
        for name, parameter in self.parameters.items():
            parameter.set(state[name])

    def _check_ids(self, ids_BT: np.ndarray, start: int) -> None:
        if ids_BT.ndim != 2 or 0 in ids_BT.shape:
            raise InputError(f"token ids of shape {ids_BT.shape}: expected (batch, time), neither of them empty")
        end = start + ids_BT.shape[1]
        if end > self.context:
            raise InputError(f"{end} tokens are longer than the model's context of {self.context}")
        low, high = int(ids_BT.min()), int(ids_BT.max())
        if low < 0 or high >= self.n_vocab:
            raise InputError(f"token id {low if low < 0 else high} is outside of the vocabulary of {self.n_vocab}")


class _Maker:
    """Makes pieces from specs, with what the decoder gives to all."""

    def __init__(self, shared: dict[str, Any]) -> None:
        self.shared = shared

    def piece(self, slot: str, spec: Piece, path: str = "", **own: Any) -> Any:
        path = path or f"model.{slot}"
        return build(SLOTS[slot], check_spec(SLOTS[slot], spec, path, GIVEN), path=path, **(self.shared | own))

    def pattern(self, slot: str, pattern: Pattern, n_layers: int, *, repeat: bool = False) -> list[Any]:
        """A piece for each entry (a single spec is a pattern of one), or with `repeat` for each layer, by turns."""
        if isinstance(pattern, (Spec, str, Mapping)):
            makers: list[Callable[..., Any]] = [lambda **own: self.piece(slot, pattern, **own)]
        else:
            if not pattern:
                raise SettingError(f"model.{slot}", pattern, "at least one piece")
            makers = [
                lambda spec=spec, i=i, **own: self.piece(slot, spec, f"model.{slot}[{i}]", **own)
                for i, spec in enumerate(pattern)
            ]
        n = n_layers if repeat else min(len(makers), n_layers)
        return [makers[i % len(makers)](layer=i) for i in range(n)]


def _check_sizes(sizes: dict[str, int], d_head: int | None) -> int:
    """The width of a head."""
    for name, size in (sizes if d_head is None else sizes | {"d_head": d_head}).items():
        if size < 1:
            raise SettingError(f"model.{name}", size, "at least 1")
    if d_head is None and sizes["d_model"] % sizes["n_heads"]:
        expected = f"a multiple of n_heads = {sizes['n_heads']}, unless d_head is said"
        raise SettingError("model.d_model", sizes["d_model"], expected)
    return sizes["d_model"] // sizes["n_heads"] if d_head is None else d_head


def _check_choices(placement: str, n_future: int, dropout: float, dtype: Any) -> None:
    for name, value, right, expected in (
        ("placement", placement, placement in PLACEMENTS, f"one of {', '.join(PLACEMENTS)}"),
        ("n_future", n_future, n_future == 0, "0: the NumPy engine predicts one token"),
        ("dropout", dropout, 0.0 <= dropout < 1.0, "a share from 0 to less than 1"),
        ("dtype", dtype, np.dtype(dtype) in (np.float32, np.float64), "float32 or float64"),
    ):
        if not right:
            raise SettingError(f"model.{name}", value, expected)
