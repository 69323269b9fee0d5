"""The settings of a decoder, checked to the last piece.

The shape is the same whatever computes; which pieces there are is the engine's to say. `check(DecoderSettings, content,
slots=...)` takes the dicts of pieces that specs are checked against, slot by slot; without them they are those of
`model/pieces.py`, which are torch modules, and are imported when the first spec is checked. With `slots=None` specs are
read, and not checked.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from tessera.config import Settings, Spec, check_spec

Slots = Mapping[str, Mapping[str, Callable[..., Any]]]
"""Slot -> name -> the piece."""
PATTERNS = ("attention", "position", "feed_forward")
"""The slots that may be filled differently from layer to layer."""
GIVEN = ("n_vocab", "context", "d_model", "n_layers", "n_heads", "d_head", "d_ff", "layer")
"""What the decoder gives to every piece, so that a spec may not set it."""


class DecoderSettings(Settings):
    """The shape of a model and the pieces in its slots; the vocabulary comes from the tokenizer.

    Where several specs may stand, they are a pattern over the layers: layer i takes entry i modulo their number.
    """

    context: int = Field(256, gt=0)
    """The longest text that the model sees at once, in tokens."""
    d_model: int = Field(256, gt=0)
    """The width of the residual stream."""
    n_layers: int = Field(6, gt=0)
    n_heads: int = Field(4, gt=0)
    d_head: int | None = Field(None, gt=0)
    """The width of a head; d_model / n_heads when None."""
    d_ff: int | None = Field(None, gt=0)
    """The inner width of the feed-forward; the piece chooses (4 x d_model, or 8/3 x d_model if gated) when None."""
    embedding: Spec = Spec("table")
    attention: Spec | tuple[Spec, ...] = Spec("gqa")
    position: Spec | tuple[Spec, ...] = Spec("rope")
    norm: Spec = Spec("rms")
    placement: Literal["pre", "post", "sandwich", "parallel"] = "pre"
    """Where the norms stand: before each sublayer (and once at the end), after each residual sum, before and after each
    sublayer, or once before both sublayers side by side."""
    feed_forward: Spec | tuple[Spec, ...] = Spec("swiglu")
    tied: bool = False
    """Whether the head is the embedding table."""
    embedding_scale: float = Field(1.0, gt=0.0)
    """What the embedded tokens are multiplied by."""
    logit_cap: float | None = Field(None, gt=0.0)
    """A bound c on the logits: c tanh(logits / c)."""
    vocab_multiple: int = Field(1, gt=0)
    """The tables of embedding and head get a multiple of so many rows, for faster products; what is beyond the
    vocabulary is never an answer."""
    n_future: int = Field(0, ge=0)
    """Tokens after the next one that training predicts too, each by a further block; generation ignores them."""
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    init: Spec = Spec("normal")
    bias: bool = False
    """Whether linear layers and layer norms have a bias, where their own spec does not say."""

    @field_validator("embedding", "attention", "position", "norm", "feed_forward", "init", mode="before")
    @classmethod
    def _piece(cls, value: Any, info: ValidationInfo) -> Spec | tuple[Spec, ...]:
        slot = str(info.field_name)
        slots = _slots(info)
        pieces = None if slots is None else slots[slot]
        if slot in PATTERNS and isinstance(value, (list, tuple)):
            if not value:
                raise ValueError("at least one piece")
            return tuple(_checked(pieces, one, f"model.{slot}[{i}]") for i, one in enumerate(value))
        return _checked(pieces, value, f"model.{slot}")

    def pattern(self, slot: str) -> tuple[Spec, ...]:
        """The specs of a slot as a pattern; one spec is a pattern of one."""
        value = getattr(self, slot)
        return value if isinstance(value, tuple) else (value,)


def _slots(info: ValidationInfo) -> Slots | None:
    """The dicts that a check was given, or else torch's; None if it was given none."""
    if info.context is not None and "slots" in info.context:
        return info.context["slots"]
    from tessera.model.pieces import SLOTS

    return SLOTS


def _checked(pieces: Mapping[str, Callable[..., Any]] | None, value: Any, path: str) -> Spec:
    return Spec.read(value) if pieces is None else check_spec(pieces, value, path, GIVEN)
