"""What goes into the scheduler and comes out of it: requests, answers in the making, events; and what a step is.

S positions, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np

from tessera.errors import TesseraError
from tessera.generate.chooser import Choice, Chooser
from tessera.generate.sampling import Sampling
from tessera.generate.stop import StopFilter
from tessera.tokenizers.contract import StreamDecoder, Tokenizer

if TYPE_CHECKING:
    from tessera.generate.constrain.constraint import Constraint

Finish = Literal["stop", "length", "end"]


class StepRows(NamedTuple):
    """Tokens of several sequences: which sequence each belongs to, and its position there.

    The rows of a sequence stand together, in the order of their positions; what is before them is in the cache already.
    `wanted` are the indices of the rows whose logits are needed.
    """

    ids: Any
    sequences: Any
    positions: Any
    wanted: Any


@runtime_checkable
class Backend(Protocol):
    """What computes steps: a model, and memory for `n_blocks` blocks of `block_size` positions.

    A row's logits may not depend on the other rows, but for rounding.
    """

    n_vocab: int
    context: int
    n_blocks: int
    block_size: int

    def step(self, rows: StepRows, tables: Sequence[Sequence[int]]) -> np.ndarray:
        """The logits after each wanted row, (wanted, V) in float32; `tables[i]` are the blocks of sequence i, in
        order."""
        ...


@dataclass(frozen=True)
class Completion:
    """One answer. `finish` says why it ended: a stop text, `max_tokens` reached, or the end token."""

    text: str
    ids: list[int]
    """All tokens that were drawn, those of a stop text too; the end token is left out."""
    finish: Finish
    end: int | None = None
    """The end token, if that is why."""
    choices: tuple[Choice, ...] = ()
    """Each token, the end token too, with its log-probability, if `logprobs` asked for them."""


@dataclass(frozen=True)
class Event:
    """What a step did for one request: a token, and the text that it made certain (it may be none)."""

    request: int
    text: str = ""
    id: int | None = None
    completion: Completion | None = None
    """The whole answer, with its last event."""
    error: TesseraError | None = None
    """Why there will be no more of it."""

    @property
    def last(self) -> bool:
        return self.completion is not None or self.error is not None


def decoder_behind(prompt: Sequence[int], tokenizer: Tokenizer) -> StreamDecoder:
    """A decoder that has seen the end of the prompt, so that prompt and answer join as one text.

    That is a space between words, and the rest of a character that the prompt began (at most 3 tokens ago). A new
    document begins afresh.
    """
    decoder = tokenizer.stream(unknown="replace")
    if prompt[-1] not in tokenizer.end_ids | {tokenizer.begin_id}:
        for id in prompt[-3:]:
            decoder.push(id)
    return decoder


@dataclass
class Answer:
    """One answer in the making: logits in, tokens and text out. It knows of no other answer and of no cache."""

    tokenizer: Tokenizer
    prompt: Sequence[int]
    sampling: Sampling
    generator: np.random.Generator
    constraint: "Constraint | None" = None
    ids: list[int] = field(default_factory=list)
    text: str = ""
    finish: Finish | None = None
    end: int | None = None

    def __post_init__(self) -> None:
        self._decoder = decoder_behind(self.prompt, self.tokenizer)
        self._filter = StopFilter(self.sampling.stop)
        self.chooser = Chooser(
            self.sampling, self.generator, prompt=self.prompt, ends=self.tokenizer.end_ids, constraint=self.constraint
        )
        self._choices: list[Choice] = []

    @property
    def n_to_come(self) -> int:
        """How many tokens there may still be."""
        return self.sampling.max_tokens - len(self.ids)

    def choose(
        self, logits_V: np.ndarray, negative_V: np.ndarray | None = None, *, best: int | None = None
    ) -> tuple[int, str]:
        """The next token, and the text that it makes certain; sets `finish` if it ends the answer."""
        choice = self.chooser.choose(logits_V, negative_V, best=best)
        if self.sampling.logprobs is not None:
            self._choices.append(choice)
        if choice.id in self.chooser.ends:
            self.end = choice.id
            return choice.id, self.close("end")
        self.ids.append(choice.id)
        piece = self._filter.push(self._decoder.push(choice.id))
        self.text += piece
        if self._filter.stopped:
            self.finish = "stop"
        elif self.chooser.finished:
            piece += self.close("end")
        elif len(self.ids) >= self.sampling.max_tokens:
            piece += self.close("length")
        return choice.id, piece

    def close(self, finish: Finish) -> str:
        """The text that was held back; the answer ends."""
        piece = self._filter.push(self._decoder.finish()) + self._filter.finish()
        self.text += piece
        self.finish = "stop" if self._filter.stopped else finish
        return piece

    @property
    def completion(self) -> Completion:
        finish = self.finish or "length"
        return Completion(self.text, self.ids, finish, self.end if finish == "end" else None, tuple(self._choices))
