"""When a step does not fit into memory: the same step, in smaller micro-batches.

Each micro-batch is cut in halves along its rows, and the step is made again from its start: same batches, same total,
same generators. Their weighted gradients add up to the same sum, in another order: equal but for the last bits of a
float, and for dropout, which draws for each part on its own. From then on all steps are cut so, and the number of parts
is in the checkpoint: a run that is resumed after it goes on bit for bit, and one that met it twice met it the same way.

Where the system promises more memory than there is (Linux, unless told otherwise) a process on the CPU is killed
instead of being refused; what a run needs is therefore also looked at before it starts (`tessera.train.room`).
"""

import dataclasses
import gc
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from tessera.errors import InputError, SettingError
from tessera.optim.optimizer import Optimizer
from tessera.train.drawing import n_rows

Result = TypeVar("Result")
ASKED = re.compile(r"tried to allocate [\d.]+ \w+", re.IGNORECASE)
SAID = ("can't allocate memory", "not enough memory", "std::bad_alloc", "out of memory", "failed to allocate")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was refused: torch says so on a GPU, and on the CPU only in the words of a RuntimeError."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error).lower() for said in SAID)


def allocate(optimizer: torch.optim.Optimizer) -> None:
    """Let the optimizer take the memory for its state; `InputError` where there is not enough."""
    if not isinstance(optimizer, Optimizer):
        return
    try:
        optimizer.allocate()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        size, kind = f"{optimizer.memory() / 1e9:.2f} GB", type(optimizer).__name__
        raise InputError(
            f"the state of {kind} does not fit into memory: it needs {size} beside the weights; take a smaller model, "
            "or an optimizer that keeps less (adamw-8bit, adafactor)"
        ) from None


def cut(batch: Any, parts: int) -> list[Any]:
    """A batch in `parts` of its rows, as even as may be; those in which nothing is learned are left out.

    A batch is a dataclass whose tensors, or arrays, have a row for each sample.
    """
    rows = n_rows(batch)
    ends = [round(rows * number / parts) for number in range(parts + 1)]
    pieces = [rows_of(batch, slice(start, end)) for start, end in pairwise(ends) if end > start]
    return [piece for piece in pieces if piece.n_targets]


def _tensors(batch: Any) -> dict[str, Any]:
    named = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    return {name: value for name, value in named.items() if isinstance(value, Tensor | np.ndarray)}


def rows_of(batch: Any, rows: slice) -> Any:
    """Some rows of a batch, as a batch."""
    return dataclasses.replace(batch, **{name: value[rows] for name, value in _tensors(batch).items()})


@dataclass
class MemoryFit:
    """Makes steps in as many parts as fit. `say` is told when there have to be more."""

    parts: int = 1
    """How many each drawn micro-batch is cut into."""
    say: Callable[[str], None] = lambda line: None
    processes: int = 1
    """So many share each micro-batch by its rows."""
    anywhere: Callable[[bool], bool] = lambda refused: refused
    """Whether memory was refused to any of the processes, from whether it was to this one."""

    def run(
        self, micro_batches: Sequence[Any], work: Callable[[list[Any]], Result], undo: Callable[[], None]
    ) -> Result:
        """`work` on the micro-batches, in parts; where memory is refused, `undo` and again in twice as many."""
        generators = None
        while True:
            generators = generators or _generators()
            result = self._attempt(micro_batches, work)
            said = result.said if isinstance(result, _Refused) else None
            if not self.anywhere(said is not None):
                return result  # type: ignore[return-value]
            del result
            undo()
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self._halve(micro_batches, said or "refused to another process")
            _set_generators(generators)

    def _attempt(self, micro_batches: Sequence[Any], work: Callable[[list[Any]], Result]) -> "Result | _Refused":
        """The result or the refusal: returned, not raised, as a traceback would keep what was allocated."""
        whole = self.parts == 1
        batches = list(micro_batches) if whole else [part for batch in micro_batches for part in cut(batch, self.parts)]
        try:
            return work(batches)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            asked = ASKED.search(str(error))
            return _Refused(asked[0] if asked else "refused")

    def _halve(self, micro_batches: Sequence[Any], said: str) -> None:
        rows = max(n_rows(batch) for batch in micro_batches)
        if self.parts * self.processes >= rows:
            needed = "a smaller model or a shorter model.context: one row of a batch does not fit into memory"
            raise SettingError("train.batch_size", rows, f"{needed} ({said})")
        self.parts *= 2
        size, times = -(-rows // self.parts), self.parts * len(micro_batches)
        self.say(
            f"out of memory ({said}): micro-batches of {rows} are learned from in parts of {size} from here on; a step "
            f"sees the same samples as before. To begin like this: train.batch_size={size} train.accumulate={times}"
        )


@dataclass(frozen=True)
class _Refused:
    said: str


Generators = tuple[Any, Any, Tensor, list[Tensor]]


def _generators() -> Generators:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda


def _set_generators(generators: Generators) -> None:
    python, numpy, cpu, cuda = generators
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(cpu)
    if cuda:
        torch.cuda.set_rng_state_all(cuda)
