"""Continuous batching: requests join and leave a running batch at any step (Yu et al. 2022, "Orca").

A step is one call of the backend for rows of all running requests: one row for each that is answering, and for each
whose prompt is being read a chunk of it (Agrawal et al. 2023, "Sarathi"), so that a long prompt stalls nobody. Chunks
share what room there is evenly, short prompts first served.

Requests wait in one queue, first come, first served, and nobody overtakes: a large one that does not fit yet holds the
others up, but is never starved by them. Who is let in has been promised all blocks that it can need (`blocks.py`).

A `guesser` (speculative.py) guesses what follows, and a step then has rows for an answer's guesses too. Those of them
that do not come true are in the cache behind its end, where the next step writes over them.

What begins like something that is in the cache is not computed again. If it is just being computed for another request,
it is waited for.

Past the window. A model sees at most `context` tokens. When a sequence is that long, the newest context // 2 tokens are
kept and read again from position 0, and the text goes on with between context // 2 and context tokens in sight. A begin
token that stood in front of the prompt stays in front. For that a request gives back its blocks; if others need them
before it has what it needs, it goes back to the head of the queue and is read again later.
"""

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tessera.errors import InputError, SettingError, TesseraError
from tessera.generate.blocks import Blocks, Key
from tessera.generate.logits import best_ids
from tessera.generate.requests import Answer, Backend, Event, StepRows
from tessera.generate.sampling import Sampling, row_generators
from tessera.generate.sequences import CachedSequence, Chunk, Request, Said
from tessera.generate.speculative import Guesser
from tessera.tokenizers.contract import Tokenizer

if TYPE_CHECKING:
    from tessera.generate.constrain.constraint import Constraint, Constraints

GUESS_ROWS = 32
"""So many rows of a step are guesses, at the most: with many answers each row costs, whether it comes true or not."""


