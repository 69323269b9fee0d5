"""Attention by its formula, a block of queries at a time: for what no fused kernel computes.

A cap on the scores (Gemma 2), a bias that is learned (T5) and dropout of the weights. No more than a block's scores are
ever held: the backward pass makes them again from the log-sums of the rows that the forward pass kept (Dao et al. 2022,
"FlashAttention", section 3.1 and, for what is dropped, algorithm 4 of its appendix, without its kernel).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tessera.ops.attention_sight import Sight
from tessera.ops.dropout import keep, scale_of, scaled

BLOCK_BYTES = {"cpu": 6 * 2**20}
"""How large the scores of a block are, so that they stay near the processor ..."""
BLOCK_BYTES_ELSEWHERE = 16 * 2**20
BLOCK_ROWS = 16
"""... but never fewer rows than this."""


def formula_attention(
    q_BHTK: Tensor,
    k_BGSK: Tensor,
    v_BGSK: Tensor,
    sight: Sight,
    *,
    bias_HTS: Tensor | None,
    scale: float,
    score_cap: float | None,
    sinks_H: Tensor | None,
    share_dropped: float = 0.0,
    block: int | None = None,
) -> Tensor:
    """All there is, with every gradient; `block` is how many queries are done at once."""
    if block is None:
        B, H = q_BHTK.shape[:2]
        size = BLOCK_BYTES.get(q_BHTK.device.type, BLOCK_BYTES_ELSEWHERE)
        block = max(BLOCK_ROWS, size // (4 * B * H * sight.n_keys))
    dropped = _Dropped.drawn(share_dropped) if share_dropped else None
    return _Formula.apply(q_BHTK, k_BGSK, v_BGSK, bias_HTS, sinks_H, sight, scale, score_cap, dropped, block)


@dataclass(frozen=True)
class _Dropped:
    """Which weights are dropped: a seed, from which each block's are drawn again where they are needed."""

    share: float
    seed: int

    @classmethod
    def drawn(cls, share: float) -> "_Dropped":
        return cls(share, int(torch.empty((), dtype=torch.int64).random_()))

    def __call__(self, weights: Tensor, rows: slice) -> Tensor:
        """The weights of the queries `rows` without those that are dropped, the others scaled up."""
        generator = torch.Generator(weights.device).manual_seed((self.seed + rows.start) % 2**63)
        if weights.device.type == "cpu":
            return scaled(weights, keep(weights.shape, self.share, generator), scale_of(self.share))
        kept = torch.empty_like(weights).bernoulli_(1 - self.share, generator=generator)
        return kept.mul_(weights).div_(1 - self.share)


