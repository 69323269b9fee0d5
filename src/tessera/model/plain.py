"""A plain decoder from its settings alone: its widths, and the names and shapes of its tensors.

Plain is what most published models are: blocks of grouped-query attention and SwiGLU, an RMSNorm before each, one
rotation for the positions of all layers. Nothing is built for it, so neither memory nor PyTorch is needed: who reads
files and who runs compiled kernels goes by this. `why_not_plain` says of any other model what it has.

The pieces have the settings of `model/pieces.py` under the same names and with the same defaults, those that plain
models have; `PIECES` is what such settings are checked against (`check(DecoderSettings, content, slots=PIECES)`).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tessera.config import Spec, build
from tessera.errors import SettingError
from tessera.model.settings import DecoderSettings

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class PlainAttention:
    """Of `GroupedQueryAttention`."""

    n_heads: int
    d_head: int
    n_kv_heads: int | None = None
    qk_norm: bool = False
    qk_eps: float = 1e-5
    scale: float | None = None
    bias: bool = False
    output_bias: bool | None = None

    @property
    def n_keys(self) -> int:
        """How many heads of keys and values."""
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads

    def shapes(self, begin: str, d_model: int) -> Shapes:
        d_query, d_key = self.n_heads * self.d_head, self.n_keys * self.d_head
        found = _map(f"{begin}query", d_model, d_query, self.bias) | _map(f"{begin}key", d_model, d_key, self.bias)
        found |= _map(f"{begin}value", d_model, d_key, self.bias)
        found |= _map(f"{begin}output", d_query, d_model, self.bias if self.output_bias is None else self.output_bias)
        if self.qk_norm:
            found |= {f"{begin}query_norm.weight": (self.d_head,), f"{begin}key_norm.weight": (self.d_head,)}
        return found


@dataclass(frozen=True, kw_only=True)
class PlainFeedForward:
    """Of `SwigluFeedForward`."""

    d_model: int
    d_ff: int | None = None
    bias: bool = False

    def shapes(self, begin: str) -> Shapes:
        d_ff = gated_width(self.d_model) if self.d_ff is None else self.d_ff
        found = _map(f"{begin}gate", self.d_model, d_ff, self.bias)
        found |= _map(f"{begin}input", self.d_model, d_ff, self.bias)
        return found | _map(f"{begin}output", d_ff, self.d_model, self.bias)


@dataclass(frozen=True, kw_only=True)
class PlainPosition:
    """Of `RotaryPosition`. What a scaling does is known to PyTorch's pieces alone (`model/rope_scaling.py`)."""

    base: float = 10_000.0
    layout: Literal["halves", "interleaved"] = "halves"
    share: float = 1.0
    scaling: Spec | None = None


@dataclass(frozen=True, kw_only=True)
class PlainNorm:
    """Of `RMSNorm`."""

    eps: float = 1e-5


@dataclass(frozen=True, kw_only=True)
class PlainEmbedding:
    """Of `TableEmbedding`."""


@dataclass(frozen=True, kw_only=True)
class PlainInit:
    """Of `NormalInit`: what was before learning says nothing of the model."""

    std: float = 0.02
    scale_residual: bool = True


PIECES: Mapping[str, Mapping[str, Callable[..., Any]]] = {
    "embedding": {"table": PlainEmbedding},
    "attention": {"gqa": PlainAttention},
    "position": {"rope": PlainPosition},
    "norm": {"rms": PlainNorm},
    "feed_forward": {"swiglu": PlainFeedForward},
    "init": {"normal": PlainInit},
}


@dataclass(frozen=True)
class PlainDecoder:
    """What `DecoderSettings` say of a plain decoder, with every default filled in."""

    settings: DecoderSettings
    n_rows: int
    """Of the tables of embedding and head."""
    attention: PlainAttention
    feed_forward: PlainFeedForward
    position: PlainPosition
    norm: PlainNorm

    @property
    def n_pairs(self) -> int:
        """How many pairs of a head are turned."""
        return int(self.attention.d_head * self.position.share) // 2

    def shapes(self) -> Shapes:
        """The shape of every tensor by its name, in the order of the decoder's `state_dict`."""
        settings, d_model = self.settings, self.settings.d_model
        table, norm = (self.n_rows, d_model), (d_model,)
        found: Shapes = {"embedding.weight": table}
        for layer in range(settings.n_layers):
            found |= self._block(f"blocks.{layer}.")
        found["final_norm.weight"] = norm
        if not settings.tied:
            found["head.weight"] = table
        for layer in range(settings.n_future):
            found |= self._block(f"future.{layer}.")
        return found

    def _block(self, begin: str) -> Shapes:
        d_model = self.settings.d_model
        found: Shapes = {f"{begin}attention_norm.weight": (d_model,)}
        found |= self.attention.shapes(f"{begin}attention.", d_model)
        found[f"{begin}feed_forward_norm.weight"] = (d_model,)
        return found | self.feed_forward.shapes(f"{begin}feed_forward.")


