"""The generation engine: a prompt in, text out as it is made.

The prompt goes through the model once and leaves its keys and values in a cache (prefill); after that each token
costs one position (decode). Only the last position goes through the head. `scheduler.py` does it, for any number of
answers at once, and says what happens past the window.

With a decoder, of PyTorch or of NumPy, each call has a cache of its own, as large as it needs, so that weights may
change between two (a rollout) and nothing stale is ever read. With a `Backend`, such as `cpu.model.CpuModel`, there is
one cache for all calls, and what the next one may share is kept in it. A `guesser` (speculative.py) makes answers come
sooner, and changes none.

Rows. Answer i to a prompt draws from its own stream, made of the prompt's seed and i, so it does not depend on n, on
the other rows or on when they end, up to the rounding of matrix products of another height.
"""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import nlargest
from typing import TYPE_CHECKING, Any

import numpy as np

from tessera.errors import InputError, SettingError
from tessera.generate.beam import Beam, EarlyStopping, beam_search
from tessera.generate.beam_cache import BeamCache, blocks_needed
from tessera.generate.blocks import Blocks
from tessera.generate.requests import Backend, Completion, Event, Finish, decoder_behind
from tessera.generate.sampling import Sampling, prompt_seeds, row_generators
from tessera.generate.scheduler import Scheduler
from tessera.generate.speculative import Guesser
from tessera.tokenizers.contract import Tokenizer

if TYPE_CHECKING:
    from tessera.model.decoder import Decoder
    from tessera.scratch.decoder import Decoder as NumpyDecoder

__all__ = ["BeamCompletion", "Completion", "Engine", "Finish"]

ROWS = 256
"""So many answers are decoded at once, at the most."""
STEP_ROWS = 512
"""So many rows has a step while prompts are read."""
BLOCK = 16
"""Positions of a block of the cache."""


@dataclass(frozen=True)
class BeamCompletion(Completion):
    """An answer that beam search has found."""

    score: float = 0.0
    """Its log-probability, over its length to the power of `length_penalty`."""


