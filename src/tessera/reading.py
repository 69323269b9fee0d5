"""What a run has read: how much of each source by a step, and which rows the step itself was made of.

The run keeps the data cursor before each step, and how many rows each of its micro-batches had. From these the same
rows are drawn again, by the same stream; nothing is guessed. That is how to look at the batch behind a sudden loss.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from tessera.config import check
from tessera.corpus import reopen_data
from tessera.data.mixture import Mixture
from tessera.data.prepared import Prepared
from tessera.data.shuffle import Purpose, permutation
from tessera.data.stream import Epochs, Row, Stream
from tessera.data.tasks import TaskRows
from tessera.errors import InputError
from tessera.opening import reopen_material
from tessera.recipe import Recipe, build_stream
from tessera.store.records import Draw
from tessera.store.run import Run
from tessera.tokenizers import Tokenizer, tokenizer_from_json

ONE_TEXT, EXAMPLES = "text", "examples"
"""The name of the source where there is no mixture."""


@dataclass(frozen=True)
class SourceRead:
    """How much of a source was read, in rows, in tokens that were predicted, and in epochs."""

    name: str
    rows: int
    tokens: int
    epochs: float


@dataclass(frozen=True)
class Stretch:
    """Consecutive tokens of one document that a row predicts: from which of its tokens on, how many, and their text."""

    document: str
    offset: int
    tokens: int
    text: str


@dataclass(frozen=True)
class RowRead:
    """A row of a step: in which micro-batch, of which source, in which epoch of it, and what."""

    micro_batch: int
    source: str
    epoch: int
    stretches: list[Stretch]


@dataclass(frozen=True)
class StepRead:
    """What was read by the end of a step, and what the step itself read, where that was asked for.

    Rows that were drawn and then passed over (`train.on_nonfinite`, `train.on_spike`) count as read.
    """

    step: int
    sources: list[SourceRead]
    rows: list[RowRead]


def what_was_read(path: str | Path, *, step: int | None = None, rows: bool = False) -> StepRead:
    """What the run at `path` had read by `step` (the last one, if not given); with `rows`, also the rows of that step.

    Rows drawn more than once, where a run was broken off and went on, are counted once: they were learned from once.
    """
    with Run.open(path) as run:
        draw = run.draw(step)
        if draw is None:
            which = "any step" if step is None else f"step {step:,}"
            raise InputError(f"{path}: it is not noted what {which} read")
        recipe = check(Recipe, run.recipe)
        tokenizer = tokenizer_from_json(run.tokenizer_json)
        if recipe.reads != "documents":
            return _examples_read(reopen_material(recipe, run, tokenizer), draw, tokenizer, rows=rows)
        prepared = reopen_data(recipe, run, tokenizer)
        stream = build_stream(recipe, prepared, end_id=tokenizer.end_id)
        stream.restore(draw.cursor)
        drawn: list[tuple[int, Row]] = []
        for number, size in enumerate(draw.rows):
            stream.batch_size = size
            drawn += [(number, row) for row in stream.draw()]
        sources = list(_sources(stream, run.rows_drawn(draw.step)))
    told = _Places(prepared, tokenizer)
    return StepRead(draw.step, sources, [told.row(number, row) for number, row in drawn] if rows else [])


def _sources(stream: Stream | Mixture, rows_drawn: int) -> Iterator[SourceRead]:
    if isinstance(stream, Mixture):
        for source, n in zip(stream.sources.values(), stream.drawn, strict=True):
            yield _source(source.name, source.stream, n)
    else:
        drawn = stream.epoch * stream.n_rows + stream.position if isinstance(stream, Epochs) else rows_drawn
        yield _source(ONE_TEXT, stream, drawn)


def _source(name: str, stream: Stream, n: int) -> SourceRead:
    return SourceRead(name, n, stream.n_targets(n), n / stream.n_rows)


def _examples_read(examples: Any, draw: Draw, tokenizer: Tokenizer, *, rows: bool) -> StepRead:
    """The same of examples: a row has one or several, of which the learned tokens count."""
    from tessera.material_examples import examples_of  # it brings torch

    source = examples.rows["train"].source
    if isinstance(source, TaskRows):
        raise InputError("a run that tries answers to tasks reads what it said itself: nothing of a file")
    source.restore(draw.cursor)
    drawn: list[RowRead] = []
    for number, size in enumerate(draw.rows):
        source.batch_size, epoch = size, source.epoch
        for row in source.draw():
            stretches = [
                Stretch(each.where, 0, each.n_learned, tokenizer.decode(each.ids.tolist()))
                for each in examples_of(source, row)
            ]
            drawn.append(RowRead(number, EXAMPLES, epoch, stretches))
    learned = np.array([sum(each.n_learned for each in examples_of(source, row)) for row in range(source.n)])
    part = permutation(source.n, seed=source.seed, purpose=Purpose.EPOCH, counter=source.epoch)[: source.position]
    n_rows = source.epoch * source.n + source.position
    tokens = int(source.epoch * learned.sum() + learned[part].sum())
    return StepRead(draw.step, [SourceRead(EXAMPLES, n_rows, tokens, n_rows / source.n)], drawn if rows else [])


class _Places:
    """Finds the document of a place in the shard."""

    def __init__(self, prepared: Prepared, tokenizer: Tokenizer) -> None:
        self._tokens, self._tokenizer = prepared.train.tokens, tokenizer
        self._names, sizes = ["train.bin"], [len(self._tokens)]
        if prepared.documents_sha256:
            found = [(each["name"], each["tokens"]) for each in prepared.documents() if each["half"] == "train"]
            self._names, sizes = [name for name, _ in found], [size for _, size in found]
        self._ends = list(accumulate(sizes))
        ends = accumulate(prepared.part_counts[part.name]["train"].n_tokens for part in prepared.parts)
        self._begins = dict(zip((part.name for part in prepared.parts), [0, *ends], strict=False))

    def row(self, number: int, row: Row) -> RowRead:
        base = self._begins.get(row.source, 0)
        stretches = [each for begin, end in row.pieces for each in self._stretches(base + begin, base + end)]
        return RowRead(number, row.source or ONE_TEXT, row.epoch, stretches)

    def _stretches(self, begin: int, end: int) -> Iterator[Stretch]:
        while begin < end:
            index = bisect_right(self._ends, begin)
            first = self._ends[index - 1] if index else 0
            stop = min(end, self._ends[index])
            text = self._tokenizer.decode(self._tokens[begin:stop].tolist())
            yield Stretch(self._names[index], begin - first, stop - begin, text)
            begin = stop
