"""Mixture of experts: many feed-forward layers, of which each token is sent through a few (Shazeer et al. 2017).

    y = scale * sum over the chosen e of w_e expert_e(x) + shared(x)

A router scores the experts, s = softmax(W x) (Mixtral, DeepSeek-V2) or sigmoid(W x) (DeepSeek-V3); the `n_active` best
are chosen, and w are their scores, made to sum to 1 if `normalize`. Tokens are sorted by expert, so that each expert is
one product over the tokens it has: no expert is computed for a token that did not choose it. `shared` is one more layer
that all tokens go through (Dai et al. 2024, "DeepSeekMoE").

What keeps the experts evenly used: a loss on the router (Switch, eq. 4), or a bias that moves the choice and no more
(Wang et al. 2024, "Auxiliary-Loss-Free Load Balancing Strategy for Mixture-of-Experts").

N tokens (B x T), E experts, A active ones, F the inner width of an expert.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from tessera.errors import SettingError
from tessera.model.dense import FeedForward, GegluFeedForward, SwigluFeedForward
from tessera.model.flow import Flow
from tessera.model.linear import ExpertLinear, Linear
from tessera.model.plain import gated_width
from tessera.ops.gated import geglu, swiglu

Kind = Literal["swiglu", "geglu"]
GATED = {"swiglu": SwigluFeedForward, "geglu": GegluFeedForward}
ACTIVATIONS = {"swiglu": swiglu, "geglu": geglu}


def choose(
    scores_NE: Tensor, n_active: int, *, n_groups: int = 1, n_active_groups: int = 1, group_score: str = "max"
) -> Tensor:
    """The `n_active` experts with the highest scores, (N, A), the best first.

    With groups (experts that live on one machine), they come from the `n_active_groups` best groups only; a group is
    as good as its best expert ("max": DeepSeek-V2, section 2.2.2) or its two best together ("top2": DeepSeek-V3).
    """
    if n_active_groups < n_groups:
        scores_NGE = scores_NE.unflatten(1, (n_groups, -1))
        group_scores_NG = scores_NGE.topk(1 if group_score == "max" else 2, dim=-1).values.sum(dim=-1)
        groups_NA = group_scores_NG.topk(n_active_groups, dim=-1).indices
        open_NG = torch.zeros_like(group_scores_NG, dtype=torch.bool).scatter(1, groups_NA, True)
        scores_NE = scores_NGE.masked_fill(~open_NG.unsqueeze(-1), -math.inf).flatten(1)
    return scores_NE.topk(n_active, dim=-1).indices


def balance_loss(shares_E: Tensor, scores_NE: Tensor) -> Tensor:
    """E sum_e f_e P_e: f the share of the choices that fell on e, P its mean score (Fedus et al. 2021, Switch, eq. 4).

    It is 1 where all experts are used alike. The gradient goes through P alone: to choose is no smooth function.
    """
    scores_NE = scores_NE / scores_NE.sum(dim=-1, keepdim=True).clamp_min(1e-20)
    return len(shares_E) * (shares_E * scores_NE.mean(dim=0)).sum()


def router_z_loss(logits_NE: Tensor) -> Tensor:
    """mean (log sum_e exp z_e)^2: keeps the router's logits small (Zoph et al. 2022, ST-MoE, eq. 5)."""
    return logits_NE.logsumexp(dim=-1).square().mean()


def sort_by_expert(chosen_NA: Tensor, n_experts: int) -> tuple[Tensor, Tensor]:
    """The choices, numbered row by row, in the order of their experts; and how many each expert has.

    >>> sort_by_expert(torch.tensor([[2, 0], [0, 3]]), n_experts=4)
    (tensor([1, 2, 0, 3]), tensor([2, 0, 1, 1]))
    """
    experts_M, order_M = chosen_NA.flatten().sort(stable=True)
    # No bincount: it would wait for a GPU, to learn how long its result is.
    bounds = torch.searchsorted(experts_M, torch.arange(n_experts + 1, device=experts_M.device))
    return order_M, bounds.diff()


class Experts(nn.Module):
    """The experts, each a gated feed-forward layer without biases; the rows come sorted by expert."""

    def __init__(self, *, n_experts: int, d_model: int, d_expert: int, kind: Kind) -> None:
        super().__init__()
        self.gate = ExpertLinear(n_experts=n_experts, d_in=d_model, d_out=d_expert)
        self.input = ExpertLinear(n_experts=n_experts, d_in=d_model, d_out=d_expert)
        self.output = ExpertLinear(n_experts=n_experts, d_in=d_expert, d_out=d_model)
        self.activate = ACTIVATIONS[kind]

    def forward(self, x_MD: Tensor, sizes: list[int]) -> Tensor:
        return self.output(self.activate(self.gate(x_MD, sizes), self.input(x_MD, sizes)), sizes)


