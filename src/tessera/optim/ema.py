"""An exponential moving average of the weights: a calmer model than the one that the last batches have pulled at.

    average = average + (1 - d_t) * (w - average)           d_t = min(decay, (1 + t) / (warmup + t)),  t = 1, 2, 3, ...

A decay of d looks back over about 1 / (1 - d) steps. While the average is young, a smaller decay makes it forget where
the weights started; with warmup = 10 it looks back over about a tenth of the steps so far (the average of iterates is
Polyak and Juditsky 1992, "Acceleration of Stochastic Approximation by Averaging"; its exponential form with this
warm-up is TensorFlow's `ExponentialMovingAverage`).
"""

from typing import Any

import torch
from torch import Tensor, nn

from tessera.errors import InputError, SettingError
from tessera.optim.averaged import Averaged
from tessera.optim.optimizer import check_amount, check_share


def decay_at(update: int, *, decay: float, warmup: float) -> float:
    """The decay of update number 1, 2, ...; `warmup` of 1 or less is none."""
    return min(decay, (1 + update) / (warmup + update))


class WeightAverage(Averaged):
    """The average of every parameter of `module` that learns; `update` it after each step of the optimizer.

    It takes as much memory as the weights, and no more while it is in use: the two change places. Buffers are not
    averaged. Weights in half precision are refused, as an average in it would stand still.
    """

    def __init__(self, module: nn.Module, *, decay: float = 0.999, warmup: float = 10.0) -> None:
        check_share("decay", decay)
        check_amount("warmup", warmup)
        self.decay, self.warmup = decay, warmup
        self.updates = 0
        self._swapped = False
        self._params = {name: param for name, param in module.named_parameters() if param.requires_grad}
        for name, param in self._params.items():
            if param.dtype not in (torch.float32, torch.float64):
                raise SettingError(name, str(param.dtype), "float32 weights: an average in less does not move")
        self._kept = {name: param.detach().clone() for name, param in self._params.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights of this moment in."""
        if self._swapped:
            raise InputError("the averaged weights are in the model: swap_out() before the next step")
        self.updates += 1
        weight = 1.0 - decay_at(self.updates, decay=self.decay, warmup=self.warmup)
        torch._foreach_lerp_(list(self._kept.values()), list(self._params.values()), weight)

    @property
    def swapped(self) -> bool:
        return self._swapped

    def swap_in(self) -> None:
        if not self._swapped:
            self._exchange()

    def swap_out(self) -> None:
        if self._swapped:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, param in self._params.items():
            other = param.clone()
            param.copy_(self._kept[name])
            self._kept[name].copy_(other)
        self._swapped = not self._swapped

    def state_dict(self) -> dict[str, Any]:
        """`weights` are those of the two sets that are not in the model: the trained ones if it is `swapped`."""
        return {"updates": self.updates, "swapped": self._swapped, "weights": dict(self._kept)}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state that was saved together with the weights that are in the module now."""
        weights: dict[str, Tensor] = state["weights"]
        different = sorted(set(weights) ^ set(self._kept))
        different += [name for name in self._kept if name in weights and weights[name].shape != self._kept[name].shape]
        if different:
            raise InputError(f"the average is of another model: {different[0]!r} differs ({len(different)} in all)")
        for name, kept in self._kept.items():
            kept.copy_(weights[name])
        self.updates, self._swapped = int(state["updates"]), bool(state["swapped"])
