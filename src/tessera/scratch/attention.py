"""Attention layers: each token gathers from those before it. `ops/attention.py` has the arithmetic of the heads."""

from typing import Any, NamedTuple

import numpy as np

from tessera.errors import SettingError
from tessera.scratch.cache import LayerCache
from tessera.scratch.flow import Flow
from tessera.scratch.linear import Linear
from tessera.scratch.norm import NoNorm, RMSNorm
from tessera.scratch.ops import attention
from tessera.scratch.ops.attention import attention_backward, attention_forward, unseen
from tessera.scratch.ops.dropout import dropout_mask
from tessera.scratch.parameter import Parameter, within
from tessera.scratch.position import Position


class Saved(NamedTuple):
    maps: tuple[Any, Any, Any]
    norms: tuple[Any, Any]
    v_BTGK: np.ndarray
    heads: attention.Saved
    output: Any


class GroupedQueryAttention:
    """Causal self-attention with `n_kv_heads` key and value heads, each shared by n_heads / n_kv_heads query heads.

    - `window`: how many tokens one sees, itself included; all if None. `window_keeps`: the first tokens, seen beside
      the window (Xiao et al. 2023).
    - `qk_norm`: an RMSNorm on each query and key head before the rotation (Henry et al. 2020; Qwen 3).
    - `score_cap` c: scores become c tanh(scores / c) (Gemma 2). `scale`: what they are multiplied by, K^-0.5 if None.
    - `sinks`: one learned score a head that stands in the softmax and gathers nothing.
    - `value_residual`: the values of the first layer are mixed into those of every other one,
      (1 - lambda) v + lambda v_first, a learned lambda for each layer (Zhou et al. 2024, "Value Residual Learning").
    - `dropout` falls on the attention weights. `output_bias` is as `bias` unless said.
    """

    def __init__(
        self,
        *,
        d_model: int,
        n_heads: int,
        d_head: int,
        n_kv_heads: int | None = None,
        window: int | None = None,
        window_keeps: int = 0,
        qk_norm: bool = False,
        qk_eps: float = 1e-5,
        score_cap: float | None = None,
        sinks: bool = False,
        scale: float | None = None,
        value_residual: bool = False,
        layer: int = 0,
        dropout: float = 0.0,
        bias: bool = False,
        output_bias: bool | None = None,
        dtype: Any = np.float32,
    ) -> None:
        n_kv_heads = n_heads if n_kv_heads is None else n_kv_heads
        for name, value, right, expected in (
            ("n_kv_heads", n_kv_heads, n_kv_heads > 0 and not n_heads % n_kv_heads, f"a divisor of {n_heads}, n_heads"),
            ("window", window, window is None or window > 0, "at least 1, or none for the whole context"),
            ("window_keeps", window_keeps, window_keeps >= 0, "at least 0"),
            ("window_keeps", window_keeps, not window_keeps or window is not None, "0 without a window"),
            ("score_cap", score_cap, score_cap is None or score_cap > 0, "a positive number, or none"),
            ("scale", scale, scale is None or scale > 0, "a positive number, or none for d_head^-0.5"),
            ("dropout", dropout, 0 <= dropout < 1, "a share from 0 to less than 1"),
        ):
            if not right:
                raise SettingError(name, value, expected)
        self.n_heads, self.n_kv_heads, self.d_head = n_heads, n_kv_heads, d_head
        self.window, self.window_keeps, self.layer, self.dropout = window, window_keeps, layer, dropout
        self.score_cap, self.scale = score_cap, d_head**-0.5 if scale is None else scale
        d_query, d_kv = n_heads * d_head, n_kv_heads * d_head
        output_bias = bias if output_bias is None else output_bias
        self.query = Linear(d_in=d_model, d_out=d_query, bias=bias, dtype=dtype)
        self.key = Linear(d_in=d_model, d_out=d_kv, bias=bias, dtype=dtype)
        self.value = Linear(d_in=d_model, d_out=d_kv, bias=bias, dtype=dtype)
        self.output = Linear(d_in=d_query, d_out=d_model, bias=output_bias, dtype=dtype)
        self.query_norm = RMSNorm(d_model=d_head, eps=qk_eps, dtype=dtype) if qk_norm else NoNorm()
        self.key_norm = RMSNorm(d_model=d_head, eps=qk_eps, dtype=dtype) if qk_norm else NoNorm()
        self.sinks = Parameter(np.zeros(n_heads, dtype)) if sinks else None
        # The first layer has nothing to mix in. Half and half, as in the paper, is where the others start.
        self.value_mix = Parameter(np.full(1, 0.5, dtype)) if value_residual and layer > 0 else None

    @property
    def parameters(self) -> dict[str, Parameter]:
        own = {"sinks": self.sinks, "value_mix": self.value_mix}
        parameters = {name: parameter for name, parameter in own.items() if parameter is not None}
        for name in ("query", "key", "value", "output", "query_norm", "key_norm"):
            parameters |= within(name, getattr(self, name).parameters)
        return parameters

    def forward(
        self, x_BTD: np.ndarray, position: Position, flow: Flow, cache: LayerCache | None = None
    ) -> tuple[np.ndarray, Saved]:
        B, T, _ = x_BTD.shape
        q_BTE, saved_query = self.query.forward(x_BTD)
        k_BTE, saved_key = self.key.forward(x_BTD)
        v_BTE, saved_value = self.value.forward(x_BTD)
        q_BTHK, saved_query_norm = self.query_norm.forward(q_BTE.reshape(B, T, self.n_heads, self.d_head))
        k_BTGK, saved_key_norm = self.key_norm.forward(k_BTE.reshape(B, T, self.n_kv_heads, self.d_head))
        v_BTGK = v_BTE.reshape(B, T, self.n_kv_heads, self.d_head)
        k_BSGK, v_BSGK = position.rotate(k_BTGK, flow), self._mixed(v_BTGK, flow)
        if cache is not None:
            k_BSGK, v_BSGK = cache.append(k_BSGK, v_BSGK)
        S = k_BSGK.shape[1]
        gathered_BTHK, saved_heads = attention_forward(
            position.rotate(q_BTHK, flow),
            k_BSGK,
            v_BSGK,
            scale=self.scale,
            added=self._added(position, flow, S, x_BTD.dtype),
            score_cap=self.score_cap,
            sinks_H=None if self.sinks is None else self.sinks.data,
            mask=self._dropout_mask((B, self.n_heads, T, S), flow, x_BTD.dtype),
        )
        y_BTD, saved_output = self.output.forward(gathered_BTHK.reshape(B, T, -1))
        maps, norms = (saved_query, saved_key, saved_value), (saved_query_norm, saved_key_norm)
        return y_BTD, Saved(maps, norms, v_BTGK, saved_heads, saved_output)

    def backward(self, dy_BTD: np.ndarray, saved: Saved, position: Position, flow: Flow) -> np.ndarray:
        B, T, _ = dy_BTD.shape
        dgathered_BTE = self.output.backward(dy_BTD, saved.output)
        d = attention_backward(dgathered_BTE.reshape(B, T, self.n_heads, self.d_head), saved.heads)
        if self.sinks is not None:
            self.sinks.add_grad(d.dsinks_H)
        position.bias_backward(d.dadded_BHTS)
        dq_BTHK = self.query_norm.backward(position.rotate_backward(d.dq_BTHK, flow), saved.norms[0])
        dk_BTGK = self.key_norm.backward(position.rotate_backward(d.dk_BSGK, flow), saved.norms[1])
        dv_BTGK = self._mixed_backward(d.dv_BSGK, saved.v_BTGK, flow)
        # All three maps read the same x, so its gradients add.
        dx_BTD = self.query.backward(dq_BTHK.reshape(B, T, -1), saved.maps[0])
        dx_BTD += self.key.backward(dk_BTGK.reshape(B, T, -1), saved.maps[1])
        dx_BTD += self.value.backward(dv_BTGK.reshape(B, T, -1), saved.maps[2])
        return dx_BTD

    def _mixed(self, v_BTGK: np.ndarray, flow: Flow) -> np.ndarray:
        """The values with those of the first layer in them, if they are wanted: (1 - lambda) v + lambda v_first."""
        if self.layer == 0:
            flow.first_value_BTGK = v_BTGK
        if self.value_mix is None:
            return v_BTGK
        first_BTGK = flow.first_value_BTGK
        if first_BTGK is None or first_BTGK.shape != v_BTGK.shape:
            expected = f"a first layer with {self.n_kv_heads} value heads of width {self.d_head}"
            raise SettingError("value_residual", True, expected)
        return v_BTGK + self.value_mix.data * (first_BTGK - v_BTGK)

    def _mixed_backward(self, dy_BTGK: np.ndarray, v_BTGK: np.ndarray, flow: Flow) -> np.ndarray:
        """dv = (1 - lambda) dy, dlambda = sum dy (v_first - v); dv_first = lambda dy waits for the first layer."""
        if self.value_mix is None:
            waiting = flow.dfirst_value_BTGK if self.layer == 0 else None
            return dy_BTGK if waiting is None else dy_BTGK + waiting
        self.value_mix.add_grad((dy_BTGK * (flow.first_value_BTGK - v_BTGK)).sum().reshape(1))
        dfirst_BTGK = self.value_mix.data * dy_BTGK
        waiting = flow.dfirst_value_BTGK
        flow.dfirst_value_BTGK = dfirst_BTGK if waiting is None else waiting + dfirst_BTGK
        return dy_BTGK - dfirst_BTGK

    def _added(self, position: Position, flow: Flow, n_keys: int, dtype: Any) -> np.ndarray | None:
        """What is added to the scores: -inf for what is not seen, and the position's bias. Layers alike share it."""

        def make() -> np.ndarray | None:
            hidden = unseen(
                flow.length,
                n_keys,
                window=self.window,
                window_keeps=self.window_keeps,
                documents_BS=flow.documents_BT,
            )
            bias_HTS = position.bias(flow, n_keys)
            if hidden is None:
                return bias_HTS
            return (hidden if bias_HTS is None else hidden + bias_HTS).astype(dtype)

        return flow.once((position, n_keys, self.window, self.window_keeps), make)

    def _dropout_mask(self, shape: tuple[int, ...], flow: Flow, dtype: Any) -> np.ndarray | None:
        return dropout_mask(shape, self.dropout, flow.rng, dtype) if flow.rng is not None and self.dropout else None

    def new_cache(self, batch_size: int, length: int) -> LayerCache:
        return LayerCache(
            batch_size=batch_size,
            length=length,
            n_kv_heads=self.n_kv_heads,
            d_head=self.d_head,
            dtype=self.query.weight.data.dtype,
        )


ATTENTIONS = {"gqa": GroupedQueryAttention}
