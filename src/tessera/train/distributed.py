"""How several processes share a training: each keeps a copy of the model (DDP), or a part of it (FSDP).

All processes draw the same batches and take each its rows of them, so that the batches of a step are the same however
many processes there are. The loss of a part is weighted by its targets over the targets of the whole step: the sum of
all gradients is then that of one process, whatever the padding. There is one exchange of gradients a step, after the
last micro-batch.

    ddp    Li et al. 2020, "PyTorch Distributed": the gradients are summed over all copies; all make the same update.
    fsdp   Zhao et al. 2023, "PyTorch FSDP": each process keeps its rows of the weights, gradients and optimizer state
           (`tessera.train.sharded`).
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tessera.errors import SettingError
from tessera.model.moe import MixtureOfExperts
from tessera.objectives.objective import Objective
from tessera.optim.clip import clip_grad_norm
from tessera.train.checkpoint import seed_generators
from tessera.train.drawing import n_rows
from tessera.train.memory import rows_of
from tessera.train.world import SOLO, World

BUCKET_BYTES = 32 * 2**20
"""Gradients are summed in rows of about so many bytes: many small exchanges would each wait for the network."""
ELEMENTWISE = ("sgd", "sgd-decay", "adam", "adamw", "adamw-schedule-free", "lion")
"""The optimizers that treat each number by itself, so that a part of a matrix is updated as it is in the whole."""


def check_way(way: str, *, optimizer: str, n_future: int = 0, store: str = "files") -> None:
    """Raise a `SettingError` for what processes cannot do together that share a training by `way`."""
    if way != "fsdp":
        return
    if optimizer not in ELEMENTWISE:
        choices = f"one that needs no whole matrices ({', '.join(ELEMENTWISE)}), or train.parallel = ddp"
        raise SettingError("optimizer", optimizer, f"with fsdp {choices}")
    if n_future:
        raise SettingError("model.n_future", n_future, "0 with fsdp, as its heads are not always all at work; or ddp")
    if store != "files":
        raise SettingError("store", store, "files with fsdp, where each process writes its part; or ddp")


class Parallel:
    """One process, to which everything belongs; what is said of it here holds for the others too."""

    is_sharded = False

    def __init__(self, objective: Objective, world: World = SOLO) -> None:
        self.objective = objective
        self.world = world

    def part(self, batch: Any) -> Any:
        """This process's rows of a batch; None where nothing in them is learned."""
        return batch

    def stand_in(self, batch: Any) -> Any:
        """Rows to compute with in its place, where the others cannot compute without this process."""
        return None

    @contextmanager
    def micro_batch(self, *, last: bool, learns: bool) -> Iterator[None]:
        """Around forward and backward of a part, or of what stands in for it; `last`: of the step."""
        yield

    def refused_anywhere(self, refused: bool) -> bool:
        """Whether memory was refused to any process, from whether it was to this one."""
        return refused

    def reduce(self) -> None:
        """Make the gradients those of the whole step, after the backward passes of all its parts."""

    def learned(self) -> list[Tensor]:
        """What this process updates: parameters, or its parts of them, with their gradients."""
        return list(self.objective.parameters())

    def clip(self, max_norm: float) -> float:
        """Scale the gradients to a global norm of at most `max_norm`; the norm before."""
        return float(clip_grad_norm(self.learned(), max_norm))

    def updated(self) -> None:
        """Called after each update: what the model learns without a gradient."""
        self.objective.updated()

    def forget_gradients(self) -> None:
        self.objective.zero_grad(set_to_none=True)

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Around what reads the model between two steps: validation, samples."""
        with torch.inference_mode():
            yield

    def adopt(self, optimizer: torch.optim.Optimizer) -> None:
        """Let an optimizer without state, made for the objective's parameters, update what this process `learned`."""

    def names(self) -> dict[int, str]:
        """`id` -> name of each parameter as the optimizer knows it."""
        return {id(parameter): name for name, parameter in self.objective.named_parameters()}

    def fit(self, name: str, tensor: Tensor) -> Tensor:
        """What this process keeps of a whole tensor of a checkpoint."""
        return tensor

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of this process, each as the part that it is of a whole one."""
        return dict(tensors)


class Many(Parallel):
    """What all ways to share have in common."""

    def part(self, batch: Any) -> Any:
        own = self.rows_of_rank(batch, self.world.rank)
        return own if own.n_targets or not batch.n_targets else None  # all of it empty is an error, as in one process

    def rows_of_rank(self, batch: Any, rank: int) -> Any:
        """A process's rows of a batch."""
        n, size = n_rows(batch), self.world.size
        return rows_of(batch, slice(n * rank // size, n * (rank + 1) // size))

    def updated(self) -> None:
        loads = self.loads()
        self.world.sum_(loads)  # what experts were chosen by all
        super().updated()

    def loads(self) -> list[Tensor]:
        """The counts that mixtures of experts keep of what they chose since the last update."""
        parts = self.objective.modules()
        return [part.load for part in parts if isinstance(part, MixtureOfExperts) and part.balance == "bias"]


class Replicas(Many):
    """DDP: a whole model in each process."""

    def __init__(self, objective: Objective, world: World) -> None:
        super().__init__(objective, world)
        world.copy_([*objective.parameters(), *objective.buffers()])

    def refused_anywhere(self, refused: bool) -> bool:
        return any(row[0] for row in self.world.numbers([refused]))

    def reduce(self) -> None:
        """A parameter that has a gradient in any process has one in all, as in one process with all of the batch."""
        parameters = [parameter for parameter in self.objective.parameters() if parameter.requires_grad]
        has = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.int32)
        self.world.sum_([has])
        used = [parameter for parameter, n in zip(parameters, has.tolist(), strict=True) if n]
        for parameter in used:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in used if parameter.grad is not None]
        buckets = _buckets(gradients)
        rows = [torch.cat([gradient.flatten() for gradient in bucket]) for bucket in buckets]
        self.world.sum_(rows)
        for bucket, row in zip(buckets, rows, strict=True):
            parts = row.split([gradient.numel() for gradient in bucket])
            for gradient, part in zip(bucket, parts, strict=True):
                gradient.copy_(part.view_as(gradient))