class MixtureOfExperts(FeedForward):
    """`n_experts` gated layers of width `d_expert` (the decoder's `d_ff` unless said), `n_active` of them for a token.

    `n_shared` more of them, as one layer of width `d_shared` (n_shared * d_expert unless said), see every token.

    A single active expert wants `normalize` off (Switch): its weight would always be 1, which teaches a router nothing.

    `balance`: "loss" adds `balance_weight` times `balance_loss` to what is learned; "bias" adds a bias to the scores
    for the choice only, which after each update of the weights goes up by `bias_rate` for each expert that had fewer
    tokens than the mean and down for each that had more; "none" does nothing. `z_weight` weighs the `router_z_loss`.

    `capacity` is a limit while training: an expert takes its first ceil(capacity * N * A / E) tokens of a batch and the
    rest pass by it (Switch, section 2.2). Whether a token passes by depends on the others in its batch, so that there
    is no limit when the model is evaluated or generates: a text's continuation does not depend on its neighbours.

    Every position of a batch is a token here, padding too: the layer is not told which targets are ignored. So where
    short texts are filled up to one length (`LM.fit`), padding counts in the loads, in both losses and in the capacity.
    The windows of a prepared data folder have none.
    """

    router_bias: Tensor
    load: Tensor

    def __init__(
        self,
        *,
        d_model: int,
        d_ff: int | None = None,
        n_experts: int = 8,
        n_active: int = 2,
        d_expert: int | None = None,
        n_shared: int = 0,
        d_shared: int | None = None,
        kind: Kind = "swiglu",
        score: Literal["softmax", "sigmoid"] = "softmax",
        normalize: bool = True,
        scale: float = 1.0,
        balance: Literal["loss", "bias", "none"] = "loss",
        balance_weight: float = 0.01,
        bias_rate: float = 0.001,
        z_weight: float = 0.0,
        capacity: float | None = None,
        n_groups: int = 1,
        n_active_groups: int = 1,
        group_score: Literal["max", "top2"] = "max",
    ) -> None:
        super().__init__()
        _check_least(1, n_experts=n_experts, d_expert=d_expert, d_shared=d_shared)
        _check_least(0, n_shared=n_shared)
        _check_choice(n_experts, n_active, n_groups, n_active_groups, group_score)
        _check_amounts(scale=scale, balance_weight=balance_weight, bias_rate=bias_rate, z_weight=z_weight)
        if capacity is not None and not 0 < capacity < math.inf:
            raise SettingError("capacity", capacity, "a number above 0, or none")
        d_expert = d_expert or d_ff or gated_width(d_model)  # none of them is 0
        d_shared = n_shared * d_expert if d_shared is None else d_shared
        self.n_experts, self.n_active = n_experts, n_active
        self.score, self.normalize, self.scale = score, normalize, scale
        self.balance, self.balance_weight, self.bias_rate = balance, balance_weight, bias_rate
        self.z_weight, self.capacity = z_weight, capacity
        self.n_groups, self.n_active_groups, self.group_score = n_groups, n_active_groups, group_score
        self.router = Linear(d_in=d_model, d_out=n_experts)
        self.experts = Experts(n_experts=n_experts, d_model=d_model, d_expert=d_expert, kind=kind)
        self.shared = GATED[kind](d_model=d_model, d_ff=d_shared) if d_shared else None
        if balance == "bias":
            self.register_buffer("router_bias", torch.zeros(n_experts))
            # What was chosen since the last update. A checkpoint has no need of it: it is taken after an update.
            self.register_buffer("load", torch.zeros(n_experts, dtype=torch.int64), persistent=False)

    def forward(self, x_BTD: Tensor, flow: Flow) -> Tensor:
        x_ND = x_BTD.flatten(0, 1)
        logits_NE, scores_NE = self._scores(x_ND)
        chosen_NA = self._choose(scores_NE.detach())
        order_M, counts_E = sort_by_expert(chosen_NA, self.n_experts)
        self._note(flow, logits_NE, scores_NE, counts_E)
        y_BTD = self._mix(x_ND, self._weights(scores_NE, chosen_NA), order_M, counts_E.tolist()).view_as(x_BTD)
        return y_BTD if self.shared is None else y_BTD + self.shared(x_BTD, flow)

    def _scores(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """The router's logits and scores, in at least 32 bits: in fewer, near experts change places (ST-MoE)."""
        dtype = torch.promote_types(x_ND.dtype, torch.float32)
        logits_NE = x_ND.to(dtype) @ self.router.weight.to(dtype).T
        return logits_NE, logits_NE.softmax(dim=-1) if self.score == "softmax" else logits_NE.sigmoid()

    def _choose(self, scores_NE: Tensor) -> Tensor:
        return choose(
            scores_NE + self.router_bias if self.balance == "bias" else scores_NE,
            self.n_active,
            n_groups=self.n_groups,
            n_active_groups=self.n_active_groups,
            group_score=self.group_score,
        )

    def _weights(self, scores_NE: Tensor, chosen_NA: Tensor) -> Tensor:
        weights_NA = scores_NE.gather(1, chosen_NA)
        if self.normalize:
            weights_NA = weights_NA / weights_NA.sum(dim=-1, keepdim=True).clamp_min(1e-20)
        return self.scale * weights_NA

    def _mix(self, x_ND: Tensor, weights_NA: Tensor, order_M: Tensor, counts: list[int]) -> Tensor:
        """The weighted sum of what each token's experts say; M of the N x A choices, the others being over capacity."""
        n_choices = weights_NA.numel()
        limit = self._limit(n_choices)
        if max(counts) > limit:
            order_M = torch.cat([order_E[:limit] for order_E in order_M.split(counts)])
            counts = [min(count, limit) for count in counts]
        # Copied before it is sorted, and put back before it is summed, so that no addition depends on who is first.
        copies_ND = x_ND.unsqueeze(1).expand(-1, self.n_active, -1).reshape(n_choices, -1)
        y_MD = self.experts(copies_ND.index_select(0, order_M), counts)
        y_ND = y_MD.new_zeros(n_choices, y_MD.shape[1]).index_copy(0, order_M, y_MD)
        return (y_ND.view(*weights_NA.shape, -1) * weights_NA.to(y_MD.dtype).unsqueeze(-1)).sum(dim=1)

    def _limit(self, n_choices: int) -> int:
        """The most tokens that an expert takes."""
        if self.capacity is None or not self.training:
            return n_choices
        return math.ceil(self.capacity * n_choices / self.n_experts)

    def _note(self, flow: Flow, logits_NE: Tensor, scores_NE: Tensor, counts_E: Tensor) -> None:
        """Add the losses and figures of this layer to the flow, and the choices to the load."""
        n_choices = len(scores_NE) * self.n_active
        shares_E = counts_E / n_choices
        flow.figures[f"expert_load.{flow.layer}"] = shares_E
        if not self.training:
            return
        if self.capacity is not None:
            over = (counts_E - self._limit(n_choices)).clamp_min(0).sum() / n_choices
            flow.figures[f"share_dropped.{flow.layer}"] = over
        if self.balance == "loss":
            self._want(flow, "balance_loss", balance_loss(shares_E, scores_NE), self.balance_weight)
        if self.z_weight:
            self._want(flow, "router_z_loss", router_z_loss(logits_NE), self.z_weight)
        if self.balance == "bias" and not flow.again:
            self.load += counts_E

    @staticmethod
    def _want(flow: Flow, name: str, loss: Tensor, weight: float) -> None:
        flow.figures[f"{name}.{flow.layer}"] = loss.detach()
        flow.losses.append(weight * loss)

    @torch.no_grad()
    def updated(self) -> None:
        """Move the bias towards the experts that had less than the mean."""
        if self.balance == "bias":
            n_each = self.load.sum() / self.n_experts
            self.router_bias += self.bias_rate * (n_each - self.load).sign()
            self.load.zero_()

    def passed_over(self) -> None:
        """Forget the choices of a step that was not made."""
        if self.balance == "bias":
            self.load.zero_()


def _check_least(least: int, **numbers: int | None) -> None:
    for name, number in numbers.items():
        if number is not None and number < least:
            raise SettingError(name, number, f"at least {least}")


def _check_choice(n_experts: int, n_active: int, n_groups: int, n_active_groups: int, group_score: str) -> None:
    if n_groups < 1 or n_experts % n_groups:
        raise SettingError("n_groups", n_groups, f"a divisor of n_experts = {n_experts}")
    if not 1 <= n_active_groups <= n_groups:
        raise SettingError("n_active_groups", n_active_groups, f"from 1 to n_groups = {n_groups}")
    in_group = n_experts // n_groups
    if not 1 <= n_active <= n_active_groups * in_group:
        choices = f"from 1 to the {n_active_groups * in_group} experts that may be chosen"
        raise SettingError("n_active", n_active, choices)
    if group_score == "top2" and n_active_groups < n_groups and in_group < 2:
        raise SettingError("group_score", group_score, '"max": each group is one expert')


def _check_amounts(**amounts: float) -> None:
    for name, amount in amounts.items():
        if not 0 <= amount < math.inf:
            raise SettingError(name, amount, "a number, 0 or greater")
