"""Decoding on a GPU: steps of static shapes, each captured once as a CUDA graph and replayed from then on.

A step that decodes is hundreds of small kernels, each of which the GPU has done before the processor has launched the
next. A graph launches all of them at once. From one replay to the next nothing may differ but the numbers in its
inputs, so shapes are filled up, and what else the processor would work out is computed on the GPU:

    rows     N, a power of two. Those that fill up write into a block of the cache that belongs to nobody.
    keys     S positions a row, in B blocks, a power of two; its own are the last ones. What fills up in front is
             another document, which no token sees, as in `model/paged.py`: every kind of bias and window holds.
    inputs   (N, 2 + B): the id of each row, its position, the blocks of its sequence. Where keys and values are
             written to and read from follows from these.

Each shape has a graph of its own, made when it is first met. They share their memory, as no two run at once. The head
is computed after the replay, for the wanted rows alone.

Each row is a sequence of its own here. All rows of one are in the cache before any of them looks, so a token and the
guesses behind it (`speculative.py`) make such a step too. Where it would gather far more than there is, as for a prompt
whose rows all have the same keys, a step is done as `TorchStep` does it.

N rows, B blocks, S positions, D model width.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from traceback import walk_tb
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from tessera.generate.requests import StepRows
from tessera.generate.torch_step import TorchStep, evaluating
from tessera.model.decoder import Decoder
from tessera.model.flow import Flow
from tessera.model.paged import Group, PagedCache, PagedFlow

SHORTEST = 64
"""No shape has fewer positions than these: it would hardly be faster."""
SURPLUS = 4
"""A step may gather so many times the positions that its sequences have, as powers of two come to, twice ..."""
FEW = 2**16
"""... or so many in all."""
WARM_UPS = 2
"""Steps before a capture: in the first ones libraries take their memory and choose their kernels."""

Step = Callable[[Tensor], Tensor]
"""From the inputs (N, 2 + B) to what the head reads, (N, D)."""


class Shape(NamedTuple):
    """What a step is filled up to: so many rows, each with the keys of so many blocks."""

    n_rows: int
    n_blocks: int


class GraphStep(TorchStep):
    """A `TorchStep` that replays its steps where few rows of each sequence make them; on a CPU, which has no graphs,
    it computes them in the same shapes.

    `why_not` says why no step of the model can be captured, or is None; then all are those of a `TorchStep`. As with
    any cache that lasts, the model may not change while this is in use; nor may it move, as graphs know where it was.
    """

    def __init__(
        self,
        model: Decoder,
        *,
        n_blocks: int,
        block_size: int = 16,
        n_vocab: int | None = None,
        cache: str = "float",
    ) -> None:
        # One block more, which belongs to nobody.
        super().__init__(model, n_blocks=n_blocks + 1, block_size=block_size, n_vocab=n_vocab, cache=cache)
        self.n_blocks = n_blocks
        self.why_not = why_not(model, block_size=block_size, cache=cache)
        run = partial(static_hidden, model, self.cache)
        self._run: Step = _Graphs(run, model.device) if model.device.type == "cuda" else run

    def shape_for(self, rows: StepRows) -> Shape | None:
        """What this step is filled up to; None if it is for `TorchStep`."""
        if self.why_not is not None:
            return None
        positions_N, last_N = np.asarray(rows.positions), np.diff(rows.sequences, append=-1) != 0
        longest, size = int(positions_N.max()) + 1, self.block_size
        n_blocks = power_of_two(-(-max(longest, SHORTEST) // size))
        shape = Shape(power_of_two(len(positions_N)), min(n_blocks, -(-self.context // size)))
        n_there = int((positions_N[last_N] + 1).sum())
        surplus = shape.n_rows * shape.n_blocks * size > max(FEW, SURPLUS * n_there)
        return None if surplus or longest > self.context else shape  # beyond the context it is an error, told there

    def _hidden(self, rows: StepRows, tables: Sequence[Sequence[int]]) -> Tensor:
        shape = self.shape_for(rows)
        if shape is None:
            return super()._hidden(rows, tables)
        n, inputs_NC = len(rows.ids), np.zeros((shape.n_rows, 2 + shape.n_blocks), dtype=np.int64)
        inputs_NC[:n, 0], inputs_NC[:n, 1], inputs_NC[n:, 2:] = rows.ids, rows.positions, self.n_blocks
        for row, sequence in enumerate(rows.sequences):
            blocks = tables[sequence][: shape.n_blocks]
            inputs_NC[row, 2 : 2 + len(blocks)] = blocks
        return self._run(torch.from_numpy(inputs_NC))


def power_of_two(n: int) -> int:
    """The smallest one that is not smaller than `n`.

    >>> [power_of_two(n) for n in (1, 2, 3, 8, 9)]
    [1, 2, 4, 8, 16]
    """
    return 1 << (n - 1).bit_length()


def static_hidden(model: Decoder, cache: PagedCache, inputs_NC: Tensor) -> Tensor:
    """What the head reads after each row, (N, D); no more than numbers depends on the numbers of the inputs."""
    inputs_NC = inputs_NC.to(model.device)
    flow = static_flow(cache, inputs_NC[:, 1], inputs_NC[:, 2:], context=model.context)
    return model.hidden(inputs_NC[None, :, 0], cache, flow)[0]


def static_flow(cache: PagedCache, positions_N: Tensor, tables_NB: Tensor, *, context: int) -> PagedFlow:
    """The flow of rows that are each the last of their sequence."""
    N, S = len(tables_NB), tables_NB.shape[1] * cache.block_size
    places_NS = positions_N[:, None] + torch.arange(1 - S, 1, device=positions_N.device)
    there_NS = places_NS.clamp(min=0)
    starts_NS = tables_NB.gather(1, there_NS // cache.block_size) * cache.block_size
    # Behind all positions of the memory is the one that fills up.
    reads_NS = torch.where(places_NS < 0, cache.capacity, starts_NS + there_NS % cache.block_size)
    alike = Flow(start=S - 1, length=1, documents_BT=(places_NS >= 0).long())
    group = Group(size=N, rows=slice(0, N), writes=reads_NS[:, -1], reads=reads_NS.flatten(), flow=alike)
    return PagedFlow(start=0, length=N, given_1N=positions_N[None], groups=[group], most=min(S, context))


class _Graphs:
    """A step on CUDA that is captured for each shape of its inputs. What it returns is written over by the next one."""

    def __init__(self, run: Step, device: torch.device) -> None:
        self._run, self._device = run, device
        self._stream, self._pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()
        self._made: dict[torch.Size, tuple[Tensor, torch.cuda.CUDAGraph, Tensor]] = {}

    def __call__(self, inputs_NC: Tensor) -> Tensor:
        with torch.cuda.device(self._device):
            if inputs_NC.shape not in self._made:
                self._made[inputs_NC.shape] = self._captured(inputs_NC.to(self._device))
            held_NC, graph, h_ND = self._made[inputs_NC.shape]
            held_NC.copy_(inputs_NC)
            graph.replay()
            return h_ND

    def _captured(self, held_NC: Tensor) -> tuple[Tensor, torch.cuda.CUDAGraph, Tensor]:
        """The inputs, the graph, and what it computes of them. The steps before it are this one, over and over."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UPS):
                self._run(held_NC)
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # What other threads do on the GPU meanwhile is none of its business.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            h_ND = self._run(held_NC)
        return held_NC, graph, h_ND