class Scheduler:
    """The queue and the batch. Not for several threads at once: `engine_thread.py` is.

    `n_sequences` run at once at the most; a step has about `step_rows` rows, more if more are answering.
    """

    def __init__(
        self,
        backend: Backend,
        tokenizer: Tokenizer,
        *,
        n_sequences: int = 64,
        step_rows: int = 256,
        guesser: Guesser[Any] | None = None,
    ) -> None:
        for name, value in (("n_sequences", n_sequences), ("step_rows", step_rows)):
            if value < 1:
                raise SettingError(name, value, "at least 1")
        if guesser is not None and guesser.n_vocab not in (None, backend.n_vocab):
            expected = f"a draft model with the same vocabulary as the model, {backend.n_vocab}"
            raise SettingError("guesser", f"one of {guesser.n_vocab} tokens", expected)
        self.backend, self.tokenizer, self._guesser = backend, tokenizer, guesser
        self.n_sequences, self.step_rows = n_sequences, step_rows
        self.blocks = Blocks(n_blocks=backend.n_blocks, size=backend.block_size)
        self.n_computed = 0
        """How many rows have been computed."""
        self.n_shared = 0
        """How many positions need not be, as they were there."""
        self.n_guessed = 0
        """How many tokens have been guessed."""
        self.n_right = 0
        """How many of these came true."""
        self._requests: dict[int, Request] = {}
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []
        self._events: list[Event] = []
        self._next_id = 0
        self._constraints: Constraints | None = None

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
        generator: np.random.Generator | None = None,
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
        sequences = [CachedSequence(list(each)) for each in prompts]
        if sampling.max_tokens:
            self._check_fits(sequences, sampling.max_tokens)
        generator = row_generators(sampling.seed, 1)[0] if generator is None else generator
        constraint = self._constraint(sampling)
        answer = Answer(self.tokenizer, list(prompt), sampling, generator, constraint)
        begin = self.tokenizer.begin_id
        fronts = [begin if each[0] == begin else None for each in prompts]
        request = Request(self._next_id, answer, sequences, fronts)
        self._next_id += 1
        if sampling.max_tokens:
            if self._guesser is not None and negative is None:
                request.guesses = self._guesser.start(prompt, answer.chooser)
            self._requests[request.id] = request
            self._waiting.append(request)
        else:
            text = answer.close("length")
            self._events.append(Event(request.id, text, completion=answer.completion))
        return request.id

    def cancel(self, id: int) -> bool:
        """Drop a request, and free at once what it holds; False if there is none, or none any more."""
        n_told = len(self._events)
        self._events = [event for event in self._events if event.request != id]  # an answer of no tokens has ended
        request = self._requests.get(id)
        if request is not None:
            self._drop(request)
        return request is not None or len(self._events) < n_told

    def step(self) -> list[Event]:
        """One call of the backend, and what came of it. If it raises, all is as before and may be tried again."""
        self._admit()
        chunks = self._with_guesses(self._chunks())
        if chunks:
            for chunk, said in zip(chunks, self._compute(chunks), strict=True):
                self._advance(chunk.sequence, chunk.n)
                chunk.sequence.said = said
            for request in list(self._running):
                if all(sequence.said is not None for sequence in request.sequences):
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

    def _check_fits(self, sequences: Sequence[CachedSequence], max_tokens: int) -> None:
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

    def _needed(self, sequence: CachedSequence, n_to_come: int) -> int:
        """How many blocks, at the most: the last token to come is not looked back at."""
        return self.blocks.needed(min(self.backend.context, len(sequence.ids) + n_to_come - 1))

    def _constraint(self, sampling: Sampling) -> "Constraint | None":
        if sampling.regex is None and sampling.json_schema is None:
            return None
        # Its parsers take a tenth of a second to load, which other answers need not wait for.
        from tessera.generate.constrain.constraint import Constraints
        from tessera.generate.constrain.vocabulary import Vocabulary

        if self._constraints is None:
            self._constraints = Constraints(Vocabulary.of(self.tokenizer))
        return self._constraints.of(sampling)

    def _admit(self) -> None:
        """Let in whom there is room for, in the order of the queue."""
        while self._waiting and self._let_in(self._waiting[0]):
            self._running.append(self._waiting.popleft())

    def _let_in(self, request: Request) -> bool:
        n_running = sum(len(each.sequences) for each in self._running)
        if n_running + len(request.sequences) > self.n_sequences:
            return False
        needs = [self._needed(sequence, request.answer.n_to_come) for sequence in request.sequences]
        shared = [block for sequence in request.sequences for block in self._known(sequence)]
        if not self.blocks.admits(sum(needs), shared):
            return False
        for sequence, need in zip(request.sequences, needs, strict=True):
            sequence.promised = need
            self.blocks.promised += need
        for sequence in request.sequences:
            self._share(sequence)
        return True

    def _known(self, sequence: CachedSequence) -> list[int]:
        """The blocks of others that the sequence can go on with."""
        if sequence.pending <= 1:
            return []
        sequence.add_keys(self.blocks.size)
        return self.blocks.known(sequence.keys_ahead(self.blocks.size))

    def _share(self, sequence: CachedSequence) -> None:
        for block in self._known(sequence):
            self.blocks.share(block)
            sequence.promised -= 1
            sequence.blocks.append(block)
            sequence.length += self.blocks.size
            sequence.n_published += 1
            self.n_shared += self.blocks.size

    def _chunks(self) -> list[Chunk]:
        """Which sequences go on in this step, and by how many tokens: first those that answer."""
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
        chunks = [Chunk(sequence, 1) for sequence in answering]
        room = max(self.step_rows - len(answering), len(reading))
        for n_before, sequence in enumerate(sorted(reading, key=lambda sequence: sequence.pending)):
            n = min(sequence.pending, room // (len(reading) - n_before))
            room -= n
            chunks.append(Chunk(sequence, n))
        return chunks

    def _with_guesses(self, chunks: list[Chunk]) -> list[Chunk]:
        """Guesses behind the last tokens of those that answer, as far as these may go on and there is room for rows."""
        if self._guesser is None:
            return chunks
        of_sequence = {request.sequences[0]: request for request in self._running if request.guesses is not None}
        answering = [chunk.sequence for chunk in chunks if chunk.sequence.pending == 1]
        asked = [sequence for sequence in answering if sequence in of_sequence]
        room = GUESS_ROWS // max(1, len(answering))
        if not asked or not room:
            return chunks
        requests = [of_sequence[sequence] for sequence in asked]
        most = [
            min(room, request.answer.n_to_come - 1, self.backend.context - len(sequence.ids))
            for request, sequence in zip(requests, asked, strict=True)
        ]
        found = self._guesser.guess([(request.guesses, n) for request, n in zip(requests, most, strict=True)])
        guesses = dict(zip(asked, found, strict=True))
        self.n_guessed += sum(map(len, found))
        return [chunk._replace(guesses=guesses.get(chunk.sequence, ())) for chunk in chunks]

    def _compute(self, chunks: Sequence[Chunk]) -> list[Said | None]:
        """What the model says after each that comes to its end."""
        rows = StepRows([], [], [], [])
        for number, (sequence, n, guesses) in enumerate(chunks):
            begin, end = sequence.length, sequence.length + n + len(guesses)
            while len(sequence.blocks) * self.blocks.size < end:
                sequence.blocks.append(self.blocks.take())
                sequence.promised -= 1
            rows.ids.extend(sequence.ids[begin : begin + n])
            rows.ids.extend(guesses)
            rows.sequences.extend([number] * (end - begin))
            rows.positions.extend(range(begin, end))
            if sequence.pending == n:
                rows.wanted.extend(range(len(rows.ids) - 1 - len(guesses), len(rows.ids)))
        logits_WV = self.backend.step(rows, [chunk.sequence.blocks for chunk in chunks])
        self.n_computed += len(rows.ids)
        return _of_each(chunks, logits_WV)

    def _advance(self, sequence: CachedSequence, n: int) -> None:
        sequence.length += n
        sequence.add_keys(self.blocks.size)
        for i in range(sequence.n_published, sequence.length // self.blocks.size):
            self.blocks.publish(sequence.blocks[i], sequence.keys[i])
            sequence.n_published += 1

    def _choose(self, request: Request) -> None:
        """The next token of an answer, and one more for each guess that comes true; they go on all its sequences."""
        said = [sequence.said for sequence in request.sequences]
        for sequence in request.sequences:
            sequence.said = None
        own, negative = said[0], said[1] if len(said) > 1 else None
        assert own is not None
        chosen: list[int] = []
        for place in range(len(own.guesses) + 1):
            negative_V = None if negative is None else negative.logits_SV[place]
            if not self._add_token(request, own.logits_SV[place], negative_V, own.best_S[place]):
                return
            chosen.append(request.sequences[0].ids[-1])
            if place == len(own.guesses) or chosen[-1] != own.guesses[place]:
                break
            self.n_right += 1
            self._advance(request.sequences[0], 1)
        if request.guesses is not None:
            request.guesses.add(chosen, len(own.guesses))
        for sequence, front in zip(request.sequences, request.fronts, strict=True):
            if len(sequence.ids) > self.backend.context:
                self._slide(sequence, front)
        if any(not sequence.blocks for sequence in request.sequences):
            self._read_again(request)

    def _add_token(
        self, request: Request, logits_V: np.ndarray, negative_V: np.ndarray | None, best: int | None
    ) -> bool:
        """One token of an answer; whether it goes on after it."""
        answer = request.answer
        try:
            id, text = answer.choose(logits_V, negative_V, best=best)
        except TesseraError as error:  # of this request alone: who asked for it is told, the others go on
            self._drop(request)
            self._events.append(Event(request.id, error=error))
            return False
        if answer.finish is not None:
            self._drop(request)
            self._events.append(Event(request.id, text, id, answer.completion))
            return False
        self._events.append(Event(request.id, text, id))
        for sequence in request.sequences:
            sequence.ids.append(id)
        return True

    def _slide(self, sequence: CachedSequence, front: int | None) -> None:
        """Go on with the newest half of what was in sight."""
        self._give_back(sequence)
        kept = sequence.ids[-max(1, self.backend.context // 2) :]
        if front is not None and len(kept) > 1:
            kept[0] = front
        sequence.ids, sequence.keys = kept, []

    def _read_again(self, request: Request) -> None:
        """A request of which a sequence has given its blocks back goes on at once if all that it needs is there."""
        empty = [sequence for sequence in request.sequences if not sequence.blocks]
        needs = [self._needed(sequence, request.answer.n_to_come) for sequence in empty]
        if self.blocks.admits(sum(needs)):
            for sequence, need in zip(empty, needs, strict=True):
                sequence.promised = need
                self.blocks.promised += need
            return
        for sequence in request.sequences:
            self._give_back(sequence)
        self._running.remove(request)
        self._waiting.appendleft(request)

    def _give_back(self, sequence: CachedSequence) -> None:
        self.blocks.release(sequence.blocks)
        self.blocks.promised -= sequence.promised
        sequence.blocks, sequence.promised, sequence.length, sequence.n_published = [], 0, 0, 0

    def _drop(self, request: Request) -> None:
        if request.guesses is not None:
            request.guesses.close()
        for sequence in request.sequences:
            self._give_back(sequence)
        (self._running if request in self._running else self._waiting).remove(request)
        del self._requests[request.id]


def _of_each(chunks: Sequence[Chunk], logits_WV: np.ndarray) -> list[Said | None]:
    """The rows of each chunk that comes to its end."""
    best_W = best_ids(logits_WV)
    found: list[Said | None] = []
    begin = 0
    for sequence, n, guesses in chunks:
        end = begin + 1 + len(guesses)
        whole = sequence.pending == n
        found.append(Said(logits_WV[begin:end], best_W[begin:end], guesses) if whole else None)
        begin = end if whole else begin
    return found
