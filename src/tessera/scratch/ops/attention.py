"""Causal attention: each token gathers from those before it (Vaswani et al. 2017, eq. 1).

For one head, with queries q_t, keys k_s and values v_s:

    s_ts = scale q_t . k_s          the scores; then the soft cap, if there is one
    p_t  = softmax(s_t + added_t)   over the keys; `added` is -inf for a key that may not be seen, and a position's bias
    y_t  = sum_s p_ts m_ts v_s      m is the mask of dropout

Backwards, each line by the rule of its own operation, two products for each product:

    dv_s  = sum_t p_ts m_ts dy_t            d(p m)_ts = dy_t . v_s, so dp_ts = m_ts dy_t . v_s
    ds_t  = softmax_backward(dp_t)          added has the same gradient as the scores below it
    dq_t  = scale sum_s ds_ts k_s           dk_s = scale sum_t ds_ts q_t

Grouped queries (Ainslie et al. 2023, "GQA"): R query heads share one head of keys and values, whose gradient is the sum
over the R. All heads and all rows of the batch are one batched product.
"""

from typing import NamedTuple

import numpy as np

from tessera.scratch.ops import softmax
from tessera.scratch.ops.cap import cap_backward, cap_forward
from tessera.scratch.ops.dropout import dropout_backward, dropout_forward
from tessera.scratch.ops.softmax import softmax_backward, softmax_forward


class Saved(NamedTuple):
    q_BGRTK: np.ndarray  # times scale
    k_BG1SK: np.ndarray
    v_BG1SK: np.ndarray
    softmax: softmax.Saved
    cap: np.ndarray | None
    mask: np.ndarray | None
    scale: float


class Gradients(NamedTuple):
    dq_BTHK: np.ndarray
    dk_BSGK: np.ndarray
    dv_BSGK: np.ndarray
    dadded_BHTS: np.ndarray
    dsinks_H: np.ndarray


def attention_forward(
    q_BTHK: np.ndarray,
    k_BSGK: np.ndarray,
    v_BSGK: np.ndarray,
    *,
    scale: float,
    added: np.ndarray | None = None,
    score_cap: float | None = None,
    sinks_H: np.ndarray | None = None,
    mask: np.ndarray | None = None,
) -> tuple[np.ndarray, Saved]:
    """What each head gathers, (B, T, H, K).

    `added` has a shape that goes with (B, H, T, S), `mask` is (B, H, T, S) of `dropout_mask`.
    """
    B, T, H, K = q_BTHK.shape
    S, G = k_BSGK.shape[1:3]
    R = H // G
    q_BGRTK = (q_BTHK * scale).reshape(B, T, G, R, K).transpose(0, 2, 3, 1, 4)
    k_BG1SK, v_BG1SK = (x.transpose(0, 2, 1, 3)[:, :, None] for x in (k_BSGK, v_BSGK))
    scores_BGRTS = q_BGRTK @ k_BG1SK.swapaxes(-1, -2)
    cap = None
    if score_cap is not None:
        scores_BGRTS, cap = cap_forward(scores_BGRTS, score_cap)
    if added is not None:
        scores_BHTS = scores_BGRTS.reshape(B, H, T, S)
        scores_BHTS += added
    sinks = -np.inf if sinks_H is None else sinks_H.reshape(G, R, 1, 1)
    p_BGRTS, saved_softmax = softmax_forward(scores_BGRTS, sinks, out=scores_BGRTS)
    mask = None if mask is None else mask.reshape(p_BGRTS.shape)
    used_BGRTS, _ = dropout_forward(p_BGRTS, mask)
    y_BGRTK = used_BGRTS @ v_BG1SK
    y_BTHK = y_BGRTK.transpose(0, 3, 1, 2, 4).reshape(B, T, H, K)
    return y_BTHK, Saved(q_BGRTK, k_BG1SK, v_BG1SK, saved_softmax, cap, mask, scale)


def attention_backward(dy_BTHK: np.ndarray, saved: Saved) -> Gradients:
    """The gradients of queries, keys, values, of what was added to the scores, and of the sinks."""
    q_BGRTK, k_BG1SK, v_BG1SK, saved_softmax, cap, mask, scale = saved
    B, G, R, T, K = q_BGRTK.shape
    dy_BGRTK = dy_BTHK.reshape(B, T, G, R, K).transpose(0, 2, 3, 1, 4)
    used_BGRTS, _ = dropout_forward(saved_softmax.p, mask)
    dv_BGRSK = used_BGRTS.swapaxes(-1, -2) @ dy_BGRTK
    dp_BGRTS = dropout_backward(dy_BGRTK @ v_BG1SK.swapaxes(-1, -2), mask)
    dadded_BGRTS, dsinks = softmax_backward(dp_BGRTS, saved_softmax)
    dscores_BGRTS = dadded_BGRTS if cap is None else cap_backward(dadded_BGRTS, cap)
    dq_BGRTK = dscores_BGRTS @ k_BG1SK
    dq_BGRTK *= scale
    dk_BGRSK = dscores_BGRTS.swapaxes(-1, -2) @ q_BGRTK
    return Gradients(
        dq_BGRTK.transpose(0, 3, 1, 2, 4).reshape(dy_BTHK.shape),
        dk_BGRSK.sum(axis=2).transpose(0, 2, 1, 3),
        dv_BGRSK.sum(axis=2).transpose(0, 2, 1, 3),
        dadded_BGRTS.reshape(B, G * R, T, -1),
        dsinks.sum(axis=(0, 3, 4)).reshape(-1),
    )


def unseen(
    n_queries: int,
    n_keys: int,
    *,
    window: int | None = None,
    window_keeps: int = 0,
    documents_BS: np.ndarray | None = None,
) -> np.ndarray | None:
    """What hides the keys that a query may not see: -inf there and 0 elsewhere, (T, S) or (B, 1, T, S); None if all are
    seen.

    The queries are the last T of S positions. A query sees itself and what came before; with `window` so many of the
    latest keys, and beside them the first `window_keeps` (of its document); with documents those of its own alone.
    """
    if n_queries == 1 and documents_BS is None and (window is None or window >= n_keys):
        return None
    queries_T1 = np.arange(n_keys - n_queries, n_keys)[:, None]
    keys_S = np.arange(n_keys)
    seen = keys_S <= queries_T1
    same = None if documents_BS is None else documents_BS[:, None, :, None] == documents_BS[:, None, None, :]
    if window is not None:
        # A key's place is the number of those before it in its document.
        places = keys_S if same is None else np.tril(same, -1).sum(axis=-1)[..., None, :]
        seen = seen & ((keys_S > queries_T1 - window) | (places < window_keeps))
    if same is not None:
        seen = seen & same[:, :, n_keys - n_queries :]
    return np.where(seen, 0.0, -np.inf)
