"""A training into a checkpoint and back, by one process or by all of them together.

Everything that decides the next step goes in: what `tessera.train.checkpoint` names, the averages, the loss scaler,
what the guard remembers, and the random streams of every process. One process, or the first of several that have the
same, writes it; where each has a part, each writes its own (`tessera.store.sharded`). Either opens with any number of
processes, as what is read are whole tensors.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from tessera.errors import InputError
from tessera.store.checkpoints import CheckpointStore, Loaded
from tessera.store.file_checkpoints import FileCheckpoints
from tessera.train.averages import PREFIX
from tessera.train.checkpoint import capture, capture_generators, restore, restore_generators
from tessera.train.distributed import branch_generators
from tessera.train.step import Step


@dataclass
class Saving:
    """Writes and reads the state around a `Step`. All processes call each method at the same moment."""

    step: Step
    checkpoints: CheckpointStore

    def steps(self) -> list[int]:
        """The steps that there are; on all processes the same."""
        return self.step.parallel.world.share(self.checkpoints.steps())

    def write(self, number: int, progress: Mapping[str, Any], *, keep: int, protect: set[int]) -> None:
        """Step `number`; returns when it is safe on disk. `progress["improved"]` marks it as the best."""
        with self.step.averages.in_use():
            tensors, meta = self._state()
            meta["progress"] = dict(progress)
            if self.step.parallel.is_sharded:
                self._write_parts(number, tensors, meta, keep, protect)
            else:
                self._first(lambda: self.checkpoints.write(number, tensors, meta, keep=keep, protect=protect))
        if progress["improved"]:
            self.mark_best(number)

    def mark_best(self, number: int) -> None:
        """Keep step `number` whatever comes later."""
        self._first(lambda: self.checkpoints.mark_best(number))

    def _first(self, action: Any) -> None:
        self.step.parallel.world.first(action)

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        step, parallel = self.step, self.step.parallel
        tensors, meta = capture(step.objective, step.optimizer, parallel.names())
        average, average_meta = step.averages.state()
        tensors, meta = tensors | average, meta | average_meta
        if step.precision.name == "fp16":
            meta["scaler"] = step.scaler.state_dict()
        meta["guard"], meta["parts"] = step.guard.state(), step.memory.parts
        if parallel.world.size > 1:
            (drawn, meta["rng"]), *others = parallel.world.gather(capture_generators())
            tensors |= drawn
            meta["rng_of"] = {str(rank): of_one for rank, (_, of_one) in enumerate(others, 1)}
            for rank, (drawn, _) in enumerate(others, 1):
                tensors |= {f"rng_of.{rank}.{name}": tensor for name, tensor in drawn.items()}
        return tensors, meta

    def _write_parts(
        self, number: int, tensors: dict[str, Tensor], meta: dict[str, Any], keep: int, protect: set[int]
    ) -> None:
        parallel = self.step.parallel
        if not isinstance(self.checkpoints, FileCheckpoints):
            raise InputError("train.parallel = fsdp writes each process's part to files of its own: take store=files")
        from tessera.store.sharded import write_parts  # torch's distributed checkpoints: heavy, and for fsdp alone

        world, store = parallel.world, self.checkpoints
        with ExitStack() as stack:

            def commit() -> None:
                stack.close()
                store.settle(number, keep, protect)

            folder = world.first(lambda: str(stack.enter_context(store.staged(number))))
            with world.watched():
                write_parts(store, Path(folder), number, parallel.whole(tensors), meta)
            world.first(commit)

    def read(self, number: int | None = None) -> Loaded:
        """Put step `number` back, or the newest that verifies, which the first process finds."""
        parallel, step = self.step.parallel, self.step
        found: list[Loaded] = []

        def find() -> list[Any]:
            found.append(self.checkpoints.read(number))
            return [found[0].step, found[0].skipped]

        chosen, skipped = parallel.world.first(find)
        loaded = found[0] if found else self.checkpoints.read(chosen)
        loaded = Loaded(chosen, loaded.tensors, loaded.meta, skipped)
        own = {
            name: parallel.fit(name, tensor)
            for name, tensor in loaded.tensors.items()
            if not name.startswith("rng_of.")
        }
        trained = {name: tensor for name, tensor in own.items() if not name.startswith(PREFIX)}
        restore(step.objective, step.optimizer, trained, loaded.meta, parallel.names())
        self._restore_generators(loaded)
        step.averages.restore(own, loaded.meta)
        if "scaler" in loaded.meta:
            step.scaler.load_state_dict(loaded.meta["scaler"])
        return loaded

    def _restore_generators(self, loaded: Loaded) -> None:
        """This process's own; a rank that there was none of then begins a stream of its own."""
        rank = str(self.step.parallel.world.rank)
        kept = loaded.meta.get("rng_of", {})
        if rank in kept:
            prefix = f"rng_of.{rank}."
            tensors = {
                name.removeprefix(prefix): one for name, one in loaded.tensors.items() if name.startswith(prefix)
            }
            restore_generators(tensors, kept[rank])
        else:
            branch_generators(int(rank))