def plain_decoder(settings: DecoderSettings, *, n_vocab: int) -> PlainDecoder:
    """The plain decoder of these settings; a `SettingError` where they are of another, or contradict each other."""
    reason = why_not_plain(settings)
    if reason is not None:
        raise SettingError("model", reason, "a plain decoder")
    given = {"d_model": settings.d_model, "n_heads": settings.n_heads, "d_ff": settings.d_ff, "bias": settings.bias}
    given["d_head"] = settings.d_model // settings.n_heads if settings.d_head is None else settings.d_head
    pieces = {
        slot: build(PIECES[slot], _own(slot, settings.pattern(slot)[0]), path=f"model.{slot}", **given)
        for slot in ("attention", "feed_forward", "position", "norm")
    }
    made = PlainDecoder(settings, -(-n_vocab // settings.vocab_multiple) * settings.vocab_multiple, **pieces)
    for name, value, right, expected in _checks(made):
        if not right:
            raise SettingError(name, value, expected)
    return made


def _own(slot: str, spec: Spec) -> Spec:
    """The settings that a plain piece has as well; the others ask for nothing."""
    known = PIECES[slot][spec.name].__annotations__
    return Spec(spec.name, {name: value for name, value in spec.settings.items() if name in known})


def _checks(made: PlainDecoder) -> Iterator[tuple[str, Any, bool, str]]:
    settings, attention, share = made.settings, made.attention, made.position.share
    heads, turned = settings.n_heads, int(attention.d_head * share)
    fits = settings.d_head is not None or settings.d_model % heads == 0
    yield "d_model", settings.d_model, fits, f"a multiple of n_heads = {heads}, or d_head said"
    keys = attention.n_keys
    yield "n_kv_heads", keys, keys > 0 and heads % keys == 0, f"a divisor of n_heads = {heads}"
    yield "scale", attention.scale, attention.scale is None or attention.scale > 0, "a positive number, or none"
    yield "eps", made.norm.eps, made.norm.eps > 0 and attention.qk_eps > 0, "a positive number"
    yield "base", made.position.base, made.position.base > 0, "a positive number"
    yield "share", share, 0 < share <= 1 and turned > 0 and turned % 2 == 0, "one that turns an even number of a head"


def why_not_plain(settings: DecoderSettings) -> str | None:
    """What the model has that a plain one has not, as a sentence; None if it is plain."""
    return next(_reasons(settings), None)


def _reasons(settings: DecoderSettings) -> Iterator[str]:
    if settings.placement != "pre":
        yield f"its norms stand {settings.placement!r}, not before each sublayer"
    if settings.logit_cap is not None:
        yield "its logits are capped"
    for slot in ("embedding", "attention", "position", "norm", "feed_forward"):
        pattern = settings.pattern(slot)
        if any(spec != pattern[0] for spec in pattern):
            yield f"its layers do not have the same {slot}"
        for spec in pattern:
            yield from _piece_reasons(slot, spec)


def _piece_reasons(slot: str, spec: Spec) -> Iterator[str]:
    if spec.name not in PIECES[slot]:
        yield f"its {slot} is {spec.name!r}, not {next(iter(PIECES[slot]))!r}"
        return
    for name, value in spec.settings.items():
        if name in _OF_TRAINING or (name in _NEUTRAL and value == _NEUTRAL[name]):
            continue
        if name not in PIECES[slot][spec.name].__annotations__:
            yield f"its {slot} has {name}"


_OF_TRAINING = ("dropout",)
_NEUTRAL = {"window": None, "window_keeps": 0, "score_cap": None, "sinks": False, "value_residual": False}
"""Settings of pieces that plain ones do not have, and what asks for nothing."""


def gated_width(d_model: int) -> int:
    """8/3 d_model, rounded up to a multiple of 32: three matrices of it cost what two of 4 d_model do."""
    return -(-8 * d_model // 96) * 32


def _map(name: str, d_in: int, d_out: int, bias: bool) -> Shapes:
    return {f"{name}.weight": (d_out, d_in)} | ({f"{name}.bias": (d_out,)} if bias else {})