def _buckets(gradients: list[Tensor]) -> list[list[Tensor]]:
    """In order, those of one type and device together, as many as make up BUCKET_BYTES."""
    buckets: list[list[Tensor]] = []
    size = 0
    for gradient in gradients:
        alike = buckets and (buckets[-1][0].dtype, buckets[-1][0].device) == (gradient.dtype, gradient.device)
        if not alike or size >= BUCKET_BYTES:
            buckets.append([])
            size = 0
        buckets[-1].append(gradient)
        size += gradient.numel() * gradient.element_size()
    return buckets


def _shards(objective: Objective, world: World, device: torch.device) -> Parallel:
    from tessera.train.sharded import Shards  # most of a second to import, and for fsdp alone

    return Shards(objective, world, device)


WAYS: dict[str, Callable[[Objective, World, torch.device], Parallel]] = {
    "ddp": lambda objective, world, device: Replicas(objective, world),
    "fsdp": _shards,
}


def distribute(way: str, objective: Objective, world: World, device: torch.device) -> Parallel:
    """Share the training of an objective, whose weights become those of the first process, among all of `world`.

    From then on each process draws its random numbers, as for dropout, from a stream of its own.
    """
    if world.size == 1:
        return Parallel(objective)
    parallel = WAYS[way](objective, world, device)
    branch_generators(world.rank)
    return parallel


def branch_generators(rank: int) -> None:
    """Start the generators of a process from where those of all stand, and its rank; the first one goes on there."""
    if rank:
        seed = torch.get_rng_state().numpy().tobytes() + rank.to_bytes(8, "little")
        seed_generators(int.from_bytes(hashlib.sha256(seed).digest()[:7], "little"))
