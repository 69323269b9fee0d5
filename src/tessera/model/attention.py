"""Attention layers: each token gathers from those before it.

One class covers multi-head (n_kv_heads = n_heads), grouped-query (fewer) and multi-query (1) attention (Ainslie et al.
2023, "GQA"), each with a sliding window if wanted (Beltagy et al. 2020, Longformer; Mistral 7B).
"""

import torch
from torch import Tensor, nn

from tessera.errors import SettingError
from tessera.model.cache import LayerCache
from tessera.model.linear import Linear
from tessera.model.norm import RMSNorm
from tessera.model.position import Position
from tessera.ops.attention import attention


class GroupedQueryAttention(nn.Module):
    """Causal self-attention with `n_kv_heads` key and value heads, each shared by n_heads / n_kv_heads query heads.

    `window`: how many tokens one sees, itself included; all if None. `qk_norm`: an RMSNorm on each query and key head
    before the rotation, which bounds the scores (Henry et al. 2020; Qwen 3). `dropout` falls on the attention weights.
    """

    def __init__(
        self,
        *,
        d_model: int,
        n_heads: int,
        n_kv_heads: int | None = None,
        window: int | None = None,
        qk_norm: bool = False,
        dropout: float = 0.0,
        bias: bool = False,
    ) -> None:
        super().__init__()
        n_kv_heads = n_heads if n_kv_heads is None else n_kv_heads
        if d_model % n_heads:
            raise SettingError("d_model", d_model, f"a multiple of n_heads = {n_heads}")
        if n_kv_heads < 1 or n_heads % n_kv_heads:
            raise SettingError("n_kv_heads", n_kv_heads, f"a divisor of n_heads = {n_heads}")
        if window is not None and window < 1:
            raise SettingError("window", window, "at least 1, or none for the whole context")
        self.n_heads, self.n_kv_heads, self.d_head = n_heads, n_kv_heads, d_model // n_heads
        self.window, self.dropout = window, dropout
        d_kv = n_kv_heads * self.d_head
        self.query = Linear(d_in=d_model, d_out=d_model, bias=bias)
        self.key = Linear(d_in=d_model, d_out=d_kv, bias=bias)
        self.value = Linear(d_in=d_model, d_out=d_kv, bias=bias)
        self.output = Linear(d_in=d_model, d_out=d_model, bias=bias)
        self.query_norm = RMSNorm(d_model=self.d_head) if qk_norm else nn.Identity()
        self.key_norm = RMSNorm(d_model=self.d_head) if qk_norm else nn.Identity()

    def forward(self, x_BTD: Tensor, position: Position, cache: LayerCache | None = None) -> Tensor:
        B, T, _ = x_BTD.shape
        start = 0 if cache is None else cache.length
        q_BTHK = position.rotate(self.query_norm(self.query(x_BTD).view(B, T, self.n_heads, self.d_head)), start)
        k_BTGK = position.rotate(self.key_norm(self.key(x_BTD).view(B, T, self.n_kv_heads, self.d_head)), start)
        v_BTGK = self.value(x_BTD).view(B, T, self.n_kv_heads, self.d_head)
        k_BGSK, v_BGSK = k_BTGK.transpose(1, 2), v_BTGK.transpose(1, 2)
        if cache is not None:
            k_BGSK, v_BGSK = cache.append(k_BGSK, v_BGSK)
        y_BHTK = attention(
            q_BTHK.transpose(1, 2),
            k_BGSK,
            v_BGSK,
            window=self.window,
            bias_HTS=position.bias(T, start + T),
            share_dropped=self.dropout if self.training else 0.0,
        )
        return self.output(y_BHTK.transpose(1, 2).reshape(B, T, -1))

    def new_cache(self, batch_size: int, length: int, dtype: torch.dtype, device: torch.device) -> LayerCache:
        return LayerCache(
            batch_size=batch_size,
            n_kv_heads=self.n_kv_heads,
            length=length,
            d_head=self.d_head,
            dtype=dtype,
            device=device,
        )


ATTENTIONS = {"gqa": GroupedQueryAttention}
