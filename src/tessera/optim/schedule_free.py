"""Schedule-free AdamW: an average of the weights instead of a schedule that must know when the run ends.

    y_t = (1 - beta1) * z_t + beta1 * x_t                            the gradient g_t is taken here
    v_t = beta2 * v_(t-1) + (1 - beta2) * g_t^2                      rate_t = lr * sqrt(1 - beta2^t)
    z_(t+1) = z_t - rate_t * (g_t / (sqrt(v_t) + eps) + weight_decay * y_t)
    x_(t+1) = (1 - c) * x_t + c * z_(t+1)                            c = rate_t^2 / (rate_1^2 + ... + rate_t^2)

z goes where the gradients point, x is the mean of all z so far and the model to use, and y, between the two, is the one
that is trained (Defazio et al. 2024, "The Road Less Scheduled", algorithm 1). Warm up by the schedule "constant" with
its `warmup`: the factor comes in by `lr`. A schedule that falls works against the idea.

The model holds y while it learns, the state holds z and v, and x is found from y and z; with the two equations above,
y's own step needs no x: y <- (1 - c) y + c z - rate (1 - beta1 (1 - c)) * (...), with the z before the step.
Validation, samples and checkpoints see x (`averaged`): `swap_in` puts it into the model, and y as it is into the state.
"""

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from tessera.errors import InputError, SettingError
from tessera.optim.averaged import Averaged
from tessera.optim.optimizer import Optimizer, check_betas, check_eps, zeros_for


def schedule_free_step(
    param: Tensor,
    grad: Tensor,
    fast: Tensor,
    square: Tensor,
    *,
    rate: float,
    share: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float = 0.0,
) -> None:
    """One step in place of y (`param`), z (`fast`) and v (`square`), with rate_t and c (`share`) as above."""
    beta1, beta2 = betas
    square.mul_(beta2).addcmul_(grad, grad, value=1.0 - beta2)
    change = grad / square.sqrt().add_(eps)
    if weight_decay:
        change.add_(param, alpha=weight_decay)
    param.lerp_(fast, share).add_(change, alpha=-rate * (1.0 - beta1 * (1.0 - share)))
    fast.add_(change, alpha=-rate)


def averaged(param: Tensor, fast: Tensor, *, beta1: float) -> Tensor:
    """x, from y (`param`) and z (`fast`)."""
    return fast.lerp(param, 1.0 / beta1)


class ScheduleFreeAdamW(Averaged, Optimizer):
    """Schedule-free AdamW; `swap_in` and `swap_out` choose between x and y in the model (see `Averaged`).

    It takes two numbers a weight as AdamW does, and a third one for as long as the averages are in the model.
    """

    def __init__(
        self,
        params: ParamsT,
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        lr_scale: dict[str, float] | None = None,
    ) -> None:
        defaults = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults, lr_scale=lr_scale)

    def check(self, settings: dict[str, Any]) -> None:
        super().check(settings)
        check_betas(settings["betas"])
        if settings["betas"][0] == 0.0:
            raise SettingError("betas[0]", 0.0, "a number between 0 and 1: with 0 the average is not trained on")
        check_eps("eps", settings["eps"])

    def fresh(self, param: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        return {
            "step": torch.zeros((), device=param.device),
            "rates": torch.zeros((), device=param.device),
            "fast": param.detach().clone(),
            "exp_avg_sq": zeros_for(param),
        }

    def update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        if self.swapped:
            raise InputError("the averaged weights are in the model: swap_out() before the next step")
        settings = {name: group[name] for name in ("betas", "eps", "weight_decay")}
        states = [self.state_of(param, group) for param in params]
        sums = torch.stack([state["rates"] for state in states]).tolist()
        for param, state, step, before in zip(params, states, self.count(states), sums, strict=True):
            rate = group["lr"] * (1.0 - group["betas"][1] ** step) ** 0.5
            total = before + rate**2
            state["rates"].fill_(total)
            assert param.grad is not None
            schedule_free_step(
                param,
                param.grad,
                state["fast"],
                state["exp_avg_sq"],
                rate=rate,
                share=rate**2 / total if rate else 0.0,
                **settings,
            )

    @property
    def swapped(self) -> bool:
        return any("trained" in state for state in self.state.values())

    @torch.no_grad()
    def swap_in(self) -> None:
        if self.swapped:
            return
        for group in self.param_groups:
            for param in group["params"]:
                state = self.state.get(param)
                if state:  # one that never had a gradient is still where x, y and z began
                    state["trained"] = param.detach().clone()
                    param.copy_(averaged(param, state["fast"], beta1=group["betas"][0]))

    @torch.no_grad()
    def swap_out(self) -> None:
        for param, state in self.state.items():
            if "trained" in state:
                param.copy_(state.pop("trained"))
