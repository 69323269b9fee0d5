"""Multi-head latent attention: keys and values of all heads from one short vector a token (DeepSeek-V2, section 2.1).

    x -> latent -> norm -> key_up   -> the keys of each head, without position    [nope]
                        -> value_up -> the values of each head
    x -> rotated_key    -> rotate   -> one more part of the key, for all heads    [rope]

A rotation between latent and key would keep the two maps from being merged, so position is carried by a part of its
own. The cache holds the latent and the rotated key only, d_latent + d_rope numbers a token for any number of heads.

The same numbers come out in two ways. Expanded: make keys and values from the latents and attend as ever; cheapest for
many queries. Absorbed: q . (W_up c) = (W_up^T q) . c, so the queries are mapped to the latents instead, where every
head attends to the same rows (as in multi-query attention), and what it gathers is mapped to values afterwards;
cheapest for a few queries and a long past, because no cached row is expanded.
"""

from functools import partial

import torch
from torch import Tensor, nn

from tessera.errors import SettingError
from tessera.model.cache import LayerCache
from tessera.model.flow import Flow
from tessera.model.linear import Linear
from tessera.model.norm import RMSNorm
from tessera.model.position import Position
from tessera.ops.attention import attention
from tessera.ops.autocast import as_multiplied


def latent_widths(d_head: int) -> dict[str, int]:
    """The widths that are not said, in DeepSeek-V2's proportions."""
    return {"d_latent": 4 * d_head, "d_rope": max(2, d_head // 4 * 2), "d_nope": d_head, "d_value": d_head}


class MultiHeadLatentAttention(nn.Module):
    """Causal self-attention over a latent of `d_latent` numbers a token.

    A head's queries and keys are `d_nope` numbers wide, and `d_rope` more that positions rotate; its values are
    `d_value`. What is not said is in DeepSeek-V2's proportions: d_nope = d_value = d_head, d_rope = d_head / 2,
    d_latent = 4 d_head. `d_query_latent`: queries come through a normed vector of this width, straight from x if None.
    `scale` is (d_nope + d_rope)^-0.5 if None. `bias` is on all maps from and to the stream, but not on those from the
    latents, nor on queries that come straight from x, as in the original. `dropout` falls on the attention weights.
    """

    def __init__(
        self,
        *,
        d_model: int,
        n_heads: int,
        d_head: int | None = None,
        d_latent: int | None = None,
        d_query_latent: int | None = None,
        d_rope: int | None = None,
        d_nope: int | None = None,
        d_value: int | None = None,
        eps: float = 1e-6,
        scale: float | None = None,
        dropout: float = 0.0,
        bias: bool = False,
    ) -> None:
        super().__init__()
        if d_head is None and d_model % n_heads:
            raise SettingError("d_model", d_model, f"a multiple of n_heads = {n_heads}, or d_head said")
        d_head = d_model // n_heads if d_head is None else d_head
        self.n_heads, self.dropout, self.d_query_latent = n_heads, dropout, d_query_latent
        usual = latent_widths(d_head)
        self.d_latent = usual["d_latent"] if d_latent is None else d_latent
        self.d_nope = usual["d_nope"] if d_nope is None else d_nope
        self.d_rope = usual["d_rope"] if d_rope is None else d_rope
        self.d_value = usual["d_value"] if d_value is None else d_value
        self._check(scale)
        d_query = self.d_nope + self.d_rope
        self.scale = d_query**-0.5 if scale is None else scale
        if d_query_latent is not None:
            self.query_latent = Linear(d_in=d_model, d_out=d_query_latent, bias=bias)
            self.query_latent_norm = RMSNorm(d_model=d_query_latent, eps=eps)
        self.query = Linear(d_in=d_query_latent or d_model, d_out=n_heads * d_query, bias=False)
        self.latent = Linear(d_in=d_model, d_out=self.d_latent, bias=bias)
        self.latent_norm = RMSNorm(d_model=self.d_latent, eps=eps)
        self.rotated_key = Linear(d_in=d_model, d_out=self.d_rope, bias=bias)
        self.key_up = Linear(d_in=self.d_latent, d_out=n_heads * self.d_nope, bias=False)
        self.value_up = Linear(d_in=self.d_latent, d_out=n_heads * self.d_value, bias=False)
        self.output = Linear(d_in=n_heads * self.d_value, d_out=d_model, bias=bias)

    def _check(self, scale: float | None) -> None:
        for name in ("d_latent", "d_query_latent", "d_rope", "d_nope", "d_value"):
            width = getattr(self, name)
            if width is not None and width < 1:
                raise SettingError(name, width, "at least 1")
        if scale is not None and scale <= 0:
            raise SettingError("scale", scale, "a positive number, or none for (d_nope + d_rope)^-0.5")
        if not 0 <= self.dropout < 1:
            raise SettingError("dropout", self.dropout, "a share from 0 to less than 1")

    @property
    def d_rotated(self) -> int:
        """The width of the heads that a position rotates."""
        return self.d_rope

    def forward(self, x_BTD: Tensor, position: Position, flow: Flow, cache: LayerCache | None = None) -> Tensor:
        B, T, _ = x_BTD.shape
        x_BTD = as_multiplied(x_BTD)
        q_BTHK = self.query(self._query_input(x_BTD)).view(B, T, self.n_heads, self.d_nope + self.d_rope)
        nope_BTHN, rope_BTHR = q_BTHK.split((self.d_nope, self.d_rope), dim=-1)
        rope_BTHR = position.rotate(rope_BTHR, flow)
        latent_BTL = self.latent_norm(self.latent(x_BTD))
        key_BTR = position.rotate(self.rotated_key(x_BTD).view(B, T, 1, self.d_rope), flow).squeeze(2)
        parts = (nope_BTHN, rope_BTHR, latent_BTL, key_BTR)
        if cache is None:
            return self.output(self._expanded(*parts, position, flow))
        return self.output(cache.through(partial(self._cached, position), flow, *parts))

    def _cached(
        self,
        position: Position,
        flow: Flow,
        cache: LayerCache,
        nope_BTHN: Tensor,
        rope_BTHR: Tensor,
        latent_BTL: Tensor,
        key_BTR: Tensor,
    ) -> Tensor:
        """What the heads gather from the cache, these tokens added to it."""
        T = latent_BTL.shape[1]
        rows_BTJ = torch.cat((latent_BTL, key_BTR), dim=-1)
        rows_BSJ = cache.append(rows_BTJ[:, None], rows_BTJ[:, None, :, :0])[0].squeeze(1)
        if self._absorbs(T, rows_BSJ.shape[1]):
            return self._absorbed(nope_BTHN, rope_BTHR, rows_BSJ, position, flow)
        latent_BSL, key_BSR = rows_BSJ.split((self.d_latent, self.d_rope), dim=-1)
        return self._expanded(nope_BTHN, rope_BTHR, latent_BSL, key_BSR, position, flow)

    def _query_input(self, x_BTD: Tensor) -> Tensor:
        return x_BTD if self.d_query_latent is None else self.query_latent_norm(self.query_latent(x_BTD))

    def _absorbs(self, n_queries: int, n_keys: int) -> bool:
        """Whether the absorbed way takes fewer multiplications; both are counted for one head."""
        each = self.d_latent * (self.d_nope + self.d_value)  # to expand a key, or to map a query there and back
        expanded = n_keys * each + n_queries * n_keys * (self.d_nope + self.d_rope + self.d_value)
        absorbed = n_queries * each + n_queries * n_keys * (2 * self.d_latent + self.d_rope)
        return absorbed < expanded

    def _expanded(
        self,
        nope_BTHN: Tensor,
        rope_BTHR: Tensor,
        latent_BSL: Tensor,
        key_BSR: Tensor,
        position: Position,
        flow: Flow,
    ) -> Tensor:
        """Each head with keys and values of its own."""
        B, S, H = *latent_BSL.shape[:2], self.n_heads
        key_BSHR = key_BSR[:, :, None].expand(B, S, H, self.d_rope)
        k_BSHK = torch.cat((self.key_up(latent_BSL).view(B, S, H, self.d_nope), key_BSHR), dim=-1)
        v_BSHV = self.value_up(latent_BSL).view(B, S, H, self.d_value)
        q_BTHK = torch.cat((nope_BTHN, rope_BTHR), dim=-1)
        y_BHTV = self._attend(q_BTHK, k_BSHK.transpose(1, 2), v_BSHV.transpose(1, 2), position, flow)
        return y_BHTV.transpose(1, 2).flatten(2)

    def _absorbed(
        self, nope_BTHN: Tensor, rope_BTHR: Tensor, rows_BSJ: Tensor, position: Position, flow: Flow
    ) -> Tensor:
        """All heads with the same keys, the rows of the cache, whose latent part is what they gather."""
        up_HNL = self.key_up.weight.view(self.n_heads, self.d_nope, self.d_latent)
        down_HVL = self.value_up.weight.view(self.n_heads, self.d_value, self.d_latent)
        q_BTHJ = torch.cat((torch.einsum("bthn,hnl->bthl", nope_BTHN, up_HNL), rope_BTHR), dim=-1)
        rows_B1SJ = rows_BSJ[:, None]
        y_BHTL = self._attend(q_BTHJ, rows_B1SJ, rows_B1SJ[..., : self.d_latent], position, flow)
        return torch.einsum("bhtl,hvl->bthv", y_BHTL, down_HVL).flatten(2)

    def _attend(self, q_BTHK: Tensor, k_BGSK: Tensor, v_BGSV: Tensor, position: Position, flow: Flow) -> Tensor:
        return attention(
            q_BTHK.transpose(1, 2),
            k_BGSK,
            v_BGSV,
            bias_HTS=position.bias(flow, k_BGSK.shape[2]),
            share_dropped=self.dropout if self.training else 0.0,
            scale=self.scale,
            documents_BS=flow.documents_BT,
        )

    def new_cache(self, batch_size: int, length: int, dtype: torch.dtype, device: torch.device) -> LayerCache:
        """One row a token, the latent and the rotated key side by side: the latent is key and value at once."""
        return LayerCache(
            batch_size=batch_size,
            n_kv_heads=1,
            length=length,
            d_key=self.d_latent + self.d_rope,
            d_value=0,
            dtype=dtype,
            device=device,
        )
