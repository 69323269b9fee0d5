"""The generation engine: a prompt in, text out as it is made.

The prompt goes through the model once and leaves its keys and values in a cache (prefill); after that each token
costs one position (decode). Only the last position goes through the head.

Past the window. A model sees at most `context` tokens. When the cache is full the engine keeps the newest context //
2 tokens, empties the cache and prefills them again from position 0; the text goes on, with between context // 2 and
context tokens in sight. So greedy decoding with the cache equals greedy decoding without it, over the same window. A
begin token that stood in front of the prompt stays in front.

Rows. The answers to prompts of one length are decoded together (`tessera.generate.decoding`). Answer i to a prompt
draws from its own stream, made of the prompt's seed and i, so it does not depend on n, on the other rows or on when
they end, up to the rounding of matrix products of another height.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from tessera.errors import InputError, SettingError
from tessera.generate.decoding import Decoding, of_one_length
from tessera.generate.sampling import Sampling, prompt_seeds, row_generators
from tessera.generate.stop import StopFilter
from tessera.model.cache import Cache
from tessera.model.decoder import Decoder
from tessera.tokenizers.contract import Tokenizer

Finish = Literal["stop", "length", "end"]
ROWS = 256
"""So many answers are decoded at once, at the most, unless one prompt has more."""


@dataclass(frozen=True)
class Completion:
    """One answer. `finish` says why it ended: a stop text, `max_tokens` reached, or the end token."""

    text: str
    ids: list[int]
    """All tokens that were drawn, those of a stop text too; the end token is left out."""
    finish: Finish
    end: int | None = None
    """The end token, if that is why."""


@dataclass
class _Row:
    """One answer in the making: ids in, text out."""

    tokenizer: Tokenizer
    prompt_ids: Sequence[int]
    stops: Sequence[str]
    ids: list[int] = field(default_factory=list)
    text: str = ""
    finish: Finish | None = None
    end: int | None = None

    def __post_init__(self) -> None:
        # The decoder has seen the end of the prompt, so that prompt and answer join as one text: a space between words,
        # the rest of a character that the prompt began (at most 3 tokens ago). A new document begins afresh.
        self._decoder = self.tokenizer.stream(unknown="replace")
        self._ends = self.tokenizer.end_ids
        if self.prompt_ids[-1] not in self._ends | {self.tokenizer.begin_id}:
            for id in self.prompt_ids[-3:]:
                self._decoder.push(id)
        self._filter = StopFilter(self.stops)

    def push(self, id: int) -> str:
        """The text that `id` makes certain; sets `finish` if it ends the row."""
        if id in self._ends:
            self.end = id
            return self.close("end")
        self.ids.append(id)
        piece = self._filter.push(self._decoder.push(id))
        self.text += piece
        if self._filter.stopped:
            self.finish = "stop"
        return piece

    def close(self, finish: Finish) -> str:
        """The text that was held back; the row ends."""
        piece = self._filter.push(self._decoder.finish()) + self._filter.finish()
        self.text += piece
        self.finish = "stop" if self._filter.stopped else finish
        return piece

    @property
    def completion(self) -> Completion:
        finish = self.finish or "length"
        return Completion(self.text, self.ids, finish, self.end if finish == "end" else None)


class Engine:
    """Generates text with a model and its tokenizer.

    The model is in evaluation mode during each step and as it was between two, so that a stream may be read while
    training.
    """

    def __init__(self, model: Decoder, tokenizer: Tokenizer) -> None:
        if model.n_vocab < tokenizer.n_vocab:
            raise InputError(
                f"the model has a vocabulary of {model.n_vocab} and the tokenizer one of {tokenizer.n_vocab}: "
                "they do not belong together"
            )
        self.model = model
        self.tokenizer = tokenizer
        self._n_vocab = tokenizer.n_vocab

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
        self, prompt: str | Sequence[int], sampling: Sampling | None = None, *, n: int = 1, truncate: bool = False
    ) -> list[str]:
        """`n` answers to one prompt, decoded together."""
        return [completion.text for completion in self.complete(prompt, sampling, n=n, truncate=truncate)]

    def complete(
        self, prompt: str | Sequence[int], sampling: Sampling | None = None, *, n: int = 1, truncate: bool = False
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
        n: int = 1,
        seeds: Sequence[int | None] | None = None,
    ) -> list[list[Completion]]:
        """`n` answers to each prompt, those to prompts of the same length decoded together.

        `seeds` has one for each prompt, which alone would have the same answers under it; without them they are made of
        the seed of `sampling` and the number of the prompt.
        """
        if n < 1:
            raise SettingError("n", n, "a whole number, 1 or greater")
        sampling = sampling or Sampling()
        ids = [self._prompt_ids(prompt, truncate=False) for prompt in prompts]
        seeds = prompt_seeds(sampling.seed, len(ids)) if seeds is None else seeds
        if len(seeds) != len(ids):
            raise InputError(f"{len(seeds)} seeds for {len(ids)} prompts")
        rows = [[_Row(self.tokenizer, each, sampling.stop) for _ in range(n)] for each in ids]
        for numbers in of_one_length([len(each) for each in ids], max(1, ROWS // n)):
            generators = [generator for i in numbers for generator in row_generators(seeds[i], n)]
            decoding = self._decoding([ids[i] for i in numbers], sampling, generators)
            _finish([row for i in numbers for row in rows[i]], decoding, sampling.max_tokens)
        return [[row.completion for row in of_prompt] for of_prompt in rows]

    def next_distribution(self, prompt: str | Sequence[int], *, truncate: bool = False) -> Tensor:
        """The probability of each token to follow `prompt`, (n_vocab of the tokenizer,) in float32, on the CPU."""
        ids = torch.tensor([self._prompt_ids(prompt, truncate=truncate)], device=self._device)
        logits_BV = self._logits(ids, None)
        return logits_BV[0].float().softmax(dim=-1).cpu().clone()

    def _stream(self, prompt_ids: list[int], sampling: Sampling) -> Iterator[str]:
        row = _Row(self.tokenizer, prompt_ids, sampling.stop)
        decoding = self._decoding([prompt_ids], sampling, row_generators(sampling.seed, 1))
        for _ in range(sampling.max_tokens):
            (id,) = decoding.step()
            if piece := row.push(id):
                yield piece
            if row.finish is not None:
                return
        if piece := row.close("length"):
            yield piece

    def _decoding(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, generators: Sequence[torch.Generator]
    ) -> Decoding:
        return Decoding(self.model, self._logits, prompts, sampling, generators, begin_id=self.tokenizer.begin_id)

    @torch.inference_mode()
    def _logits(self, ids_BT: Tensor, cache: Cache | None) -> Tensor:
        """The logits after the last token, (B, V). Ids that a padded head has beyond the tokenizer's are left out."""
        with evaluating(self.model):
            h_BD = self.model.hidden(ids_BT, cache)[:, -1]
            return self.model.logits(h_BD)[:, : self._n_vocab]

    @property
    def _device(self) -> torch.device:
        return self.model.head_weight.device

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
        context = self.model.context
        if len(ids) > context and not truncate:
            raise InputError(
                f"the prompt is {len(ids)} tokens long and the model's context is {context}: "
                "shorten it, or truncate it to its end"
            )
        if len(ids) > context > 1 and ids[0] == begin:
            return front + ids[1 - context :]
        return ids[-context:]


def _finish(rows: Sequence[_Row], decoding: Decoding, most: int) -> None:
    """Decode until each row has ended, or has `most` tokens."""
    for _ in range(most):
        for row, id in zip(rows, decoding.step(), strict=True):
            row.push(id)
        going = [number for number, row in enumerate(rows) if row.finish is None]
        if len(going) < len(rows):
            rows = [rows[number] for number in going]
            if not rows:
                return
            decoding.keep(going)
    for row in rows:
        row.close("length")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, without dropout; afterwards each part is in the mode in which it was."""
    training = [module for module in model.modules() if module.training] if model.training else []
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
