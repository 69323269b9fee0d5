"""Adafactor: Adam's square of the gradient kept as the sums of its rows and columns, n + m numbers for n x m.

    beta_t = 1 - t^-0.8                                              t = 1, 2, 3, ...
    r = beta_t * r + (1 - beta_t) * mean over columns of (g^2 + eps1)           c likewise, over rows
    u = g / sqrt(r c^T / mean(r))                                    vectors: g / sqrt(v), v of (g^2 + eps1) whole
    w = w - rate * u / max(1, RMS(u) / clip)                         RMS(u) = |u| / sqrt(numbers in u)

The decay beta_t grows, so no bias needs to be undone; the clipping holds a step back that the old squares did not see
coming (Shazeer and Stern 2018, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost", algorithms 4 to 6).
Stacks of matrices keep sums for each matrix; the clipping looks at the whole stack. Three ways to choose `rate`:

    fixed       lr, as the schedule has it
    scaled      lr * max(eps2, RMS(w)): large weights move more
    relative    min(lr, 1 / sqrt(t)) * max(eps2, RMS(w)): the paper's, which needs no schedule (its lr is 0.01)
"""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from tessera.errors import SettingError
from tessera.optim.optimizer import Optimizer, check_eps, check_share, zeros_for

RATES = {
    "fixed": lambda lr, step, size: lr,
    "scaled": lambda lr, step, size: lr * size,
    "relative": lambda lr, step, size: min(lr, step**-0.5) * size,
}
"""From lr, the number of the step, and max(eps2, RMS of the weights)."""


def rms(x: Tensor) -> Tensor:
    """The root of the mean square."""
    return torch.linalg.vector_norm(x) / max(x.numel(), 1) ** 0.5


def direction(grad: Tensor, state: dict[str, Tensor], *, step: int, eps: float, decay_power: float = 0.8) -> Tensor:
    """u above, for step number `step` = 1, 2, ...; `state` has r and c ("row", "column"), or v ("exp_avg_sq")."""
    weight = step**-decay_power
    square = grad.square().add_(eps)
    if "exp_avg_sq" in state:
        return state["exp_avg_sq"].lerp_(square, weight).rsqrt().mul_(grad)
    row, column = state["row"], state["column"]
    row.lerp_(square.mean(dim=-1), weight)
    column.lerp_(square.mean(dim=-2), weight)
    # The two roots apart: their product is in range where that of the sums themselves is not.
    by_row = (row / row.mean(dim=-1, keepdim=True)).rsqrt_()
    return grad * by_row.unsqueeze(-1) * column.rsqrt().unsqueeze(-2)


def adafactor_step(
    param: Tensor,
    grad: Tensor,
    state: dict[str, Tensor],
    *,
    step: int,
    lr: float,
    rate: str = "fixed",
    clip: float = 1.0,
    momentum: float = 0.0,
    eps: tuple[float, float] = (1e-30, 1e-3),
    weight_decay: float = 0.0,
) -> None:
    """One step in place; the tensors of `state` are zeros before the first."""
    update = direction(grad, state, step=step, eps=eps[0])
    size = RATES[rate](lr, step, 1.0 if rate == "fixed" else rms(param).clamp(min=eps[1]))
    update.mul_(size / (rms(update) / clip).clamp(min=1.0))
    if momentum:
        update = state["exp_avg"].lerp_(update, 1.0 - momentum)
    param.mul_(1.0 - lr * weight_decay).sub_(update)


class Adafactor(Optimizer):
    """Adafactor; `momentum` 0 keeps no mean of the updates, which is what saves the memory."""

    def __init__(
        self,
        params: ParamsT,
        *,
        lr: float,
        rate: Literal["fixed", "scaled", "relative"] = "fixed",
        clip: float = 1.0,
        momentum: float = 0.0,
        eps: tuple[float, float] = (1e-30, 1e-3),
        weight_decay: float = 0.0,
        lr_scale: dict[str, float] | None = None,
    ) -> None:
        shape = {"rate": rate, "clip": clip, "momentum": momentum, "eps": tuple(eps)}
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, **shape}, lr_scale=lr_scale)

    def check(self, settings: dict[str, Any]) -> None:
        super().check(settings)
        if settings["rate"] not in RATES:
            raise SettingError("rate", settings["rate"], f"one of {', '.join(RATES)}")
        if not settings["clip"] > 0.0:
            raise SettingError("clip", settings["clip"], "a number greater than 0, or infinity")
        check_share("momentum", settings["momentum"])
        if len(settings["eps"]) != 2:
            raise SettingError("eps", settings["eps"], "two numbers")
        for i, eps in enumerate(settings["eps"]):
            check_eps(f"eps[{i}]", eps)

    def fresh(self, param: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        # Squares of gradients, and their roots, are out of bfloat16's and fp16's reach.
        wide = torch.promote_types(param.dtype, torch.float32)
        state = {"step": torch.zeros((), device=param.device)}
        if param.ndim < 2:
            state["exp_avg_sq"] = zeros_for(param, dtype=wide)
        else:
            state["row"] = torch.zeros(param.shape[:-1], dtype=wide, device=param.device)
            state["column"] = torch.zeros(param.shape[:-2] + param.shape[-1:], dtype=wide, device=param.device)
        if group["momentum"]:
            state["exp_avg"] = zeros_for(param, dtype=wide)
        return state

    def update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        names = ("lr", "rate", "clip", "momentum", "eps", "weight_decay")
        settings = {name: group[name] for name in names}
        states = [self.state_of(param, group) for param in params]
        for param, state, step in zip(params, states, self.count(states), strict=True):
            assert param.grad is not None
            grad = param.grad.to(torch.promote_types(param.dtype, torch.float32))
            adafactor_step(param, grad, state, step=step, **settings)
