"""What the optimizers share: checked settings, and a step that hands each group's learned parameters to one method.

The mathematics of each optimizer is a pure function beside its class; the class holds the state, a dictionary of
tensors a parameter, so that `state_dict` and `load_state_dict` are PyTorch's own and a resumed run is the same bit
for bit.
"""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from tessera.errors import SettingError
from tessera.optim.parameter_groups import scale_rates

# PyTorch's own, without the guard that keeps them out of a compiled function: its first call loads the compiler,
# seconds and 130 MB that a run which compiles nothing can do without.
_ADD_PARAM_GROUP, _ZERO_GRAD, _STATE_DICT, _LOAD_STATE_DICT = (
    inspect.unwrap(getattr(torch.optim.Optimizer, name))
    for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
)


def zeros_for(param: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Zeros of a parameter's shape, on its device. Not `zeros_like`, which loads sympy to make some on `meta`."""
    return torch.zeros(param.shape, dtype=dtype or param.dtype, device=param.device)


def check_amount(name: str, value: float) -> None:
    """`value` must be finite and not negative."""
    if not 0.0 <= value < math.inf:
        raise SettingError(name, value, "a number, 0 or greater")


def check_share(name: str, value: float) -> None:
    """`value` must be in [0, 1)."""
    if not 0.0 <= value < 1.0:
        raise SettingError(name, value, "a number from 0 up to, but not including, 1")


def check_betas(betas: tuple[float, ...]) -> None:
    """Two shares."""
    if len(betas) != 2:
        raise SettingError("betas", betas, "two numbers")
    for i, beta in enumerate(betas):
        check_share(f"betas[{i}]", beta)


def check_eps(name: str, value: float) -> None:
    """`value` must be in (0, 1)."""
    if not 0.0 < value < 1.0:
        raise SettingError(name, value, "a small number, greater than 0")


class Optimizer(torch.optim.Optimizer, ABC):
    """A `torch.optim.Optimizer` whose subclass says what one group's settings must be (`check`), what it keeps of a
    parameter (`fresh`) and what it does (`update`).

    `lr_scale` gives parameters a rate of their own: a factor for each kind ("matrix", "table", "vector") or pattern of
    names (`embedding`, `blocks.0.*`); where several match, all of them count. It needs the names: `groups` has them.
    """

    gated: ClassVar[bool] = False
    """Whether `step_if` decides on the device, without asking it."""

    def __init__(
        self, params: ParamsT, defaults: dict[str, Any], *, lr_scale: Mapping[str, float] | None = None
    ) -> None:
        super().__init__(scale_rates(_grouped(params), defaults["lr"], lr_scale), defaults)

    def check(self, settings: dict[str, Any]) -> None:
        """Raise a `SettingError` for a group's settings that make no sense."""
        check_amount("lr", settings["lr"])
        check_amount("weight_decay", settings["weight_decay"])

    @abstractmethod
    def fresh(self, param: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        """The state of `param` before its first step; on `param`'s device, so that one on `meta` costs nothing."""

    @abstractmethod
    def update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        """Change `params`, which all have a gradient, in place."""

    def state_of(self, param: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        """The live state of `param`."""
        state = self.state[param]
        if not state:
            state.update(self.fresh(param, group))
        return state

    def allocate(self) -> None:
        """Make the state of every parameter now, not in its first step: where there is no memory for it, it is told
        before anything is learned."""
        for group in self.param_groups:
            for param in group["params"]:
                self.state_of(param, group)

    def count(self, states: list[dict[str, Tensor]]) -> list[int]:
        """The number of this step, 1, 2, ..., in each state's `step`; read from a device all at once."""
        if not states:
            return []
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1)
        return [int(step) for step in torch.stack(steps).tolist()]

    def memory(self) -> int:
        """The bytes of the state when every parameter has taken a step; to count them takes no memory."""
        return sum(
            value.numel() * value.element_size()
            for group in self.param_groups
            for param in group["params"]
            for value in self.fresh(torch.empty(param.shape, dtype=param.dtype, device="meta"), group).values()
        )

    def update_memory(self) -> int:
        """The bytes, about, that an update takes for itself, beside weights, gradients and state."""
        return 0

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self.check({**self.defaults, **param_group})
        _ADD_PARAM_GROUP(self, param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        _ZERO_GRAD(self, set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return _STATE_DICT(self)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """PyTorch's, but each tensor keeps its own type: it would make the parameter's of all but `step`."""
        _LOAD_STATE_DICT(self, state_dict)
        ids = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        params = chain.from_iterable(group["params"] for group in self.param_groups)
        for id, param in zip(ids, params, strict=True):
            for name, value in state_dict["state"].get(id, {}).items():
                if isinstance(value, Tensor):
                    self.state[param][name] = value.to(param.device, copy=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient. The loss of `closure`, if one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [param for param in group["params"] if param.grad is not None]
            if params:
                self.update(params, group)
        return loss

    def step_if(self, ok: Tensor) -> None:
        """A step if `ok`, which lies on the parameters' device, is true; else nothing changes, not by a bit."""
        if bool(ok):
            self.step()


def _grouped(params: ParamsT) -> list[dict[str, Any]]:
    """Any of PyTorch's forms as groups; parameters in one row are one group."""
    listed: list[Any] = list(params)
    if all(isinstance(item, dict) for item in listed):
        return [{**group, "params": _listed(group["params"])} for group in listed]
    return [{"params": listed}]


def _listed(params: Any) -> list[Any]:
    return [params] if isinstance(params, Tensor) else list(params)
