"""Blocks: one layer of the decoder. Attention mixes over time, the feed-forward over the width, around the residual.

Where the norms stand is the block's own idea; `PLACEMENTS` has them all. `build_norm` makes a fresh norm at each call.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from tessera.scratch.attention import GroupedQueryAttention
from tessera.scratch.cache import LayerCache
from tessera.scratch.feedforward import ReluFeedForward, SwigluFeedForward
from tessera.scratch.flow import Flow
from tessera.scratch.norm import NoNorm
from tessera.scratch.ops.dropout import dropout_backward, dropout_forward, dropout_mask
from tessera.scratch.ops.residual import residual_backward, residual_forward
from tessera.scratch.parameter import Parameter, within
from tessera.scratch.position import Position


class Block:
    """Pre-norm: x + f(norm(x)) (Xiong et al. 2020, "On Layer Normalization in the Transformer Architecture")."""

    final_norm = True
    """Whether a norm follows the last block."""
    parts: tuple[str, ...] = ("attention_norm", "attention", "feed_forward_norm", "feed_forward")

    def __init__(
        self,
        *,
        attention: GroupedQueryAttention,
        feed_forward: ReluFeedForward | SwigluFeedForward,
        build_norm: Callable[[], NoNorm],
        dropout: float = 0.0,
    ) -> None:
        self.attention_norm = build_norm()
        self.attention = attention
        self.feed_forward_norm = build_norm()
        self.feed_forward = feed_forward
        self.dropout = dropout

    @property
    def parameters(self) -> dict[str, Parameter]:
        return {
            name: parameter
            for part in self.parts
            for name, parameter in within(part, getattr(self, part).parameters).items()
        }

    def drop(self, x_BTD: np.ndarray, flow: Flow) -> tuple[np.ndarray, Any]:
        if flow.rng is None or not self.dropout:
            return dropout_forward(x_BTD, None)
        return dropout_forward(x_BTD, dropout_mask(x_BTD.shape, self.dropout, flow.rng, x_BTD.dtype))

    def forward(
        self, x_BTD: np.ndarray, position: Position, flow: Flow, cache: LayerCache | None = None
    ) -> tuple[np.ndarray, Any]:
        h_BTD, norm_1 = self.attention_norm.forward(x_BTD)
        a_BTD, attention = self.attention.forward(h_BTD, position, flow, cache)
        a_BTD, drop_1 = self.drop(a_BTD, flow)
        x_BTD = residual_forward(x_BTD, a_BTD)
        h_BTD, norm_2 = self.feed_forward_norm.forward(x_BTD)
        f_BTD, feed_forward = self.feed_forward.forward(h_BTD)
        f_BTD, drop_2 = self.drop(f_BTD, flow)
        return residual_forward(x_BTD, f_BTD), (norm_1, attention, drop_1, norm_2, feed_forward, drop_2)

    def backward(self, dy_BTD: np.ndarray, saved: Any, position: Position, flow: Flow) -> np.ndarray:
        """The lines of `forward` from the last to the first."""
        norm_1, attention, drop_1, norm_2, feed_forward, drop_2 = saved
        df_BTD = dropout_backward(dy_BTD, drop_2)
        dh_BTD = self.feed_forward.backward(df_BTD, feed_forward)
        dx_BTD = residual_backward(dy_BTD, self.feed_forward_norm.backward(dh_BTD, norm_2))
        da_BTD = dropout_backward(dx_BTD, drop_1)
        dh_BTD = self.attention.backward(da_BTD, attention, position, flow)
        return residual_backward(dx_BTD, self.attention_norm.backward(dh_BTD, norm_1))


class PostNormBlock(Block):
    """The original placement (Vaswani et al. 2017): norm(x + f(x)). No norm follows the last block."""

    final_norm = False

    def forward(
        self, x_BTD: np.ndarray, position: Position, flow: Flow, cache: LayerCache | None = None
    ) -> tuple[np.ndarray, Any]:
        a_BTD, attention = self.attention.forward(x_BTD, position, flow, cache)
        a_BTD, drop_1 = self.drop(a_BTD, flow)
        x_BTD, norm_1 = self.attention_norm.forward(residual_forward(x_BTD, a_BTD))
        f_BTD, feed_forward = self.feed_forward.forward(x_BTD)
        f_BTD, drop_2 = self.drop(f_BTD, flow)
        y_BTD, norm_2 = self.feed_forward_norm.forward(residual_forward(x_BTD, f_BTD))
        return y_BTD, (attention, drop_1, norm_1, feed_forward, drop_2, norm_2)

    def backward(self, dy_BTD: np.ndarray, saved: Any, position: Position, flow: Flow) -> np.ndarray:
        attention, drop_1, norm_1, feed_forward, drop_2, norm_2 = saved
        dsum_BTD = self.feed_forward_norm.backward(dy_BTD, norm_2)
        df_BTD = dropout_backward(dsum_BTD, drop_2)
        dx_BTD = residual_backward(dsum_BTD, self.feed_forward.backward(df_BTD, feed_forward))
        dsum_BTD = self.attention_norm.backward(dx_BTD, norm_1)
        da_BTD = dropout_backward(dsum_BTD, drop_1)
        return residual_backward(dsum_BTD, self.attention.backward(da_BTD, attention, position, flow))


class SandwichBlock(Block):
    """Before and after: x + post_norm(f(norm(x))) (Ding et al. 2021, "CogView", section 2.4; Gemma 2).

    The second norm bounds what a sublayer writes into the stream, however large its weights become.
    """

    parts = (*Block.parts, "attention_post_norm", "feed_forward_post_norm")

    def __init__(
        self,
        *,
        attention: GroupedQueryAttention,
        feed_forward: ReluFeedForward | SwigluFeedForward,
        build_norm: Callable[[], NoNorm],
        dropout: float = 0.0,
    ) -> None:
        super().__init__(attention=attention, feed_forward=feed_forward, build_norm=build_norm, dropout=dropout)
        self.attention_post_norm = build_norm()
        self.feed_forward_post_norm = build_norm()

    def forward(
        self, x_BTD: np.ndarray, position: Position, flow: Flow, cache: LayerCache | None = None
    ) -> tuple[np.ndarray, Any]:
        h_BTD, norm_1 = self.attention_norm.forward(x_BTD)
        a_BTD, attention = self.attention.forward(h_BTD, position, flow, cache)
        a_BTD, post_1 = self.attention_post_norm.forward(a_BTD)
        a_BTD, drop_1 = self.drop(a_BTD, flow)
        x_BTD = residual_forward(x_BTD, a_BTD)
        h_BTD, norm_2 = self.feed_forward_norm.forward(x_BTD)
        f_BTD, feed_forward = self.feed_forward.forward(h_BTD)
        f_BTD, post_2 = self.feed_forward_post_norm.forward(f_BTD)
        f_BTD, drop_2 = self.drop(f_BTD, flow)
        y_BTD = residual_forward(x_BTD, f_BTD)
        return y_BTD, (norm_1, attention, post_1, drop_1, norm_2, feed_forward, post_2, drop_2)

    def backward(self, dy_BTD: np.ndarray, saved: Any, position: Position, flow: Flow) -> np.ndarray:
        norm_1, attention, post_1, drop_1, norm_2, feed_forward, post_2, drop_2 = saved
        df_BTD = self.feed_forward_post_norm.backward(dropout_backward(dy_BTD, drop_2), post_2)
        dh_BTD = self.feed_forward.backward(df_BTD, feed_forward)
        dx_BTD = residual_backward(dy_BTD, self.feed_forward_norm.backward(dh_BTD, norm_2))
        da_BTD = self.attention_post_norm.backward(dropout_backward(dx_BTD, drop_1), post_1)
        dh_BTD = self.attention.backward(da_BTD, attention, position, flow)
        return residual_backward(dx_BTD, self.attention_norm.backward(dh_BTD, norm_1))


class ParallelBlock(Block):
    """Both sublayers read the same norm: x + attention(norm(x)) + feed_forward(norm(x)).

    Wang and Komatsuzaki 2021 (GPT-J); Chowdhery et al. 2022, "PaLM", section 2. The two do not wait for each other.
    """

    parts = ("attention_norm", "attention", "feed_forward")

    def __init__(
        self,
        *,
        attention: GroupedQueryAttention,
        feed_forward: ReluFeedForward | SwigluFeedForward,
        build_norm: Callable[[], NoNorm],
        dropout: float = 0.0,
    ) -> None:
        super().__init__(attention=attention, feed_forward=feed_forward, build_norm=build_norm, dropout=dropout)
        del self.feed_forward_norm

    def forward(
        self, x_BTD: np.ndarray, position: Position, flow: Flow, cache: LayerCache | None = None
    ) -> tuple[np.ndarray, Any]:
        h_BTD, norm = self.attention_norm.forward(x_BTD)
        a_BTD, attention = self.attention.forward(h_BTD, position, flow, cache)
        a_BTD, drop_1 = self.drop(a_BTD, flow)
        f_BTD, feed_forward = self.feed_forward.forward(h_BTD)
        f_BTD, drop_2 = self.drop(f_BTD, flow)
        y_BTD = residual_forward(residual_forward(x_BTD, a_BTD), f_BTD)
        return y_BTD, (norm, attention, drop_1, feed_forward, drop_2)

    def backward(self, dy_BTD: np.ndarray, saved: Any, position: Position, flow: Flow) -> np.ndarray:
        norm, attention, drop_1, feed_forward, drop_2 = saved
        dh_BTD = self.feed_forward.backward(dropout_backward(dy_BTD, drop_2), feed_forward)
        # Both sublayers read h, so its gradients add.
        dh_BTD = dh_BTD + self.attention.backward(dropout_backward(dy_BTD, drop_1), attention, position, flow)
        return residual_backward(dy_BTD, self.attention_norm.backward(dh_BTD, norm))


PLACEMENTS: dict[str, type[Block]] = {
    "pre": Block,
    "post": PostNormBlock,
    "sandwich": SandwichBlock,
    "parallel": ParallelBlock,
}
