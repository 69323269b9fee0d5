"""Lion: the sign of a running mean of the gradient, every weight moving by the same amount.

    w = w - lr * (sign(beta1 * m + (1 - beta1) * g) + weight_decay * w)             m = beta2 * m + (1 - beta2) * g

It keeps one mean where Adam keeps two; the step looks at a shorter past (beta1) than the mean that is kept (beta2). A
sign has no size, so its updates are larger than Adam's: take a rate 3 to 10 times smaller and a decay as many times
larger (Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms", program 1 and section 4.1).
"""

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from tessera.optim.optimizer import Optimizer, check_betas, zeros_for


def lion_step(
    params: list[Tensor],
    grads: list[Tensor],
    means: list[Tensor],
    *,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float = 0.0,
) -> None:
    """One step in place; `means` are zeros before the first."""
    beta1, beta2 = betas
    updates = torch._foreach_lerp(means, grads, 1.0 - beta1)
    torch._foreach_sign_(updates)
    torch._foreach_mul_(params, 1.0 - lr * weight_decay)
    torch._foreach_add_(params, updates, alpha=-lr)
    torch._foreach_lerp_(means, grads, 1.0 - beta2)


class Lion(Optimizer):
    """Lion with decoupled weight decay."""

    def __init__(
        self,
        params: ParamsT,
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.1,
        lr_scale: dict[str, float] | None = None,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "weight_decay": weight_decay}, lr_scale=lr_scale)

    def check(self, settings: dict[str, Any]) -> None:
        super().check(settings)
        check_betas(settings["betas"])

    def fresh(self, param: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        return {"exp_avg": zeros_for(param)}

    def update_memory(self) -> int:
        """The signs of a group's weights, all at once."""
        return max(
            sum(param.numel() * param.element_size() for param in group["params"]) for group in self.param_groups
        )

    def update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        lion_step(
            params,
            [param.grad for param in params if param.grad is not None],
            [self.state_of(param, group)["exp_avg"] for param in params],
            lr=group["lr"],
            betas=group["betas"],
            weight_decay=group["weight_decay"],
        )
