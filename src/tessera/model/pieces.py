"""Every piece of the decoder on torch tensors, slot by slot."""

from collections.abc import Callable, Mapping
from typing import Any

from tessera.model.attention import ATTENTIONS
from tessera.model.embedding import EMBEDDINGS
from tessera.model.feedforward import FEED_FORWARDS
from tessera.model.init import INITS
from tessera.model.norm import NORMS
from tessera.model.position import POSITIONS

SLOTS: Mapping[str, Mapping[str, Callable[..., Any]]] = {
    "embedding": EMBEDDINGS,
    "attention": ATTENTIONS,
    "position": POSITIONS,
    "norm": NORMS,
    "feed_forward": FEED_FORWARDS,
    "init": INITS,
}
