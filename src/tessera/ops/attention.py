"""Scaled dot-product attention: one function, and behind it the fastest way that computes the same.

The formula is in `attention_plain.py`. Fewer key heads than query heads is grouped-query attention (Ainslie et al.
2023): query head h reads key head h // (H / G).

    H = 8 query heads    0 1 2 3 4 5 6 7        G = 8: multi-head        G = 2: grouped        G = 1: multi-query
    G = 2 key heads      0 0 0 0 1 1 1 1
"""

from torch import Tensor

from tessera.ops.attention_flex import flex_serves, flexible_attention
from tessera.ops.attention_formula import formula_attention
from tessera.ops.attention_fused import fused_attention, one_query
from tessera.ops.attention_plain import check_scores, sight_of
from tessera.ops.autocast import as_multiplied


def attention(
    q_BHTK: Tensor,
    k_BGSK: Tensor,
    v_BGSK: Tensor,
    *,
    window: int | None = None,
    window_keeps: int = 0,
    bias_HTS: Tensor | None = None,
    share_dropped: float = 0.0,
    scale: float | None = None,
    score_cap: float | None = None,
    sinks_H: Tensor | None = None,
    documents_BS: Tensor | None = None,
) -> Tensor:
    """softmax(cap(scale q k^T) + bias) v over what each query sees: (B, H, T, width of the values).

    The queries are the last T of S positions and see no later key. Of the earlier ones `window` lets them see the
    nearest (itself included) and the first `window_keeps`, `documents_BS` those of the query's own document (a number
    for each key; those of the queries are the last T). `scale` is K^-0.5 if None. `score_cap` c: scores are
    c tanh(score / c), before the bias. `sinks_H`: one more score a head in the softmax's denominator, with no value.
    `share_dropped` of the weights are dropped. An `InputError` for shapes that do not fit and, on a CPU, for a
    bias that hides a token from itself.
    """
    scale = q_BHTK.shape[-1] ** -0.5 if scale is None else scale
    q_BHTK, k_BGSK, v_BGSK = (as_multiplied(x) for x in (q_BHTK, k_BGSK, v_BGSK))
    sight = sight_of(q_BHTK, k_BGSK, v_BGSK, window, window_keeps, documents_BS)
    check_scores(q_BHTK, k_BGSK, bias_HTS, score_cap, sinks_H)
    if share_dropped > 0.0:
        return formula_attention(
            q_BHTK,
            k_BGSK,
            v_BGSK,
            sight,
            bias_HTS=bias_HTS,
            scale=scale,
            score_cap=score_cap,
            sinks_H=sinks_H,
            share_dropped=share_dropped,
        )
    if sight.n_queries == 1:
        return one_query(
            q_BHTK, k_BGSK, v_BGSK, sight, bias_H1S=bias_HTS, scale=scale, score_cap=score_cap, sinks_H=sinks_H
        )
    if flex_serves(q_BHTK, v_BGSK, sight, score_cap, sinks_H, bias_HTS):
        return flexible_attention(q_BHTK, k_BGSK, v_BGSK, sight, scale=scale, score_cap=score_cap, sinks_H=sinks_H)
    if score_cap is not None or (bias_HTS is not None and bias_HTS.requires_grad):
        return formula_attention(
            q_BHTK, k_BGSK, v_BGSK, sight, bias_HTS=bias_HTS, scale=scale, score_cap=score_cap, sinks_H=sinks_H
        )
    return fused_attention(q_BHTK, k_BGSK, v_BGSK, sight, bias_HTS=bias_HTS, scale=scale, sinks_H=sinks_H)
