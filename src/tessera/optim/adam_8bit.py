"""AdamW with both of its means in 8 bits: 2 bytes a weight where AdamW keeps 8.

A step brings a piece of the means back to float32, does what AdamW does, and puts them into 8 bits again, so that only
a piece at a time is there in full (Dettmers et al. 2021, "8-bit Optimizers via Block-wise Quantization"; how numbers
become 8 bits is in `quantize`). As in the paper, small tensors and the tables of tokens keep float32: the former take
no memory worth saving, and the rows of rare tokens get gradients that are too different in size.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from tessera.errors import SettingError
from tessera.optim.adam import AdamW, adamw_step
from tessera.optim.optimizer import Optimizer
from tessera.optim.parameter_groups import KINDS
from tessera.optim.quantize import code, dequantize, n_blocks, quantize

SMALLEST = 4096
"""Numbers in a tensor from which on 8 bits are worth it."""

PIECE = {"cpu": 2**18, "cuda": 2**24}
"""Numbers taken at a time: on a CPU what its caches hold, on a GPU what keeps all of it busy."""


def adamw_8bit_step(
    param: Tensor,
    grad: Tensor,
    state: dict[str, Tensor],
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    block: int,
) -> None:
    """Step number `step` = 1, 2, ... in place. `state` has the codes and the scales of the mean and of the square; all
    are zeros before the first."""
    signed, unsigned = code(signed=True, device=param.device), code(signed=False, device=param.device)
    settings = {"step": step, "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
    flat, grads = param.reshape(-1), grad.reshape(-1)
    means, squares = state["mean"].view(-1), state["square"].view(-1)
    for rows, blocks in pieces(len(flat), block, PIECE.get(param.device.type, PIECE["cuda"])):
        mean = dequantize(means[rows], state["mean_scale"][blocks], signed, block=block)
        square = dequantize(squares[rows], state["square_scale"][blocks], unsigned, block=block)
        weights = flat[rows].float()
        adamw_step(weights, grads[rows].float(), mean, square, **settings)  # type: ignore[arg-type]
        flat[rows] = weights
        means[rows], state["mean_scale"][blocks] = quantize(mean, signed, block=block)
        squares[rows], state["square_scale"][blocks] = quantize(square, unsigned, block=block)
    if flat.data_ptr() != param.data_ptr():
        param.copy_(flat.view_as(param))


def pieces(n: int, block: int, size: int) -> Iterator[tuple[slice, slice]]:
    """`n` numbers in pieces of whole blocks, of about `size`: (which numbers, which blocks)."""
    at_once = max(size // block, 1)
    for first in range(0, n_blocks(n, block), at_once):
        yield slice(first * block, min((first + at_once) * block, n)), slice(first, first + at_once)


class AdamW8Bit(AdamW):
    """AdamW whose means are kept in 8 bits, in blocks of `block` numbers (2,048 in the paper; a smaller one is more
    exact, and 256 costs 3 % more memory).

    `keep` are the kinds of parameters ("matrix", "table", "vector") whose means stay in float32, as AdamW's.
    """

    gated = False
    step_if = Optimizer.step_if

    def __init__(
        self,
        params: ParamsT,
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        block: int = 256,
        keep: tuple[str, ...] = ("table",),
        lr_scale: dict[str, float] | None = None,
    ) -> None:
        if not 2 <= block <= 2**15:
            raise SettingError("block", block, f"a number of weights from 2 to {2**15}")
        for kind in keep:
            if kind not in KINDS:
                raise SettingError.unknown("keep", kind, KINDS)
        self._block, self._keep = block, tuple(keep)
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, lr_scale=lr_scale)

    def fresh(self, param: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        if not self._is_small(param, group):
            return super().fresh(param, group)
        state = {"step": torch.zeros((), device=param.device)}
        for name in ("mean", "square"):
            scales = n_blocks(param.numel(), self._block)
            state[name] = torch.zeros(param.shape, dtype=torch.uint8, device=param.device)
            state[f"{name}_scale"] = torch.zeros(scales, device=param.device)
        return state

    def _is_small(self, param: Tensor, group: dict[str, Any]) -> bool:
        """Whether its state is: kept in 8 bits."""
        return param.numel() >= SMALLEST and group.get("kind") not in self._keep

    def update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        in_full = [param for param in params if not self._is_small(param, group)]
        if in_full:
            super().update(in_full, group)
        settings = {name: group[name] for name in ("lr", "betas", "eps", "weight_decay")}
        small = [param for param in params if self._is_small(param, group)]
        states = [self.state_of(param, group) for param in small]
        for param, state, step in zip(small, states, self.count(states), strict=True):
            assert param.grad is not None
            adamw_8bit_step(param, param.grad, state, step=step, block=self._block, **settings)
