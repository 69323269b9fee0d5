"""Continuous batching: requests join and leave a running batch at any step (Yu et al. 2022, "Orca").

A step is one call of the backend for rows of all running requests: one row for each that is answering, and for each
whose prompt is being read a chunk of it (Agrawal et al. 2023, "Sarathi"), so that a long prompt stalls nobody. Chunks
share what room there is evenly, short prompts first served.

Requests wait in one queue, first come, first served, and nobody overtakes: a large one that does not fit yet holds the
others up, but is never starved by them. Who is let in has been promised all blocks that it can need (`blocks.py`).

What begins like something that is in the cache is not computed again. If it is just being computed for another request,
it is waited for.

Past the window. A model sees at most `context` tokens. When a sequence is that long, the newest context // 2 tokens are
kept and read again from position 0, and the text goes on with between context // 2 and context tokens in sight. A begin
token that stood in front of the prompt stays in front. For that a request gives back its blocks; if others need them
before it has what it needs, it goes back to the head of the queue and is read again later.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tessera.errors import InputError, SettingError, TesseraError
from tessera.generate.blocks import Blocks, Key, block_key
from tessera.generate.constrain.constraint import Constraint
from tessera.generate.constrain.vocabulary import Vocabulary
from tessera.generate.requests import Answer, Backend, Event, StepRows
from tessera.generate.sampling import Sampling, row_generators
from tessera.tokenizers.contract import Tokenizer

CONSTRAINTS = 32
"""So many compiled constraints are kept for requests that ask for the same."""


@dataclass(eq=False)
class _Sequence:
    """Tokens in sight of the model: `ids`, of which the first `length` are in the cache."""

    ids: list[int]
    length: int = 0
    blocks: list[int] = field(default_factory=list)
    promised: int = 0
    keys: list[Key] = field(default_factory=list)
    """Of all blocks that `ids` fill."""
    n_published: int = 0
    logits_V: Tensor | None = None
    """After the last of `ids`, until the next token is chosen."""

    @property
    def pending(self) -> int:
        return len(self.ids) - self.length

    def add_keys(self, size: int) -> None:
        """Keys for those blocks that are filled since the last call."""
        while (end := (len(self.keys) + 1) * size) <= len(self.ids):
            self.keys.append(block_key(self.keys[-1] if self.keys else b"", self.ids[end - size : end]))

    def keys_ahead(self, size: int) -> list[Key]:
        """Of the blocks that could be shared next: at least the last token must be computed."""
        if self.length != len(self.blocks) * size:
            return []
        return self.keys[len(self.blocks) : (len(self.ids) - 1) // size]


@dataclass(eq=False)
class _Request:
    """An answer, and the sequences that it is chosen by: its own, and that of a negative prompt under guidance."""

    id: int
    answer: Answer
    sequences: list[_Sequence]
    fronts: list[int | None]
    """The begin token that stays in front of each sequence, if it had one."""


class Scheduler:
    """The queue and the batch. Not for several threads at once: `engine_thread.py` is.

    `n_sequences` run at once at the most; a step has about `step_rows` rows, more if more are answering.
    """

    def __init__(self, backend: Backend, tokenizer: Tokenizer, *, n_sequences: int = 64, step_rows: int = 256) -> None:
        for name, value in (("n_sequences", n_sequences), ("step_rows", step_rows)):
            if value < 1:
                raise SettingError(name, value, "at least 1")
        self.backend, self.tokenizer = backend, tokenizer
        self.n_sequences, self.step_rows = n_sequences, step_rows
        self.blocks = Blocks(n_blocks=backend.n_blocks, size=backend.block_size)
        self.n_computed = 0
        """How many rows have been computed."""
        self.n_shared = 0
        """How many positions need not be, as they were there."""
        self._requests: dict[int, _Request] = {}
        self._waiting: deque[_Request] = deque()
        self._running: list[_Request] = []
        self._events: list[Event] = []
        self._next_id = 0
        self._vocabulary: Vocabulary | None = None
        self._constraints: dict[str, Constraint] = {}

    @property
    def busy(self) -> bool:
        """Whether another step has something to do, or to tell."""
        return bool(self._requests or self._events)

    @property
    def n_running(self) -> int:
        return len(self._running)

    @property
    def n_waiting(self) -> int:
        return len(self._waiting)

    def add(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        *,
        generator: torch.Generator | None = None,
        negative: Sequence[int] | None = None,
    ) -> int:
        """Put a request into the queue; returns the number that its events have.

        Its random numbers are those of the first row under its seed, or of `generator`. Guidance needs the `negative`
        prompt. A request that can never fit is an `InputError`.
        """
        if (sampling.guidance is None) != (negative is None):
            raise InputError("guidance and a negative prompt go together: one of them is missing")
        prompts = [prompt] if negative is None else [prompt, negative]
        for each in prompts:
            self._check_prompt(each)
        sequences = [_Sequence(list(each)) for each in prompts]
        if sampling.max_tokens:
            self._check_fits(sequences, sampling.max_tokens)
        generator = row_generators(sampling.seed, 1)[0] if generator is None else generator
        constraint = self._constraint(sampling)
        answer = Answer(self.tokenizer, list(prompt), sampling, generator, constraint)
        begin = self.tokenizer.begin_id
        fronts = [begin if each[0] == begin else None for each in prompts]
        request = _Request(self._next_id, answer, sequences, fronts)
        self._next_id += 1
        if sampling.max_tokens:
            self._requests[request.id] = request
            self._waiting.append(request)
        else:
            text = answer.close("length")
            self._events.append(Event(request.id, text, completion=answer.completion))
        return request.id

    def cancel(self, id: int) -> bool:
        """Drop a request, and free at once what it holds; False if there is none, or none any more."""
        request = self._requests.get(id)
        if request is None:
            return False
        self._drop(request)
        return True

    def step(self) -> list[Event]:
        """One call of the backend, and what came of it. If it raises, all is as before and may be tried again."""
        self._admit()
        chunks = self._chunks()
        if chunks:
            logits_WV = self._compute(chunks)
            done = [sequence for sequence, n in chunks if sequence.pending == n]
            for sequence, n in chunks:
                self._advance(sequence, n)
            for sequence, logits_V in zip(done, logits_WV, strict=True):
                sequence.logits_V = logits_V
            for request in list(self._running):
                if all(sequence.logits_V is not None for sequence in request.sequences):
                    self._choose(request)
        events, self._events = self._events, []
        return events

    def check(self) -> None:
        """An `AssertionError` if a block is leaked, or more is promised than there is."""
        sequences = [sequence for request in self._requests.values() for sequence in request.sequences]
        self.blocks.check([sequence.blocks for sequence in sequences])
        assert self.blocks.promised == sum(sequence.promised for sequence in sequences)
        assert sum(len(request.sequences) for request in self._running) <= self.n_sequences
        assert {request.id for request in [*self._running, *self._waiting]} == set(self._requests)
        assert all(not sequence.blocks for request in self._waiting for sequence in request.sequences)

    def _check_prompt(self, prompt: Sequence[int]) -> None:
        if not 0 < len(prompt) <= self.backend.context:
            raise InputError(
                f"the prompt is {len(prompt)} tokens long and the model's context is {self.backend.context}: "
                "expected at least 1 token and no more than the context"
            )

    def _check_fits(self, sequences: Sequence[_Sequence], max_tokens: int) -> None:
        needed = sum(self._needed(sequence, max_tokens) for sequence in sequences)
        if needed > self.blocks.n_blocks:
            size, room = self.blocks.size, self.blocks.size * self.blocks.n_blocks
            raise InputError(
                f"the request may need {needed * size} positions of the cache, which has {room}: "
                f"shorten the prompt ({len(sequences[0].ids)} tokens), lower max_tokens ({max_tokens}), "
                "or give the cache more room"
            )
        if len(sequences) > self.n_sequences:
            raise InputError(f"guidance takes two sequences, and no more than {self.n_sequences} may run at once")

    def _needed(self, sequence: _Sequence, n_to_come: int) -> int:
        """How many blocks, at the most: the last token to come is not looked back at."""
        return self.blocks.needed(min(self.backend.context, len(sequence.ids) + n_to_come - 1))

    def _constraint(self, sampling: Sampling) -> Constraint | None:
        if sampling.regex is None and sampling.json_schema is None:
            return None
        name = repr((sampling.regex, sampling.json_schema))
        if name not in self._constraints:
            if self._vocabulary is None:
                self._vocabulary = Vocabulary.of(self.tokenizer)
            made = Constraint.of(sampling, self._vocabulary)
            assert made is not None
            if len(self._constraints) == CONSTRAINTS:
                del self._constraints[next(iter(self._constraints))]
            self._constraints[name] = made
        return self._constraints[name]

    def _admit(self) -> None:
        """Let in whom there is room for, in the order of the queue."""
        while self._waiting and self._let_in(self._waiting[0]):
            self._running.append(self._waiting.popleft())

    def _let_in(self, request: _Request) -> bool:
        n_running = sum(len(each.sequences) for each in self._running)
        if n_running + len(request.sequences) > self.n_sequences:
            return False
        n_to_come = request.answer.sampling.max_tokens - len(request.answer.ids)
        needs = [self._needed(sequence, n_to_come) for sequence in request.sequences]
        shared = [block for sequence in request.sequences for block in self._known(sequence)]
        if not self.blocks.admits(sum(needs), shared):
            return False
        for sequence, need in zip(request.sequences, needs, strict=True):
            sequence.promised = need
            self.blocks.promised += need
        for sequence in request.sequences:
            self._share(sequence)
        return True

    def _known(self, sequence: _Sequence) -> list[int]:
        """The blocks of others that the sequence can go on with."""
        if not self.backend.shares or sequence.pending <= 1:
            return []
        sequence.add_keys(self.blocks.size)
        return self.blocks.known(sequence.keys_ahead(self.blocks.size))

    def _share(self, sequence: _Sequence) -> None:
        for block in self._known(sequence):
            self.blocks.share(block)
            sequence.promised -= 1
            sequence.blocks.append(block)
            sequence.length += self.blocks.size
            sequence.n_published += 1
            self.n_shared += self.blocks.size

    def _chunks(self) -> list[tuple[_Sequence, int]]:
        """Which sequences go on in this step, and by how many tokens."""
        answering, reading = [], []
        claimed: set[Key] = set()
        for sequence in (sequence for request in self._running for sequence in request.sequences):
            self._share(sequence)
            if sequence.pending == 1:
                answering.append(sequence)
            elif sequence.pending > 1:
                ahead = sequence.keys_ahead(self.blocks.size)
                if ahead and ahead[0] in claimed:
                    continue  # someone is computing it
                claimed.update(sequence.keys[sequence.length // self.blocks.size :])
                reading.append(sequence)
        chunks = [(sequence, 1) for sequence in answering]
        room = max(self.step_rows - len(answering), len(reading))
        for n_before, sequence in enumerate(sorted(reading, key=lambda sequence: sequence.pending)):
            n = min(sequence.pending, room // (len(reading) - n_before))
            room -= n
            chunks.append((sequence, n))
        return chunks

    def _compute(self, chunks: Sequence[tuple[_Sequence, int]]) -> Tensor:
        """The logits of those sequences that come to their end."""
        ids: list[int] = []
        sequences: list[int] = []
        positions: list[int] = []
        wanted: list[int] = []
        for number, (sequence, n) in enumerate(chunks):
            end = sequence.length + n
            while len(sequence.blocks) * self.blocks.size < end:
                sequence.blocks.append(self.blocks.take())
                sequence.promised -= 1
            ids += sequence.ids[sequence.length : end]
            sequences += [number] * n
            positions += range(sequence.length, end)
            if end == len(sequence.ids):
                wanted.append(len(ids) - 1)
        tables = [sequence.blocks for sequence, _ in chunks]
        logits_WV = self.backend.step(StepRows(ids, sequences, positions, wanted), tables)
        self.n_computed += len(ids)
        return logits_WV.cpu()  # once, and not for each row: choosing is done there

    def _advance(self, sequence: _Sequence, n: int) -> None:
        sequence.length += n
        if not self.backend.shares:
            return
        sequence.add_keys(self.blocks.size)
        for i in range(sequence.n_published, sequence.length // self.blocks.size):
            self.blocks.publish(sequence.blocks[i], sequence.keys[i])
            sequence.n_published += 1

    def _choose(self, request: _Request) -> None:
        """The next token of an answer, which goes on all its sequences."""
        answer, logits = request.answer, [sequence.logits_V for sequence in request.sequences]
        assert logits[0] is not None
        try:
            id, text = answer.choose(logits[0], logits[1] if len(logits) > 1 else None)
        except TesseraError as error:  # of this request alone: who asked for it is told, the others go on
            self._drop(request)
            self._events.append(Event(request.id, error=error))
            return
        if answer.finish is not None:
            self._drop(request)
            self._events.append(Event(request.id, text, id, answer.completion))
            return
        self._events.append(Event(request.id, text, id))
        for sequence, front in zip(request.sequences, request.fronts, strict=True):
            sequence.logits_V = None
            sequence.ids.append(id)
            if len(sequence.ids) > self.backend.context:
                self._slide(sequence, front)
        if any(not sequence.blocks for sequence in request.sequences):
            self._read_again(request)

    def _slide(self, sequence: _Sequence, front: int | None) -> None:
        """Go on with the newest half of what was in sight."""
        self._give_back(sequence)
        kept = sequence.ids[-max(1, self.backend.context // 2) :]
        if front is not None and len(kept) > 1:
            kept[0] = front
        sequence.ids, sequence.keys = kept, []

    def _read_again(self, request: _Request) -> None:
        """A request of which a sequence has given its blocks back goes on at once if all that it needs is there."""
        n_to_come = request.answer.sampling.max_tokens - len(request.answer.ids)
        empty = [sequence for sequence in request.sequences if not sequence.blocks]
        needs = [self._needed(sequence, n_to_come) for sequence in empty]
        if self.blocks.admits(sum(needs)):
            for sequence, need in zip(empty, needs, strict=True):
                sequence.promised = need
                self.blocks.promised += need
            return
        for sequence in request.sequences:
            self._give_back(sequence)
        self._running.remove(request)
        self._waiting.appendleft(request)

    def _give_back(self, sequence: _Sequence) -> None:
        self.blocks.release(sequence.blocks)
        self.blocks.promised -= sequence.promised
        sequence.blocks, sequence.promised, sequence.length, sequence.n_published = [], 0, 0, 0

    def _drop(self, request: _Request) -> None:
        for sequence in request.sequences:
            self._give_back(sequence)
        (self._running if request in self._running else self._waiting).remove(request)
        del self._requests[request.id]
