"""FSDP: a model that is cut over the processes, so that none of them holds all of it.

Of each block, and of all that is in none, every process keeps its rows of the weights, of the gradients and of the
optimizer's state. The weights of a block are gathered when it computes, and dropped after it; its gradients are summed
to those who keep them (Zhao et al. 2023, "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel", after
Rajbhandari et al. 2020, "ZeRO", stage 3). PyTorch cuts and gathers (`fully_shard`); the optimizer is given the rows as
plain parameters that share their memory, so that it works on them with all its speed and knows of nothing.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Shard

from tessera.errors import SettingError
from tessera.model.decoder import Decoder
from tessera.objectives.objective import Objective
from tessera.optim import OPTIMIZERS
from tessera.optim.clip import clip_grad_norm
from tessera.train.distributed import Many, check_way
from tessera.train.world import World


class Shards(Many):
    """Of each parameter this process keeps some rows."""

    is_sharded = True

    def __init__(self, objective: Objective, world: World, device: torch.device) -> None:
        super().__init__(objective, world)
        model = objective.model
        world.copy_([*objective.parameters(), *objective.buffers()])
        self._n_future = len(model.future) if isinstance(model, Decoder) else 0
        self._mesh = init_device_mesh(device.type, (world.size,))
        for block in (*model.blocks,) if isinstance(model, Decoder) else ():
            fully_shard(block, mesh=self._mesh)
        fully_shard(objective, mesh=self._mesh)  # what is in no block: tables, final norm, head
        for part in objective.modules():
            if isinstance(part, FSDPModule):  # the losses are shares of the whole already: a sum, not a mean
                part.set_gradient_divide_factor(1.0)
                part.set_force_sum_reduction_for_comms(True)
        self._root = cast(Any, objective)
        self._root.set_reduce_scatter_unused_params(True)
        self._rows = {
            name: nn.Parameter(_rows(parameter), requires_grad=parameter.requires_grad)
            for name, parameter in objective.named_parameters()
        }

    def stand_in(self, batch: Any) -> Any:
        """What another process learns from: its gradient is not counted twice, as its weight is 0 here."""
        others = (self.rows_of_rank(batch, rank) for rank in range(self.world.size))
        return next(rows for rows in others if rows.n_targets)

    @contextmanager
    def micro_batch(self, *, last: bool, learns: bool) -> Iterator[None]:
        self._root.set_requires_gradient_sync(last)
        loads = [] if learns else [load.clone() for load in self.loads()]
        with self.world.watched():
            yield
        for load, before in zip(self.loads() if loads else [], loads, strict=True):
            load.copy_(before)

    def refused_anywhere(self, refused: bool) -> bool:
        if refused:
            expected = "smaller, with a larger train.accumulate: out of memory, after which fsdp cannot go on by itself"
            raise SettingError("train.batch_size", "as it is", expected)
        return False

    def reduce(self) -> None:
        for name, parameter in self.objective.named_parameters():
            rows, gradient = self._rows[name], parameter.grad
            assert rows.data_ptr() == _rows(parameter).data_ptr(), "the optimizer's rows are the model's"
            rows.grad = None if gradient is None else _rows(gradient)

    def learned(self) -> list[Tensor]:
        return list(self._rows.values())

    def clip(self, max_norm: float) -> float:
        own = float(clip_grad_norm(self.learned(), math.inf))
        norm = math.sqrt(sum(row[0] ** 2 for row in self.world.numbers([own])))
        if math.isfinite(max_norm) and (scale := max_norm / (norm + 1e-6)) < 1.0:
            torch._foreach_mul_([rows.grad for rows in self._rows.values() if rows.grad is not None], scale)
        return norm

    def forget_gradients(self) -> None:
        super().forget_gradients()
        for rows in self._rows.values():
            rows.grad = None

    @contextmanager
    def looking(self) -> Iterator[None]:
        """All processes look together: the weights are gathered as they are needed."""
        with torch.no_grad():
            self._root.unshard()
            try:
                yield
            finally:
                self._root.reshard()

    def adopt(self, optimizer: torch.optim.Optimizer) -> None:
        name = next((name for name, kind in OPTIMIZERS.items() if type(optimizer) is kind), type(optimizer).__name__)
        check_way("fsdp", optimizer=name, n_future=self._n_future)
        names = super().names()
        for group in optimizer.param_groups:
            group["params"] = [self._rows[names[id(parameter)]] for parameter in group["params"]]

    def names(self) -> dict[int, str]:
        return {id(rows): name for name, rows in self._rows.items()}

    def fit(self, name: str, tensor: Tensor) -> Tensor:
        kept = name.split(".", 2)[2] if name.startswith("optimizer.") else name.removeprefix("average.")
        parameter = self._parameters().get(kept)
        if parameter is None or tensor.shape != parameter.shape:
            return tensor
        parts = tensor.chunk(self.world.size)
        own = parts[self.world.rank] if self.world.rank < len(parts) else tensor[:0]
        own = own.to(parameter.device, copy=True)
        return own if name.startswith("optimizer.") else self._as_part(own, parameter)

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        parameters, result = self._parameters(), dict(tensors)
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                parameter = parameters[name.split(".", 2)[2]]
                if tensor.ndim and tensor.shape == _rows(parameter).shape:
                    result[name] = self._as_part(tensor, parameter)
        return result

    def _parameters(self) -> dict[str, Any]:
        return dict(self.objective.named_parameters())

    def _as_part(self, rows: Tensor, parameter: Any) -> Tensor:
        shape, stride = parameter.shape, parameter.stride()
        return DTensor.from_local(rows, self._mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)


@torch.no_grad()
def _rows(tensor: Any) -> Tensor:
    """This process's part of a parameter or gradient that is cut by rows."""
    rows: Tensor = tensor.to_local()
    return rows
