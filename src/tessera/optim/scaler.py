"""Loss scaling: fp16 gradients that would be too small to be told from zero, kept in its range.

    gradients of (loss * scale), divided by scale before they are clipped
    not finite:                       scale = scale * backoff, and the step is left out
    `interval` steps finite in a row: scale = scale * growth

fp16 has no number between 0 and 6e-8, so small gradients vanish in the backward pass; scaled up they survive, and a
scale that is too large shows itself by an infinity (Micikevicius et al. 2018, "Mixed Precision Training", section 3.2;
the rule above is its dynamic scaling). With powers of two the scaling itself rounds nothing.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from tessera.errors import SettingError

LARGEST = float(torch.finfo(torch.float32).max)


def next_scale(
    scale: float, streak: int, finite: bool, *, growth: float, backoff: float, interval: int, floor: float
) -> tuple[float, int]:
    """The scale and the number of finite steps in a row, after a step whose gradients were `finite` or not."""
    if not finite:
        return max(scale * backoff, floor), 0
    if streak + 1 < interval:
        return scale, streak + 1
    return (scale * growth if scale * growth <= LARGEST else scale), 0


class LossScaler:
    """The scale and its history.

    A step of the loop: `scaled(loss).backward()`, `unscale_(params)`, look at the gradients' norm, `update(finite)`,
    and the optimizer's step only if it was finite. `at_floor` says beforehand whether a smaller scale is left to try:
    if not, what is not finite is not the scale's doing.
    """

    def __init__(
        self,
        *,
        scale: float = 65536.0,
        growth: float = 2.0,
        backoff: float = 0.5,
        interval: int = 2000,
        floor: float = 1.0,
    ) -> None:
        if not 0.0 < floor <= scale < math.inf:
            raise SettingError("scale", scale, f"a finite number, at least the floor, which is {floor} and above 0")
        if not 1.0 < growth < math.inf:
            raise SettingError("growth", growth, "a factor greater than 1")
        if not 0.0 < backoff < 1.0:
            raise SettingError("backoff", backoff, "a factor between 0 and 1")
        if interval < 1:
            raise SettingError("interval", interval, "a number of steps, 1 or greater")
        self.scale, self.streak = scale, 0
        self._rule = {"growth": growth, "backoff": backoff, "interval": interval, "floor": floor}

    @property
    def at_floor(self) -> bool:
        return self.scale <= self._rule["floor"]

    def scaled(self, loss: Tensor) -> Tensor:
        """What to call `backward` on."""
        return loss * self.scale

    @torch.no_grad()
    def unscale_(self, params: Iterable[Tensor]) -> None:
        """Divide the gradients by the scale, in place: once a step, when all micro-batches are in."""
        grads = [param.grad for param in params if param.grad is not None]
        if grads:
            torch._foreach_mul_(grads, 1.0 / self.scale)

    def update(self, finite: bool) -> None:
        """Choose the scale of the next step, after one whose gradients were all `finite` or not."""
        self.scale, self.streak = next_scale(self.scale, self.streak, finite, **self._rule)  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {"scale": self.scale, "streak": self.streak}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.scale, self.streak = float(state["scale"]), int(state["streak"])