class _Steps(nn.Module):
    """A step as a module, so that it can be computed with other tensors in the place of the model's own."""

    def __init__(self, model: Decoder, block_size: int, kept: str) -> None:
        super().__init__()
        self.model, self.block_size, self.kept = model, block_size, kept

    def forward(self) -> Tensor:
        n_blocks = -(-self.model.context // self.block_size)
        like = self.model.new_cache(1, 1)
        cache = PagedCache(like, n_blocks=n_blocks, block_size=self.block_size, kept=self.kept)
        return static_hidden(self.model, cache, torch.zeros(2, 2 + n_blocks, dtype=torch.long))


def why_not(model: Decoder, *, block_size: int = 16, cache: str = "float") -> str | None:
    """Why steps of the model cannot be captured, in a sentence; None if they can.

    It is tried with tensors that have a shape and no numbers: who asks for one, to go on by it, gets no answer.
    """
    module = _Steps(model, block_size, cache)
    named = chain(module.named_parameters(), module.named_buffers())
    empty = {name: torch.empty_like(tensor, device="meta") for name, tensor in named}
    try:
        with torch.inference_mode(), evaluating(model):
            functional_call(module, empty, ())
    except RuntimeError as error:
        owners = [frame.f_locals.get("self") for frame, _ in walk_tb(error.__traceback__)]
        piece = next(type(each).__name__ for each in reversed(owners) if isinstance(each, nn.Module))
        said = str(error).splitlines()[0]
        return f"steps cannot be captured as CUDA graphs: {piece} was not to be computed without numbers ({said})"
    return None
