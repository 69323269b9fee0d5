"""How far a policy has gone from a reference, estimated from the tokens that it said itself.

With x drawn from the policy pi and r = pi_ref(x) / pi(x), three estimators of KL(pi || pi_ref) (Schulman 2020,
"Approximating KL Divergence"):

    k1   -log r              without bias, but of high variance, and often negative
    k2   (log r)^2 / 2       a little bias, low variance; its gradient is that of the KL
    k3   r - 1 - log r       without bias, low variance, never negative (Shao et al. 2024, DeepSeekMath, eq. 4)
"""

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from tessera.errors import SettingError
from tessera.objectives.preference import check_positive


def k1(logps: Tensor, reference: Tensor) -> Tensor:
    return logps - reference


def k2(logps: Tensor, reference: Tensor) -> Tensor:
    return (logps - reference).square() / 2


def k3(logps: Tensor, reference: Tensor) -> Tensor:
    log_r = reference - logps
    return log_r.expm1() - log_r


KL_ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}


def kl_estimate(logps: Tensor, reference: Tensor, estimator: str = "k3") -> Tensor:
    """The estimate at each token, by name."""
    if estimator not in KL_ESTIMATORS:
        raise SettingError.unknown("estimator", estimator, KL_ESTIMATORS)
    return KL_ESTIMATORS[estimator](logps, reference)


def adapted(coefficient: float, kl: float, target: float, *, n_steps: int, horizon: float) -> float:
    """The coefficient after `n_steps` at which the divergence was `kl`: greater if that is above the target.

    e = clip(kl / target - 1, -0.2, 0.2); coefficient (1 + n e / horizon)   (Ziegler et al. 2019, section 2.2)
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coefficient * (1 + error * n_steps / horizon)


class AdaptiveKL:
    """Holds the coefficient of the penalty. Without a `target` it stays what it is."""

    def __init__(self, *, coefficient: float = 0.1, target: float | None = None, horizon: float = 10_000) -> None:
        if not 0 <= coefficient < math.inf:
            raise SettingError("coefficient", coefficient, "a number, 0 or greater")
        check_positive(horizon=horizon, **({} if target is None else {"target": target}))
        self.coefficient, self.target, self.horizon = coefficient, target, horizon

    def update(self, kl: float, n_steps: int = 1) -> float:
        """Take note of the divergence of the last `n_steps` answers; the coefficient from here on."""
        if self.target is not None:
            self.coefficient = adapted(self.coefficient, kl, self.target, n_steps=n_steps, horizon=self.horizon)
        return self.coefficient

    def state(self) -> dict[str, Any]:
        return {"coefficient": self.coefficient}

    def restore(self, state: dict[str, Any]) -> None:
        self.coefficient = float(state["coefficient"])
