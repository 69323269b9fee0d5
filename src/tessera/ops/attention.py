"""Scaled dot-product attention: the plain formula, and PyTorch's fused kernel where it computes the same.

softmax(q k^T / sqrt(K) + bias) v, causal (Vaswani et al. 2017, eq. 1). The queries are the last T of S positions, so
the same function serves training (T = S) and cached generation (T < S). Fewer key heads than query heads is
grouped-query attention (Ainslie et al. 2023): query head h reads key head h // (H / G).

    H = 8 query heads    0 1 2 3 4 5 6 7        G = 8: multi-head        G = 2: grouped        G = 1: multi-query
    G = 2 key heads      0 0 0 0 1 1 1 1
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from tessera.ops.dropout import dropout
from tessera.ops.softmax import softmax


def visible(n_queries: int, n_keys: int, window: int | None = None, device: torch.device | None = None) -> Tensor:
    """Which keys a query sees, (T, S) of bool: itself and what came before, at most `window` keys in all."""
    queries_T1 = torch.arange(n_keys - n_queries, n_keys, device=device)[:, None]
    keys_S = torch.arange(n_keys, device=device)
    seen_TS = keys_S <= queries_T1
    return seen_TS if window is None else seen_TS & (keys_S > queries_T1 - window)


def plain_attention(
    q_BHTK: Tensor,
    k_BGSK: Tensor,
    v_BGSK: Tensor,
    *,
    window: int | None = None,
    bias_HTS: Tensor | None = None,
    share_dropped: float = 0.0,
) -> Tensor:
    """The formula as it is written: holds all T x S scores. The reference for `attention`, and its fallback."""
    B, H, T, K = q_BHTK.shape
    G, S = k_BGSK.shape[1:3]
    q_BGRTK = q_BHTK.reshape(B, G, H // G, T, K)
    scores_BGRTS = q_BGRTK @ k_BGSK[:, :, None].transpose(-1, -2) * K**-0.5
    if bias_HTS is not None:
        scores_BGRTS = scores_BGRTS + bias_HTS.view(G, H // G, T, S)
    scores_BGRTS = scores_BGRTS.masked_fill(~visible(T, S, window, q_BHTK.device), float("-inf"))
    weights_BGRTS = dropout(softmax(scores_BGRTS), share_dropped)
    return (weights_BGRTS @ v_BGSK[:, :, None]).view(B, H, T, K)


def fused_attention(
    q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, *, window: int | None = None, bias_HTS: Tensor | None = None
) -> Tensor:
    """The same without dropout, through `scaled_dot_product_attention`; no mask is made where none is needed."""
    B, H, T, K = q_BHTK.shape
    G, S = k_BGSK.shape[1:3]
    window = None if window is None or window >= S else window
    if T == 1 and bias_HTS is None:
        if window is not None:
            k_BGSK, v_BGSK = k_BGSK[:, :, -window:], v_BGSK[:, :, -window:]
        # One query sees every key, so the query heads of a group can stand as its rows: no key is repeated.
        q_BGRK = q_BHTK.reshape(B, G, H // G, K)
        return F.scaled_dot_product_attention(q_BGRK, k_BGSK, v_BGSK).view(B, H, 1, K)
    if T == S and window is None and bias_HTS is None:
        return F.scaled_dot_product_attention(q_BHTK, k_BGSK, v_BGSK, is_causal=True, enable_gqa=G < H)
    mask = visible(T, S, window, q_BHTK.device)
    if bias_HTS is not None:
        mask = bias_HTS.masked_fill(~mask, float("-inf"))
    return F.scaled_dot_product_attention(q_BHTK, k_BGSK, v_BGSK, attn_mask=mask, enable_gqa=G < H)


def attention(
    q_BHTK: Tensor,
    k_BGSK: Tensor,
    v_BGSK: Tensor,
    *,
    window: int | None = None,
    bias_HTS: Tensor | None = None,
    share_dropped: float = 0.0,
) -> Tensor:
    """Fused, unless weights are dropped: PyTorch has no fused kernel for that on a CPU, and would draw its own mask."""
    if share_dropped > 0.0:
        return plain_attention(q_BHTK, k_BGSK, v_BGSK, window=window, bias_HTS=bias_HTS, share_dropped=share_dropped)
    return fused_attention(q_BHTK, k_BGSK, v_BGSK, window=window, bias_HTS=bias_HTS)
