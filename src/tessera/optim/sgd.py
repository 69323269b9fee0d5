"""Stochastic gradient descent: a step down the gradient, with momentum and weight decay if wanted.

    g = gradient + weight_decay * w
    buffer = momentum * buffer + g                  (Polyak 1964)
    w = w - lr * buffer                             or, Nesterov 1983: w - lr * (g + momentum * buffer)

`sgd-decay` is the same with a rate that falls by itself, lr / (1 + decay * t) ** power at its t-th step, t = 0, 1, 2,
... With power = 1 the rates sum to infinity and their squares do not, which is the condition for convergence of
Robbins and Monro (1951); power = 0.5, decay = 1 is the lr / sqrt(t + 1) of online learning (Zinkevich 2003).
"""

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from tessera.errors import SettingError
from tessera.optim.optimizer import Optimizer, check_amount, check_share, zeros_for


def sgd_step(
    param: Tensor,
    grad: Tensor,
    buffer: Tensor | None,
    *,
    lr: float,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> None:
    """One step, in place. `buffer`, zeros before the first step, is needed with momentum only."""
    if weight_decay:
        grad = grad.add(param, alpha=weight_decay)
    if buffer is not None:
        buffer.mul_(momentum).add_(grad)
        grad = grad.add(buffer, alpha=momentum) if nesterov else buffer
    param.add_(grad, alpha=-lr)


def decayed_rate(lr: float, t: float, *, decay: float, power: float) -> float:
    """lr / (1 + decay * t) ** power, the rate of step t = 0, 1, 2, ..."""
    return lr / (1.0 + decay * t) ** power


class Sgd(Optimizer):
    """Momentum 0 is plain gradient descent and keeps no state."""

    def __init__(
        self,
        params: ParamsT,
        *,
        lr: float,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        lr_scale: dict[str, float] | None = None,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
        super().__init__(params, defaults, lr_scale=lr_scale)

    def check(self, settings: dict[str, Any]) -> None:
        super().check(settings)
        check_share("momentum", settings["momentum"])
        if settings["nesterov"] and not settings["momentum"]:
            raise SettingError("nesterov", True, "false, or a momentum greater than 0")

    def rate(self, param: Tensor, group: dict[str, Any]) -> float:
        """The learning rate of `param` in this step."""
        return group["lr"]

    def fresh(self, param: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        return {"momentum_buffer": zeros_for(param)} if group["momentum"] else {}

    def update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        momentum = group["momentum"]
        for param in params:
            state = self.state_of(param, group)
            assert param.grad is not None
            sgd_step(
                param,
                param.grad,
                state["momentum_buffer"] if momentum else None,
                lr=self.rate(param, group),
                momentum=momentum,
                nesterov=group["nesterov"],
                weight_decay=group["weight_decay"],
            )


class SgdDecay(Sgd):
    """SGD whose rate falls as lr / (1 + decay * t) ** power; t counts the steps that a parameter has taken.

    `decay` is the fall in the first step: 0.01 halves the rate in 100 steps (power 1). A schedule multiplies on top.
    """

    def __init__(
        self,
        params: ParamsT,
        *,
        lr: float,
        decay: float = 0.01,
        power: float = 1.0,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        lr_scale: dict[str, float] | None = None,
    ) -> None:
        # Past Sgd's constructor, which does not know the two new settings of a group.
        settings = {"momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
        Optimizer.__init__(self, params, {"lr": lr, "decay": decay, "power": power, **settings}, lr_scale=lr_scale)

    def check(self, settings: dict[str, Any]) -> None:
        super().check(settings)
        check_amount("decay", settings["decay"])
        check_amount("power", settings["power"])

    def fresh(self, param: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        return {**super().fresh(param, group), "step": torch.tensor(0.0)}

    def rate(self, param: Tensor, group: dict[str, Any]) -> float:
        step = self.state[param]["step"]
        rate = decayed_rate(group["lr"], step.item(), decay=group["decay"], power=group["power"])
        step += 1
        return rate
