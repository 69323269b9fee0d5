"""Scaled dot-product attention as it is written: the reference of every faster way, and their fallback.

softmax(cap(scale q k^T) + bias) v over the keys that a query may see (Vaswani et al. 2017, eq. 1). The queries are the
last T of S positions, so the same function serves training (T = S) and cached generation (T < S). A query always sees
itself: no row of the softmax is empty.
"""

import torch
from torch import Tensor

from tessera.errors import InputError
from tessera.ops.attention_sight import Sight
from tessera.ops.dropout import dropout


def plain_attention(
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
    """The formula, all T x S scores at once; the arguments are those of `attention.attention`."""
    sight = sight_of(q_BHTK, k_BGSK, v_BGSK, window, window_keeps, documents_BS)
    check_scores(q_BHTK, k_BGSK, bias_HTS, score_cap, sinks_H)
    B, H, T, K = q_BHTK.shape
    G, S = k_BGSK.shape[1:3]
    q_BGRTK = q_BHTK.reshape(B, G, H // G, T, K) * (K**-0.5 if scale is None else scale)
    scores_BGRTS = q_BGRTK @ k_BGSK[:, :, None].transpose(-1, -2)
    scores_BGRTS = scores_BGRTS.to(torch.promote_types(scores_BGRTS.dtype, torch.float32))
    if score_cap is not None:
        scores_BGRTS = score_cap * torch.tanh(scores_BGRTS / score_cap)
    if bias_HTS is not None:
        scores_BGRTS = scores_BGRTS + bias_HTS.reshape(G, H // G, T, S)
    seen = sight.mask(slice(0, T), torch.arange(S, device=q_BHTK.device))
    scores_BGRTS = scores_BGRTS.masked_fill(~(seen if seen.ndim == 2 else seen[:, None]), float("-inf"))
    weights_BGRTS = dropout(_softmax(scores_BGRTS, sinks_H), share_dropped).to(v_BGSK.dtype)
    return (weights_BGRTS @ v_BGSK[:, :, None]).view(B, H, T, -1)


def _softmax(scores_BGRTS: Tensor, sinks_H: Tensor | None) -> Tensor:
    """Over the keys; a sink is one more score a head, whose share goes to nothing."""
    highest = scores_BGRTS.amax(dim=-1, keepdim=True)
    if sinks_H is None:
        powers = (scores_BGRTS - highest).exp()
        return powers / powers.sum(dim=-1, keepdim=True)
    sinks_GR11 = sinks_H.view(*scores_BGRTS.shape[1:3], 1, 1)
    highest = torch.maximum(highest, sinks_GR11)
    powers = (scores_BGRTS - highest).exp()
    return powers / (powers.sum(dim=-1, keepdim=True) + (sinks_GR11 - highest).exp())


def sight_of(
    q_BHTK: Tensor,
    k_BGSK: Tensor,
    v_BGSK: Tensor,
    window: int | None,
    window_keeps: int,
    documents_BS: Tensor | None,
) -> Sight:
    """What the queries see; an `InputError` for shapes that do not fit, and where a query would not see itself."""
    B, H, T, K = q_BHTK.shape
    G, S = k_BGSK.shape[1:3]
    if not 1 <= T <= S or H % G or k_BGSK.shape != (B, G, S, K) or v_BGSK.shape[:3] != (B, G, S):
        shapes = ", ".join(str(tuple(x.shape)) for x in (q_BHTK, k_BGSK, v_BGSK))
        raise InputError(f"queries, keys, values of shapes {shapes}: expected (B, H, T, K), (B, G, S, K), (B, G, S, .)")
    if (window is not None and window < 1) or window_keeps < 0:
        raise InputError(f"window = {window} that keeps {window_keeps}: expected at least 1, and 0 or more")
    if documents_BS is not None and documents_BS.shape != (B, S):
        raise InputError(f"documents of shape {tuple(documents_BS.shape)} for keys of {(B, S)}")
    if window is None or window >= S:
        window, window_keeps = None, 0
    return Sight(T, S, window, window_keeps, documents_BS, q_BHTK.device)


def check_scores(
    q_BHTK: Tensor, k_BGSK: Tensor, bias_HTS: Tensor | None, score_cap: float | None, sinks_H: Tensor | None
) -> None:
    """An `InputError` for what does not fit the scores or could leave a row of them empty."""
    H, T, S = *q_BHTK.shape[1:3], k_BGSK.shape[2]
    if score_cap is not None and not score_cap > 0:
        raise InputError(f"score_cap = {score_cap}: expected a number above 0")
    if sinks_H is not None and sinks_H.shape != (H,):
        raise InputError(f"sinks of shape {tuple(sinks_H.shape)} for {H} heads")
    if bias_HTS is None:
        return
    if bias_HTS.shape != (H, T, S):
        raise InputError(f"a bias of shape {tuple(bias_HTS.shape)} for scores of {(H, T, S)}")
    # A GPU would have to be waited for to know.
    if bias_HTS.device.type == "cpu" and not bool(bias_HTS.diagonal(S - T, 1, 2).isfinite().all()):
        raise InputError("the bias hides a token from itself: it may see nothing then, and its softmax is empty")
