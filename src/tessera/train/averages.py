"""The averaged weights of a run, if it keeps any: by `train.ema`, or because its optimizer does.

The trained weights are in the model while it learns, the averaged ones for all else: validation, samples, checkpoints
and the model when the run is over (`tessera.optim.averaged`). A checkpoint holds the averages under the model's own
names, and beside them, as `average.*`, the weights that are trained.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from tessera.errors import SettingError
from tessera.optim.averaged import Averaged
from tessera.optim.ema import WeightAverage

PREFIX = "average."


class Averages:
    """Puts the averages in and out at the right times; does nothing where there are none."""

    def __init__(self, objective: nn.Module, optimizer: torch.optim.Optimizer, decay: float | None) -> None:
        self._objective, self._decay = objective, decay
        self._ema = None if decay is None else WeightAverage(objective, decay=decay)
        self._kept: Averaged | None = self._ema
        if isinstance(optimizer, Averaged):
            if decay is not None:
                raise SettingError("train.ema", decay, f"none: {type(optimizer).__name__} averages the weights itself")
            self._kept = optimizer

    def update(self) -> None:
        """Take in the weights that a step has made."""
        if self._ema is not None:
            self._ema.update()

    def in_use(self) -> AbstractContextManager[None]:
        """The averages in the model for as long as the block runs."""
        return nullcontext() if self._kept is None else self._kept.in_use()

    def swap_in(self) -> None:
        if self._kept is not None:
            self._kept.swap_in()

    def swap_out(self) -> None:
        if self._kept is not None:
            self._kept.swap_out()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a checkpoint needs of them, as tensors and JSON; an optimizer's own are in its state."""
        if self._ema is None:
            return {}, {}
        state = self._ema.state_dict()
        tensors = {PREFIX + name: tensor for name, tensor in state.pop("weights").items()}
        return tensors, {"average": state}

    def restore(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Go on from a checkpoint whose weights are in the model: the trained ones are in it after this.

        A run that had no averages before begins them with the weights that it has now.
        """
        if "average" in meta:
            ema = self._ema or WeightAverage(self._objective)
            weights = {name.removeprefix(PREFIX): one for name, one in tensors.items() if name.startswith(PREFIX)}
            ema.load_state_dict(meta["average"] | {"weights": weights})
            ema.swap_out()
        elif self._decay is not None:
            self._ema = self._kept = WeightAverage(self._objective, decay=self._decay)
        self.swap_out()
