"""Data-parallel training over processes: each learns from its rows of a batch, and the gradients are added up.

Every process has the model, but its parameters lie in one piece of memory that all of them see: before a step the first
process writes the weights there, and no other copy is made. Each worker adds its gradients, which are weighted by the
targets of its rows (`tessera.scratch.gradients`), into memory of its own; the first process sums these up in the order
of the workers, so that the same run gives the same numbers, and makes the update.

The memory has no name in the file system, so it is gone with the last process, however that one ends. A worker ends
when the pipe to it is closed, which the operating system does for a process that is killed; and one that dies closes
its end, so that the first does not wait for it.

N workers give the numbers of one process, but for the rounding of sums. With dropout each has random numbers of its
own, so that the number of workers, like the seed, is a part of what a run is.
"""

import io
import math
import multiprocessing
import os
import pickle
import signal
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, Self

import numpy as np

from tessera.errors import FollowedError, LostError, TesseraError
from tessera.native.processors import n_processors
from tessera.scratch.decoder import Decoder
from tessera.scratch.gradients import Batch, Part, learn
from tessera.scratch.parameter import Parameter

ALIGNMENT = 64
THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
"""What the libraries under NumPy read when they are loaded: how many threads a product may take."""
SECONDS_TO_END = 5.0
Kinds = Mapping[str, tuple[tuple[int, ...], np.dtype]]
"""The shape and the type of each parameter."""


class Workers:
    """`n` processes that learn with `model`; to be used in a `with`, at whose end they are gone.

    A script that makes some is imported by each: what it does must stand under `if __name__ == "__main__":`.
    """

    def __init__(self, model: Decoder, n: int, *, seed: int = 0) -> None:
        self.model, self.n, self.seed = model, n, seed
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []
        self._weights: dict[str, np.ndarray] = {}
        self._grads: list[dict[str, np.ndarray]] = []

    def __enter__(self) -> Self:
        context = multiprocessing.get_context("spawn")  # a copy of a process with threads in it may hang
        kinds = {name: (param.shape, param.data.dtype) for name, param in self.model.parameters.items()}
        size = sum(_room(*kind) for kind in kinds.values())
        weights = context.RawArray("B", size)
        self._weights = _views(kinds, weights)
        skeleton = io.BytesIO()
        _Skeleton(skeleton, self.model).dump(self.model)
        try:
            for number in range(self.n):
                grads = context.RawArray("B", size)
                self._grads.append(_views(kinds, grads))
                own, other = context.Pipe()
                task = (skeleton.getvalue(), kinds, weights, grads, other, number, self.seed)
                process = context.Process(target=_work, args=task, daemon=True)
                with _threads(self.n):
                    process.start()
                other.close()
                self._processes.append(process)
                self._pipes.append(own)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._end()

    def learn(self, micro_batches: Sequence[Batch], n_targets: int, *, step: int) -> list[Part]:
        """Add the gradients of `micro_batches` to the model's; `n_targets` are those of the whole step."""
        parameters = self.model.parameters
        for name, view in self._weights.items():
            view[...] = parameters[name].data
        for number in range(self.n):
            self._send(number, ([_rows(batch, number, self.n) for batch in micro_batches], n_targets, step))
        parts = [part for number in range(self.n) for part in self._receive(number)]
        for views in self._grads:
            for name, view in views.items():
                parameters[name].grad += view
        return sorted(parts, key=lambda part: part.micro_batch)

    def _send(self, number: int, message: Any) -> None:
        try:
            self._pipes[number].send(message)
        except OSError:
            raise self._lost(number) from None

    def _receive(self, number: int) -> list[Part]:
        try:
            answer = self._pipes[number].recv()
        except (EOFError, OSError):
            raise self._lost(number) from None
        if isinstance(answer, _Failure):
            raise FollowedError(f"worker {number + 1} of {self.n}: {answer.why}", exit_code=answer.exit_code)
        return answer

    def _lost(self, number: int) -> LostError:
        process = self._processes[number]
        process.join(SECONDS_TO_END)
        code = process.exitcode
        how = f"was ended by signal {-code}" if code is not None and code < 0 else f"ended with status {code}"
        return LostError(f"worker {number + 1} of {self.n} {how}: the step was not made, and what was saved is good")

    def _end(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(SECONDS_TO_END)
            if process.is_alive():
                process.kill()
                process.join()
            process.close()
        self._processes, self._pipes = [], []
        self._weights, self._grads = {}, []


class _Failure:
    """What a worker sends in the place of an answer."""

    def __init__(self, error: Exception) -> None:
        own = isinstance(error, TesseraError)
        self.why = str(error) if own else traceback.format_exc()
        self.exit_code = error.exit_code if isinstance(error, TesseraError) else 1


def _work(
    skeleton: bytes,
    kinds: Kinds,
    weights: Any,
    grads: Any,
    pipe: Connection,
    number: int,
    seed: int,
) -> None:
    """The life of a worker: answers each message until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the first process says when it is over
    data, gradients = _views(kinds, weights), _views(kinds, grads)
    parameters = {name: _shared(data[name], gradients[name]) for name in kinds}
    model = _Body(io.BytesIO(skeleton), parameters).load()
    while True:
        try:
            micro_batches, n_targets, step = pipe.recv()
        except EOFError:
            return
        try:
            model.zero_grad()
            answer: Any = learn(model, micro_batches, n_targets, step=step, seed=seed, process=number)
        except Exception as error:
            answer = _Failure(error)
        try:
            pipe.send(answer)
        except OSError:  # the first process is gone
            return


def _rows(batch: Batch, number: int, n: int) -> Batch:
    """The rows of worker `number` of `n`: none where there are too few."""
    n_rows = len(batch[0])
    rows = slice(n_rows * number // n, n_rows * (number + 1) // n)
    inputs_BT, targets_BT, documents_BT = batch
    return inputs_BT[rows], targets_BT[rows], None if documents_BT is None else documents_BT[rows]


def _views(kinds: Kinds, memory: Any) -> dict[str, np.ndarray]:
    """`memory` as arrays, one behind the other, each at a multiple of ALIGNMENT."""
    views, at = {}, 0
    for name, (shape, dtype) in kinds.items():
        views[name] = np.frombuffer(memory, dtype, math.prod(shape), at).reshape(shape)
        at += _room(shape, dtype)
    return views


def _room(shape: tuple[int, ...], dtype: np.dtype) -> int:
    return -(-math.prod(shape) * dtype.itemsize // ALIGNMENT) * ALIGNMENT


class _Skeleton(pickle.Pickler):
    """Pickles a model with the names of its parameters in the place of their numbers."""

    def __init__(self, file: io.BytesIO, model: Decoder) -> None:
        super().__init__(file)
        self._names = {id(param): name for name, param in model.parameters.items()}

    def persistent_id(self, value: Any) -> str | None:
        return self._names.get(id(value))


class _Body(pickle.Unpickler):
    """Makes the model again, with these parameters."""

    def __init__(self, file: io.BytesIO, parameters: Mapping[str, Parameter]) -> None:
        super().__init__(file)
        self._parameters = parameters

    def persistent_load(self, name: str) -> Parameter:
        return self._parameters[name]


def _shared(data: np.ndarray, grad: np.ndarray) -> Parameter:
    parameter = Parameter(data)
    parameter.grad = grad
    return parameter


@contextmanager
def _threads(n: int) -> Iterator[None]:
    """What is started in the block shares the processors with n - 1 others."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, str(max(1, n_processors() // n))))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