class _Desk:
    """A scheduler, and a box for each request: several streams of one thread may be read in turns."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self._boxes: dict[int, deque[Event]] = {}

    def add(
        self, ids: Sequence[int], sampling: Sampling, generator: np.random.Generator, negative: Sequence[int] | None
    ) -> int:
        number = self.scheduler.add(ids, sampling, generator=generator, negative=negative)
        self._boxes[number] = deque()
        return number

    def events(self, numbers: Sequence[int]) -> Iterator[Event]:
        """All events of these requests, as they come. Who stops reading cancels them."""
        going = dict.fromkeys(numbers)
        try:
            while going:
                found = [event for number in going for event in self._boxes[number]]
                for number in going:
                    self._boxes[number].clear()
                for event in found:
                    if event.error is not None:
                        raise event.error
                    if event.last:
                        del going[event.request]
                    yield event
                if going and not found:
                    for event in self.scheduler.step():
                        self._boxes[event.request].append(event)
        finally:
            for number in numbers:
                self.scheduler.cancel(number)
                self._boxes.pop(number, None)


class Engine:
    """Generates text with a model and its tokenizer.

    The model is in evaluation mode during each step and as it was between two, so that a stream may be read while
    training.
    """

    def __init__(
        self,
        model: "Decoder | NumpyDecoder | Backend",
        tokenizer: Tokenizer,
        *,
        guesser: Guesser[Any] | None = None,
        cache: str = "float",
    ) -> None:
        if model.n_vocab < tokenizer.n_vocab:
            raise InputError(
                f"the model has a vocabulary of {model.n_vocab} and the tokenizer one of {tokenizer.n_vocab}: "
                "they do not belong together"
            )
        self.tokenizer = tokenizer
        self.context = model.context
        self._n_vocab = tokenizer.n_vocab
        self.model = model
        self._guesser, self._cache = guesser, cache
        self._desk = self._new_desk(model) if isinstance(model, Backend) else None

    def stream(
        self, prompt: str | Sequence[int], sampling: Sampling | None = None, *, truncate: bool = False
    ) -> Iterator[str]:
        """The answer in pieces of text, each as soon as it is certain: no half characters, no part of a stop text.

        A prompt longer than the context is an `InputError`, unless `truncate` keeps its end. An empty prompt stands
        for the beginning of a document. A text gets the tokenizer's begin token in front, where it has one; ids are
        taken as they are.
        """
        sampling = sampling or Sampling()
        return self._stream(self._prompt_ids(prompt, truncate=truncate), sampling)

    def generate(
        self,
        prompt: str | Sequence[int],
        sampling: Sampling | None = None,
        *,
        n: int | None = None,
        truncate: bool = False,
    ) -> list[str]:
        """`n` answers to one prompt (that of `sampling` unless said), decoded together."""
        return [completion.text for completion in self.complete(prompt, sampling, n=n, truncate=truncate)]

    def complete(
        self,
        prompt: str | Sequence[int],
        sampling: Sampling | None = None,
        *,
        n: int | None = None,
        truncate: bool = False,
    ) -> list[Completion]:
        """The same, with the ids of each answer and why it ended."""
        sampling = sampling or Sampling()
        ids = self._prompt_ids(prompt, truncate=truncate)
        return self.complete_many([ids], sampling, n=n, seeds=[sampling.seed])[0]

    def complete_many(
        self,
        prompts: Sequence[str | Sequence[int]],
        sampling: Sampling | None = None,
        *,
        n: int | None = None,
        seeds: Sequence[int | None] | None = None,
    ) -> list[list[Completion]]:
        """`n` answers to each prompt, all decoded together; with `best_of` the most probable ones of so many.

        `seeds` has one for each prompt, which alone would have the same answers under it; without them they are made of
        the seed of `sampling` and the number of the prompt.
        """
        sampling = sampling or Sampling()
        n = sampling.n if n is None else n
        if n < 1:
            raise SettingError("n", n, "a whole number, 1 or greater")
        ids = [self._prompt_ids(prompt, truncate=False) for prompt in prompts]
        seeds = prompt_seeds(sampling.seed, len(ids)) if seeds is None else seeds
        if len(seeds) != len(ids):
            raise InputError(f"{len(seeds)} seeds for {len(ids)} prompts")
        n_made = max(n, sampling.best_of or n)
        asked = sampling
        if n_made > n and sampling.logprobs is None:
            asked = Sampling(**{name: getattr(sampling, name) for name in sampling.model_fields_set} | {"logprobs": 0})
        made = self._completions([each for each in ids for _ in range(n_made)], asked, seeds, n_made)
        rows = [made[i * n_made : (i + 1) * n_made] for i in range(len(ids))]
        return rows if n_made == n else [nlargest(n, of_prompt, key=_mean_logprob) for of_prompt in rows]

    def beam(
        self,
        prompt: str | Sequence[int],
        *,
        width: int = 4,
        n: int = 1,
        max_tokens: int = 200,
        length_penalty: float = 1.0,
        early_stopping: EarlyStopping = False,
    ) -> list[BeamCompletion]:
        """The `n` most probable answers that `width` beams find, the best first (beam.py); nothing is drawn.

        Prompt and answer must fit into the context together.
        """
        ids = self._prompt_ids(prompt, truncate=False)
        if self._desk is None:
            blocks = Blocks(n_blocks=max(1, blocks_needed(len(ids), max_tokens, width, BLOCK)), size=BLOCK)
            backend = self._new_backend(blocks.n_blocks)
        else:
            blocks, backend = self._desk.scheduler.blocks, self._desk.scheduler.backend
        with BeamCache(backend, blocks, ids, width=width, max_tokens=max_tokens) as score:
            found = beam_search(
                score,
                ids,
                n=n,
                beams=width,
                max_tokens=max_tokens,
                ends=self.tokenizer.end_ids,
                length_penalty=length_penalty,
                early_stopping=early_stopping,
            )
        return [self._of_beam(beam, ids) for beam in found]

    def next_distribution(self, prompt: str | Sequence[int], *, truncate: bool = False) -> np.ndarray:
        """The probability of each token to follow `prompt`, (n_vocab of the tokenizer,) in float32."""
        ids = self._prompt_ids(prompt, truncate=truncate)
        asked = Sampling(max_tokens=1, logprobs=self._n_vocab, seed=0)
        (choice,) = self.complete(ids, asked)[0].choices
        found_V = np.zeros(self._n_vocab, np.float32)
        for id, logprob in choice.top:
            found_V[id] = math.exp(logprob)
        return found_V

    def _stream(self, prompt_ids: list[int], sampling: Sampling) -> Iterator[str]:
        desk = self._desk_for([prompt_ids], sampling)
        number = desk.add(prompt_ids, sampling, row_generators(sampling.seed, 1)[0], self._negative(sampling))
        for event in desk.events([number]):
            if event.text:
                yield event.text

    def _completions(
        self, prompts: Sequence[list[int]], sampling: Sampling, seeds: Sequence[int | None], n: int
    ) -> list[Completion]:
        """An answer to each of the prompts, of which n in a row share a seed."""
        desk, negative = self._desk_for(prompts, sampling), self._negative(sampling)
        generators = [generator for seed in seeds for generator in row_generators(seed, n)]
        numbers = [
            desk.add(ids, sampling, generator, negative) for ids, generator in zip(prompts, generators, strict=True)
        ]
        found = {event.request: event.completion for event in desk.events(numbers) if event.completion is not None}
        return [found[number] for number in numbers]

    def _negative(self, sampling: Sampling) -> list[int] | None:
        guidance = sampling.guidance
        return None if guidance is None else self._prompt_ids(guidance.negative_prompt, truncate=True)

    def _desk_for(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> _Desk:
        """Where answers to these are made: the engine's own place, or one with just the room that they need."""
        if self._desk is not None:
            return self._desk
        lengths = [len(ids) for ids in prompts]
        negative = self._negative(sampling)
        if negative is not None:
            lengths += [len(negative)] * len(prompts)
        rows = max(ROWS, 1 if negative is None else 2)
        needs = [-(-min(self.context, length + sampling.max_tokens) // BLOCK) for length in lengths]
        n_blocks = max(1, sum(nlargest(rows, needs)))
        backend = self._new_backend(n_blocks)
        return self._new_desk(backend, n_sequences=rows)

    def _new_backend(self, n_blocks: int) -> Backend:
        """Steps of the decoder, with a cache of its own."""
        from tessera.generate.numpy_step import NumpyStep  # who computes otherwise needs neither of these models
        from tessera.scratch.decoder import Decoder as NumpyDecoder

        model = self.model
        assert not isinstance(model, Backend)
        if isinstance(model, NumpyDecoder):
            if self._cache != "float":
                raise SettingError("cache", self._cache, "float, as NumPy computes")
            return NumpyStep(model, n_blocks=n_blocks, block_size=BLOCK, n_vocab=self._n_vocab)
        from tessera.generate.torch_step import TorchStep  # with it comes PyTorch, as it did with the decoder

        return TorchStep(model, n_blocks=n_blocks, block_size=BLOCK, n_vocab=self._n_vocab, cache=self._cache)

    def _new_desk(self, backend: Backend, **settings: int) -> _Desk:
        return _Desk(Scheduler(backend, self.tokenizer, step_rows=STEP_ROWS, guesser=self._guesser, **settings))

    def _of_beam(self, beam: Beam, prompt: Sequence[int]) -> BeamCompletion:
        end = beam.ids[-1] if beam.ids[-1] in self.tokenizer.end_ids else None
        ids = list(beam.ids if end is None else beam.ids[:-1])
        decoder = decoder_behind(prompt, self.tokenizer)
        text = "".join(map(decoder.push, ids)) + decoder.finish()
        return BeamCompletion(text, ids, "length" if end is None else "end", end, score=beam.score)

    def _prompt_ids(self, prompt: str | Sequence[int], *, truncate: bool) -> list[int]:
        """The prompt as ids that fit into the context."""
        begin, end = self.tokenizer.begin_id, self.tokenizer.end_id
        front = [] if begin is None else [begin]
        ids = front + self.tokenizer.encode(prompt, specials="none") if isinstance(prompt, str) else list(prompt)
        if not ids:
            first = end if begin is None else begin
            if first is None:
                raise InputError("the prompt is empty, and the tokenizer has no <|endoftext|> to begin a document with")
            ids = [first]
        wrong = next((id for id in ids if not 0 <= id < self._n_vocab), None)
        if wrong is not None:
            raise InputError(f"the prompt has the token id {wrong}, outside of the vocabulary of {self._n_vocab}")
        context = self.context
        if len(ids) > context and not truncate:
            raise InputError(
                f"the prompt is {len(ids)} tokens long and the model's context is {context}: "
                "shorten it, or truncate it to its end"
            )
        if len(ids) > context > 1 and ids[0] == begin:
            return front + ids[1 - context :]
        return ids[-context:]


def _mean_logprob(completion: Completion) -> float:
    """What `best_of` judges by: the log-probability of a token, on the average; nothing at all is the worst."""
    logprobs = [choice.logprob for choice in completion.choices if choice.logprob is not None]
    return sum(logprobs) / len(logprobs) if logprobs else float("-inf")