class _Formula(torch.autograd.Function):
    """With P = softmax(s), y = P v and D = sum(dy y): ds = P (dy v^T - D), dv = P^T dy, dsink = -sum(P_sink D).

    s = c tanh(u / c) + bias and u = scale q k^T: du = ds (1 - tanh^2). Where weights are dropped, by M = 0 or a scale,
    y = (P M) v: ds = P (M (dy v^T) - D), dv = (P M)^T dy, and D is as it was.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q_BHTK: Tensor,
        k_BGSK: Tensor,
        v_BGSK: Tensor,
        bias_HTS: Tensor | None,
        sinks_H: Tensor | None,
        sight: Sight,
        scale: float,
        score_cap: float | None,
        dropped: _Dropped | None,
        block: int,
    ) -> Tensor:
        B, H, T, _ = q_BHTK.shape
        G = k_BGSK.shape[1]
        wide = torch.promote_types(q_BHTK.dtype, torch.float32)
        y_BGRTV = q_BHTK.new_empty(B, G, H // G, T, v_BGSK.shape[-1])
        sums_BGRT1 = q_BHTK.new_empty(B, G, H // G, T, 1, dtype=wide)
        ctx.sight, ctx.scale, ctx.score_cap, ctx.dropped, ctx.block = sight, scale, score_cap, dropped, block
        for rows in _blocks(T, block):
            columns = slice(_first(sight, rows), sight.start + rows.stop)
            scores, _ = _scores(q_BHTK, k_BGSK, bias_HTS, sight, scale, score_cap, rows, columns)
            sums_BGRT1[..., rows, :] = _log_sum(scores, sinks_H)
            weights = scores.sub_(sums_BGRT1[..., rows, :]).exp_()
            weights = weights if dropped is None else dropped(weights, rows)
            y_BGRTV[..., rows, :] = _times(weights.to(v_BGSK.dtype), v_BGSK[:, :, columns])
        y_BHTV = y_BGRTV.view(B, H, T, -1)
        ctx.save_for_backward(q_BHTK, k_BGSK, v_BGSK, bias_HTS, sinks_H, y_BHTV, sums_BGRT1)
        return y_BHTV

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BHTV: Tensor) -> tuple[Tensor | None, ...]:
        q_BHTK, k_BGSK, v_BGSK, bias_HTS, sinks_H, y_BHTV, sums_BGRT1 = ctx.saved_tensors
        sight, scale, score_cap, dropped = ctx.sight, ctx.scale, ctx.score_cap, ctx.dropped
        wide = sums_BGRT1.dtype
        B, G, R, T, _ = sums_BGRT1.shape
        grad = grad_BHTV.reshape(B, G, R, T, -1)
        shares_BGRT1 = (grad * y_BHTV.view_as(grad)).sum(dim=-1, keepdim=True, dtype=wide)
        grad_q = torch.empty_like(q_BHTK, memory_format=torch.contiguous_format)
        grad_k, grad_v = torch.zeros_like(k_BGSK, dtype=wide), torch.zeros_like(v_BGSK, dtype=wide)
        grad_bias = torch.zeros_like(bias_HTS, dtype=wide) if ctx.needs_input_grad[3] else None
        for rows in _blocks(T, ctx.block):
            columns = slice(_first(sight, rows), sight.start + rows.stop)
            scores, slope = _scores(q_BHTK, k_BGSK, bias_HTS, sight, scale, score_cap, rows, columns)
            weights = scores.sub_(sums_BGRT1[..., rows, :]).exp_()
            grad_rows = grad[..., rows, :]
            used = weights if dropped is None else dropped(weights, rows)
            grad_v[:, :, columns] += _transposed_times(used.to(grad.dtype), grad_rows)
            grad_scores = _times(grad_rows, v_BGSK[:, :, columns].transpose(-1, -2)).to(wide)
            grad_scores = grad_scores if dropped is None else dropped(grad_scores, rows)
            grad_scores = grad_scores.sub_(shares_BGRT1[..., rows, :]).mul_(weights)
            if grad_bias is not None:
                grad_bias[:, rows, columns] += grad_scores.sum(dim=0).flatten(0, 1)
            if slope is not None:
                grad_scores.mul_(slope)
            grad_scores = grad_scores.mul_(scale).to(q_BHTK.dtype)
            grad_q.view(B, G, R, T, -1)[..., rows, :] = _times(grad_scores, k_BGSK[:, :, columns])
            q_rows = q_BHTK[:, :, rows].reshape(B, G, R, -1, q_BHTK.shape[-1])
            grad_k[:, :, columns] += _transposed_times(grad_scores, q_rows)
        grad_sinks = None
        if ctx.needs_input_grad[4]:
            weights = (sinks_H.view(G, R, 1, 1) - sums_BGRT1).exp_()
            grad_sinks = -(weights * shares_BGRT1).sum(dim=(0, 3, 4)).flatten().to(sinks_H.dtype)
        grad_bias = None if grad_bias is None else grad_bias.to(bias_HTS.dtype)
        return grad_q, grad_k.to(k_BGSK.dtype), grad_v.to(v_BGSK.dtype), grad_bias, grad_sinks, *(None,) * 5


def _blocks(n_rows: int, block: int) -> list[slice]:
    return [slice(start, min(start + block, n_rows)) for start in range(0, n_rows, block)]


def _first(sight: Sight, rows: slice) -> int:
    """Keys that a window keeps are far from the others: then all are taken, and what is not seen is masked."""
    return 0 if sight.window is not None and sight.window_keeps else sight.first_seen(rows)


def _scores(
    q_BHTK: Tensor,
    k_BGSK: Tensor,
    bias_HTS: Tensor | None,
    sight: Sight,
    scale: float,
    score_cap: float | None,
    rows: slice,
    columns: slice,
) -> tuple[Tensor, Tensor | None]:
    """The scores of some queries and keys, -inf where not seen, (B, G, R, t, s); and the slope of the cap."""
    B, H, _, K = q_BHTK.shape
    G = k_BGSK.shape[1]
    q_BGRtK = q_BHTK[:, :, rows].reshape(B, G, H // G, -1, K)
    scores = _times(q_BGRtK, k_BGSK[:, :, columns].transpose(-1, -2))
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)).mul_(scale)
    slope = None
    if score_cap is not None:
        scores.div_(score_cap).tanh_()
        slope = scores.square().neg_().add_(1)
        scores.mul_(score_cap)
    if bias_HTS is not None:
        scores += bias_HTS[:, rows, columns].view(G, H // G, *scores.shape[-2:])
    places = torch.arange(columns.start, columns.stop, device=q_BHTK.device)
    seen = sight.mask(rows, places)
    return scores.masked_fill_(~(seen if seen.ndim == 2 else seen[:, None]), float("-inf")), slope


def _log_sum(scores: Tensor, sinks_H: Tensor | None) -> Tensor:
    sums = scores.logsumexp(dim=-1, keepdim=True)
    if sinks_H is None:
        return sums
    return torch.logaddexp(sums, sinks_H.view(*scores.shape[1:3], 1, 1).to(sums.dtype))


def _times(a_BGRtX: Tensor, b_BGXY: Tensor) -> Tensor:
    """Each group's rows of all its heads in one product."""
    B, G, R, T, _ = a_BGRtX.shape
    return (a_BGRtX.reshape(B, G, R * T, -1) @ b_BGXY).view(B, G, R, T, -1)


def _transposed_times(a_BGRtX: Tensor, b_BGRtY: Tensor) -> Tensor:
    """The sum over a group's heads and rows of a^T b."""
    B, G, R, T, _ = a_BGRtX.shape
    return a_BGRtX.reshape(B, G, R * T, -1).transpose(-1, -2) @ b_BGRtY.reshape(B, G, R * T, -1)
