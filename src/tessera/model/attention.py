"""Attention layers: each token gathers from those before it.

One class covers multi-head (n_kv_heads = n_heads), grouped-query (fewer) and multi-query (1) attention (Ainslie et al.
2023, "GQA"), each with the options that models have. `latent_attention.py` has the other kind, whose keys and values
are made from one short vector a token.
"""

from functools import partial

import torch
from torch import Tensor, nn

from tessera.errors import SettingError
from tessera.model.cache import LayerCache
from tessera.model.flow import Flow
from tessera.model.int8 import maps_of
from tessera.model.latent_attention import MultiHeadLatentAttention
from tessera.model.linear import Linear
from tessera.model.norm import RMSNorm
from tessera.model.position import Position
from tessera.ops.attention import attention
from tessera.ops.autocast import as_multiplied


class GroupedQueryAttention(nn.Module):
    """Causal self-attention with `n_kv_heads` key and value heads, each shared by n_heads / n_kv_heads query heads.

    - `window`: how many tokens one sees, itself included; all if None (Beltagy et al. 2020, Longformer; Mistral 7B).
      `window_keeps`: the first tokens, seen beside the window (Xiao et al. 2023, "Efficient Streaming Language Models
      with Attention Sinks"); they keep the positions that they have in the text.
    - `qk_norm`: an RMSNorm on each query and key head before the rotation, which bounds the scores (Henry et al. 2020;
      Qwen 3).
    - `score_cap` c: scores become c tanh(scores / c) (Gemma 2). `scale`: what they are multiplied by, K^-0.5 if None.
    - `sinks`: one learned score a head that stands in the softmax and gathers nothing, so that a head may attend to
      nothing (GPT-OSS; Xiao et al. 2023, eq. 2, with 0).
    - `value_residual`: the values of the first layer are mixed into those of every other one,
      (1 - lambda) v + lambda v_first, a learned lambda for each layer (Zhou et al. 2024, "Value Residual Learning").
    - `dropout` falls on the attention weights. `output_bias` is as `bias` unless said.
    """

    sinks: nn.Parameter | None
    value_mix: nn.Parameter | None

    def __init__(
        self,
        *,
        d_model: int,
        n_heads: int,
        d_head: int | None = None,
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
    ) -> None:
        super().__init__()
        if d_head is None and d_model % n_heads:
            raise SettingError("d_model", d_model, f"a multiple of n_heads = {n_heads}, or d_head said")
        self.n_heads, self.n_kv_heads = n_heads, n_heads if n_kv_heads is None else n_kv_heads
        self.d_head = d_model // n_heads if d_head is None else d_head
        self.window, self.window_keeps = window, window_keeps
        self.score_cap, self.scale, self.dropout = score_cap, scale, dropout
        self.layer = layer
        self._check(qk_eps)
        d_query, d_kv = n_heads * self.d_head, self.n_kv_heads * self.d_head
        self.query = Linear(d_in=d_model, d_out=d_query, bias=bias)
        self.key = Linear(d_in=d_model, d_out=d_kv, bias=bias)
        self.value = Linear(d_in=d_model, d_out=d_kv, bias=bias)
        self.output = Linear(d_in=d_query, d_out=d_model, bias=bias if output_bias is None else output_bias)
        self.query_norm = RMSNorm(d_model=self.d_head, eps=qk_eps) if qk_norm else nn.Identity()
        self.key_norm = RMSNorm(d_model=self.d_head, eps=qk_eps) if qk_norm else nn.Identity()
        self.sinks = nn.Parameter(torch.zeros(n_heads)) if sinks else None
        # The first layer has nothing to mix in. Half and half, as in the paper, is where the others start.
        self.value_mix = nn.Parameter(torch.full((1,), 0.5)) if value_residual and layer > 0 else None

    def _check(self, qk_eps: float) -> None:
        n_heads, n_kv_heads, window, cap = self.n_heads, self.n_kv_heads, self.window, self.score_cap
        for name, value, right, expected in (
            (
                "n_kv_heads",
                n_kv_heads,
                n_kv_heads > 0 and not n_heads % n_kv_heads,
                f"a divisor of n_heads = {n_heads}",
            ),
            ("window", window, window is None or window > 0, "at least 1, or none for the whole context"),
            ("window_keeps", self.window_keeps, self.window_keeps >= 0, "at least 0"),
            ("window_keeps", self.window_keeps, not self.window_keeps or window is not None, "0 without a window"),
            ("qk_eps", qk_eps, qk_eps > 0, "a positive number"),
            ("score_cap", cap, cap is None or cap > 0, "a positive number, or none"),
            ("scale", self.scale, self.scale is None or self.scale > 0, "a positive number, or none for d_head^-0.5"),
            ("dropout", self.dropout, 0 <= self.dropout < 1, "a share from 0 to less than 1"),
        ):
            if not right:
                raise SettingError(name, value, expected)

    @property
    def d_rotated(self) -> int:
        """The width of the heads that a position rotates."""
        return self.d_head

    def forward(self, x_BTD: Tensor, position: Position, flow: Flow, cache: LayerCache | None = None) -> Tensor:
        B, T, _ = x_BTD.shape
        x_BTD = as_multiplied(x_BTD)
        q_BTE, k_BTE, v_BTE = maps_of(x_BTD, self.query, self.key, self.value)
        q_BTHK = position.rotate(self.query_norm(q_BTE.view(B, T, self.n_heads, self.d_head)), flow)
        k_BTGK = position.rotate(self.key_norm(k_BTE.view(B, T, self.n_kv_heads, self.d_head)), flow)
        v_BTGK = self._mixed(v_BTE.view(B, T, self.n_kv_heads, self.d_head), flow)
        if cache is None:
            return self.output(self._gathered(position, flow, None, q_BTHK, k_BTGK, v_BTGK))
        return self.output(cache.through(partial(self._gathered, position), flow, q_BTHK, k_BTGK, v_BTGK))

    def _gathered(
        self,
        position: Position,
        flow: Flow,
        cache: LayerCache | None,
        q_BTHK: Tensor,
        k_BTGK: Tensor,
        v_BTGK: Tensor,
    ) -> Tensor:
        """What the heads gather, side by side, (B, T, H K); a cache has the tokens before, and takes these."""
        k_BGSK, v_BGSK = k_BTGK.transpose(1, 2), v_BTGK.transpose(1, 2)
        if cache is not None:
            k_BGSK, v_BGSK = cache.append(k_BGSK, v_BGSK)
        y_BHTK = attention(
            q_BTHK.transpose(1, 2),
            k_BGSK,
            v_BGSK,
            window=self.window,
            window_keeps=self.window_keeps,
            bias_HTS=position.bias(flow, k_BGSK.shape[2]),
            share_dropped=self.dropout if self.training else 0.0,
            scale=self.scale,
            score_cap=self.score_cap,
            sinks_H=self.sinks,
            documents_BS=flow.documents_BT,
        )
        return y_BHTK.transpose(1, 2).flatten(2)

    def _mixed(self, v_BTGK: Tensor, flow: Flow) -> Tensor:
        """The values with those of the first layer in them, if they are wanted."""
        if self.layer == 0:
            flow.first_value_BTGK = v_BTGK
        if self.value_mix is None:
            return v_BTGK
        first_BTGK = flow.first_value_BTGK
        if first_BTGK is None or first_BTGK.shape != v_BTGK.shape:
            found = "none" if first_BTGK is None else f"{first_BTGK.shape[2]} heads of width {first_BTGK.shape[3]}"
            expected = f"a first layer with {self.n_kv_heads} value heads of width {self.d_head}, found {found}"
            raise SettingError("value_residual", True, expected)
        return torch.lerp(v_BTGK, first_BTGK, self.value_mix.to(v_BTGK.dtype))

    def new_cache(self, batch_size: int, length: int, dtype: torch.dtype, device: torch.device) -> LayerCache:
        return LayerCache(
            batch_size=batch_size,
            n_kv_heads=self.n_kv_heads,
            length=length,
            d_key=self.d_head,
            d_value=self.d_head,
            dtype=dtype,
            device=device,
        )


ATTENTIONS = {"gqa": GroupedQueryAttention, "mla": MultiHeadLatentAttention}
