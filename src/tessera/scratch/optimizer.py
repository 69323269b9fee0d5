"""SGD, Adam and AdamW in NumPy: from gradients to the next weights.

    SGD      g = gradient + decay * w;   b = momentum * b + g;   w = w - lr * b              (Polyak 1964)
             Nesterov (1983):            w = w - lr * (g + momentum * b)
    Adam     m = beta1 * m + (1 - beta1) * g                     v = beta2 * v + (1 - beta2) * g^2
             w = w - lr * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)              t = 1, 2, 3, ...
             with decay * w as a part of g                       (Kingma and Ba 2015, "Adam", algorithm 1)
    AdamW    the same with the decay on w itself, w = w - lr * decay * w, so that it is not divided by sqrt(v)
             (Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2)

A pure function does the mathematics of one parameter, in place. A class holds the settings and the number of each
parameter's steps; the means lie in the parameters, in `m` and `v`. `state` gives the same tensors, by the same names,
as the checkpoint of a torch run has of its optimizer, so that either engine goes on where the other stopped.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np

from tessera.errors import InputError, SettingError
from tessera.scratch.groups import Group, groups
from tessera.scratch.parameter import Parameter


def sgd_step(
    param: np.ndarray,
    grad: np.ndarray,
    buffer: np.ndarray | None,
    *,
    lr: float,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> None:
    """One step, in place. `buffer`, zeros before the first step, is needed with momentum only."""
    if weight_decay:
        grad = grad + weight_decay * param
    if buffer is not None:
        buffer *= momentum
        buffer += grad
        grad = grad + momentum * buffer if nesterov else buffer
    param -= lr * grad


def adamw_step(
    param: np.ndarray,
    grad: np.ndarray,
    mean: np.ndarray,
    square: np.ndarray,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float = 0.0,
) -> None:
    """Step number `step` = 1, 2, ... in place; `mean` and `square` (m and v) are zeros before the first."""
    beta1, beta2 = betas
    change = (1.0 - beta1) * grad  # the one array that is made: everything below is done in it
    mean *= beta1
    mean += change
    np.multiply(grad, grad, out=change)
    change *= 1.0 - beta2
    square *= beta2
    square += change
    # Both corrections as two scalars: m / c1 / (sqrt(v) / c2 + eps) = (c2 / c1) * m / (sqrt(v) + c2 * eps).
    correction1, correction2 = 1.0 - beta1**step, math.sqrt(1.0 - beta2**step)
    np.sqrt(square, out=change)
    change += correction2 * eps
    np.divide(mean, change, out=change)
    change *= lr * correction2 / correction1
    if weight_decay:
        param *= 1.0 - lr * weight_decay
    param -= change


def adam_step(
    param: np.ndarray,
    grad: np.ndarray,
    mean: np.ndarray,
    square: np.ndarray,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float = 0.0,
) -> None:
    """The same with the decay as a part of the gradient (L2)."""
    if weight_decay:
        grad = grad + weight_decay * param
    adamw_step(param, grad, mean, square, step=step, lr=lr, betas=betas, eps=eps)


class Optimizer(ABC):
    """Updates the parameters of a model, `{name: parameter}`; a new one starts their means from zero.

    `lr_scale` gives parameters a rate of their own (`tessera.scratch.groups`).
    """

    keeps: dict[str, str]
    """What a checkpoint calls what is kept of a parameter, and where in the parameter it lies."""
    counts: ClassVar[bool] = True
    """Whether the number of a step matters, so that it is kept as well."""

    def __init__(
        self, params: Mapping[str, Parameter], *, lr: float, weight_decay: float, lr_scale: Mapping[str, float] | None
    ) -> None:
        _check_amount("lr", lr)
        _check_amount("weight_decay", weight_decay)
        self.params, self.groups = dict(params), groups(params, lr_scale)
        self.lr, self.weight_decay = lr, weight_decay
        self.steps = dict.fromkeys(self.params, 0)
        """How many steps each parameter has taken."""
        for param in self.params.values():
            for where in self.keeps.values():
                setattr(param, where, np.zeros_like(param.data))

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What a checkpoint says of a group, beside its rate and its decay."""

    @abstractmethod
    def update(self, param: Parameter, *, step: int, lr: float, weight_decay: float) -> None:
        """Change one parameter in place; `step` counts from 1."""

    def step(self, lr: float) -> None:
        """Update every parameter at the rate `lr`."""
        for group in self.groups:
            for name in group.names:
                self.steps[name] += 1
                self.update(
                    self.params[name], step=self.steps[name], lr=lr * group.scale, weight_decay=self._decay(group)
                )

    def state(self, *, prefix: str = "model.") -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The tensors and the JSON of a checkpoint; the tensors are the live ones. `prefix` comes before the names of
        the parameters."""
        tensors: dict[str, np.ndarray] = {}
        for name, param in self.params.items():
            if self.counts:
                tensors[f"optimizer.step.{prefix}{name}"] = np.array(self.steps[name], dtype=np.float32)
            for key, where in self.keeps.items():
                tensors[f"optimizer.{key}.{prefix}{name}"] = getattr(param, where)
        listed = [
            {
                "kind": group.kind,
                "weight_decay": self._decay(group),
                "lr": self.lr * group.scale,
                **self.settings(),
                "params": [prefix + name for name in group.names],
            }
            for group in self.groups
        ]
        return tensors, {"kind": type(self).__name__, "scalars": {}, "groups": listed}

    def load(self, tensors: Mapping[str, np.ndarray], meta: Mapping[str, Any], *, prefix: str = "model.") -> None:
        """Put back what `state` gave, or what the checkpoint of a torch run holds; `tensors` may hold more."""
        if meta["kind"] != type(self).__name__:
            raise InputError(f"the checkpoint is of another optimizer: {meta['kind']}, not {type(self).__name__}")
        saved = {name for group in meta["groups"] for name in group["params"]}
        if different := sorted(saved ^ {prefix + name for name in self.params}):
            raise InputError(f"the checkpoint is of another model: {different[0]!r} differs ({len(different)} in all)")
        for name, param in self.params.items():
            for key, where in self.keeps.items():
                value = _tensor(tensors, f"optimizer.{key}.{prefix}{name}", param.shape)
                setattr(param, where, value.astype(param.data.dtype))
            if self.counts:
                self.steps[name] = int(_tensor(tensors, f"optimizer.step.{prefix}{name}", ()))

    def _decay(self, group: Group) -> float:
        return self.weight_decay if group.is_decayed else 0.0


class Sgd(Optimizer):
    """Momentum 0 is plain gradient descent and keeps no state."""

    counts = False

    def __init__(
        self,
        params: Mapping[str, Parameter],
        *,
        lr: float,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        lr_scale: dict[str, float] | None = None,
    ) -> None:
        _check_share("momentum", momentum)
        if nesterov and not momentum:
            raise SettingError("nesterov", True, "false, or a momentum greater than 0")
        self.momentum, self.nesterov = momentum, nesterov
        self.keeps = {"momentum_buffer": "m"} if momentum else {}
        super().__init__(params, lr=lr, weight_decay=weight_decay, lr_scale=lr_scale)

    def settings(self) -> dict[str, Any]:
        return {"momentum": self.momentum, "nesterov": self.nesterov}

    def update(self, param: Parameter, *, step: int, lr: float, weight_decay: float) -> None:
        sgd_step(
            param.data,
            param.grad,
            param.m if self.momentum else None,
            lr=lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=weight_decay,
        )


class Adam(Optimizer):
    """Bias-corrected Adam; `weight_decay` is L2, a part of the gradient."""

    rule: ClassVar[Callable[..., None]] = staticmethod(adam_step)

    def __init__(
        self,
        params: Mapping[str, Parameter],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        lr_scale: dict[str, float] | None = None,
    ) -> None:
        if len(betas) != 2:
            raise SettingError("betas", betas, "two numbers")
        for i, beta in enumerate(betas):
            _check_share(f"betas[{i}]", beta)
        if not 0.0 < eps < 1.0:
            raise SettingError("eps", eps, "a small number, greater than 0")
        self.betas, self.eps = (betas[0], betas[1]), eps
        self.keeps = {"exp_avg": "m", "exp_avg_sq": "v"}
        super().__init__(params, lr=lr, weight_decay=weight_decay, lr_scale=lr_scale)

    def settings(self) -> dict[str, Any]:
        return {"betas": list(self.betas), "eps": self.eps}

    def update(self, param: Parameter, *, step: int, lr: float, weight_decay: float) -> None:
        means = {"betas": self.betas, "eps": self.eps}
        self.rule(param.data, param.grad, param.m, param.v, step=step, lr=lr, weight_decay=weight_decay, **means)


class AdamW(Adam):
    """Adam with decoupled weight decay: the usual choice for a transformer."""

    rule = staticmethod(adamw_step)

    def __init__(
        self,
        params: Mapping[str, Parameter],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        lr_scale: dict[str, float] | None = None,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, lr_scale=lr_scale)


OPTIMIZERS: dict[str, type[Optimizer]] = {"sgd": Sgd, "adam": Adam, "adamw": AdamW}


def _check_amount(name: str, value: float) -> None:
    if not 0.0 <= value < math.inf:
        raise SettingError(name, value, "a number, 0 or greater")


def _check_share(name: str, value: float) -> None:
    if not 0.0 <= value < 1.0:
        raise SettingError(name, value, "a number from 0 up to, but not including, 1")


def _tensor(tensors: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...]) -> np.ndarray:
    found = tensors.get(name)
    if found is None:
        raise InputError(f"the checkpoint has no tensor {name!r}")
    if found.shape != shape:
        raise InputError(f"the checkpoint is of another model: {name!r} has the shape {found.shape}, not {shape}")
    return found
