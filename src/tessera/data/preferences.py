"""Preferences: two answers of which one is better, or one answer that is good or bad.

    pairs       {"prompt": ..., "chosen": ..., "rejected": ...}, with "margin" if one is said
    unpaired    {"prompt": ..., "completion": ..., "label": true or false}, or a conversation and its "label"

A prompt is a text, messages, a ShareGPT conversation or an Alpaca instruction (`turns`); an answer a text, a message or
messages. Where "chosen" and "rejected" are whole conversations, the prompt is what they begin with alike. Of an example
the answer is learned, not what the assistant said before it.

B pairs or answers, T time.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tessera.data.batch import Batch
from tessera.data.conversations import PLAIN, answered, continuation, encode_chats
from tessera.data.examples import Example, Fitting, Shuffled, TooLong, Unlearned, fingerprint, fit_groups, rows_of
from tessera.data.records import Record
from tessera.data.templates import with_template
from tessera.data.turns import Message, answer, conversation, prompt
from tessera.errors import InputError
from tessera.tokenizers import Tokenizer
from tessera.tokenizers.chat import ASSISTANT

LABELS = ("label", "kto_tag")
MOST_MARGIN = 1e6


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt; `margin` is by how much the first is better, where that is known."""

    chosen: Example
    rejected: Example
    margin: float = 0.0


@dataclass(frozen=True)
class Judged:
    """An answer and whether it is good. `mismatched` is another prompt's answer after this one's prompt (for KTO)."""

    example: Example
    is_good: bool
    mismatched: Example


@dataclass(frozen=True)
class PairBatch:
    """Pairs, padded; a row of each tensor is a pair. `reference_B2` are a reference's log-probabilities, if kept."""

    chosen_inputs_BT: Tensor
    chosen_targets_BT: Tensor
    rejected_inputs_BT: Tensor
    rejected_targets_BT: Tensor
    margins_B: Tensor
    reference_B2: Tensor | None = None

    @property
    def n_targets(self) -> int:
        """How many pairs: what a loss is averaged over."""
        return len(self.margins_B)

    @property
    def sides(self) -> tuple[Batch, Batch]:
        """The chosen and the rejected."""
        chosen = Batch(self.chosen_inputs_BT, self.chosen_targets_BT)
        return chosen, Batch(self.rejected_inputs_BT, self.rejected_targets_BT)

    def to(self, device: torch.device | str) -> "PairBatch":
        return _changed(self, lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> "PairBatch":
        """In memory that a GPU fetches from by itself."""
        return _changed(self, Tensor.pin_memory)


@dataclass(frozen=True)
class JudgedBatch:
    """Judged answers, padded, and the mismatched ones; `reference_B2` are the log-probabilities of both."""

    inputs_BT: Tensor
    targets_BT: Tensor
    mismatched_inputs_BT: Tensor
    mismatched_targets_BT: Tensor
    is_good_B: Tensor
    reference_B2: Tensor | None = None

    @property
    def n_targets(self) -> int:
        """How many answers: what a loss is averaged over."""
        return len(self.is_good_B)

    @property
    def sides(self) -> tuple[Batch, Batch]:
        """The answers and the mismatched ones."""
        return Batch(self.inputs_BT, self.targets_BT), Batch(self.mismatched_inputs_BT, self.mismatched_targets_BT)

    def to(self, device: torch.device | str) -> "JudgedBatch":
        return _changed(self, lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> "JudgedBatch":
        """In memory that a GPU fetches from by itself."""
        return _changed(self, Tensor.pin_memory)


def _changed(batch: Any, change: Any) -> Any:
    return type(batch)(**{name: None if each is None else change(each) for name, each in vars(batch).items()})


def pairs_of(
    records: Sequence[Record],
    tokenizer: Tokenizer,
    *,
    max_tokens: int,
    template: str | Path | None = None,
    too_long: TooLong = "error",
    unlearned: Unlearned = "error",
) -> tuple[list[Pair], Fitting]:
    """The pairs in some records; of two answers that are the same nothing can be learned."""
    same = [record.where for record in records if _is_same(record)]
    if same and unlearned != "skip":
        raise InputError(_SAME.format(same[0]))
    records = [record for record in records if not _is_same(record)]
    margins = [_margin(record) for record in records]
    if template == PLAIN:
        chosen, rejected = (
            [continuation(tokenizer, record.content, side, record.where) for record in records]
            for side in ("chosen", "rejected")
        )
    else:
        tokenizer = with_template(tokenizer, template)
        read = [(*_two_answers(record), record.where) for record in records]
        chosen = encode_chats(tokenizer, [answered(given, better, where) for given, better, _, where in read])
        rejected = encode_chats(tokenizer, [answered(given, worse, where) for given, _, worse, where in read])
    groups = zip(chosen, rejected, strict=True)
    numbers, kept, told = fit_groups(groups, max_tokens=max_tokens, too_long=too_long, unlearned=unlearned)
    told.unlearned += same
    pairs = []
    for i, (one, other) in zip(numbers, kept, strict=True):
        if not np.array_equal(one.ids, other.ids):
            pairs.append(Pair(one, other, margins[i]))
        elif unlearned == "skip":
            told.leave_out(one, other)
        else:  # what differs was cut off, or the template leaves it out
            raise InputError(_SAME.format(one.where))
    return pairs, told


_SAME = "{}: 'chosen' and 'rejected' are the same (unlearned = skip leaves it out)"


def _is_same(record: Record) -> bool:
    content = record.content
    return "chosen" in content and "rejected" in content and content["chosen"] == content["rejected"]


def _two_answers(record: Record) -> tuple[list[Message], list[Message], list[Message]]:
    """The prompt, the better answer and the worse one."""
    sides = []
    for field in ("chosen", "rejected"):
        if field not in record.content:
            raise InputError(f"{record.where}: no field {field!r} (found: {', '.join(record.content)})")
        sides.append(answer(record.content[field], record.where, field))
    chosen, rejected = sides
    if chosen[0]["role"] == rejected[0]["role"] == ASSISTANT:
        return prompt(record), chosen, rejected
    # Whole conversations: a field "prompt" beside them says once more what they begin with.
    shared = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), 0)
    if shared == 0 or not chosen[shared]["role"] == rejected[shared]["role"] == ASSISTANT:
        raise InputError(
            f"{record.where}: no prompt: 'chosen' and 'rejected' are not alike up to an assistant's answer"
        )
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _margin(record: Record) -> float:
    margin = record.content.get("margin", 0.0)
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not abs(margin) <= MOST_MARGIN:
        raise InputError(f"{record.where}: the margin is {margin!r}, expected a number up to {MOST_MARGIN:,.0f}")
    return float(margin)


def judged_of(
    records: Sequence[Record],
    tokenizer: Tokenizer,
    *,
    max_tokens: int,
    template: str | Path | None = None,
    too_long: TooLong = "error",
    unlearned: Unlearned = "error",
) -> tuple[list[Judged], Fitting]:
    """The judged answers in some records. The mismatched answer of each is that of the next one."""
    labels = [_label(record) for record in records]
    if len(records) < 2:
        raise InputError(
            f"{records[0].where}: one answer alone has no other to be compared with: two or more are needed"
        )
    encode = _plain_answers if template == PLAIN else _answers
    groups = zip(*encode(tokenizer if template == PLAIN else with_template(tokenizer, template), records), strict=True)
    numbers, kept, told = fit_groups(groups, max_tokens=max_tokens, too_long=too_long, unlearned=unlearned)
    return [Judged(one, labels[i], other) for i, (one, other) in zip(numbers, kept, strict=True)], told


def _answers(tokenizer: Tokenizer, records: Sequence[Record]) -> list[list[Example]]:
    """Each prompt with its own answer, and with that of the next."""
    read = [_one_answer(record) for record in records]
    n = len(read)
    chats = [[answered(read[i][0], read[(i + shift) % n][1], records[i].where) for i in range(n)] for shift in (0, 1)]
    return [encode_chats(tokenizer, each) for each in chats]


def _plain_answers(tokenizer: Tokenizer, records: Sequence[Record]) -> list[list[Example]]:
    """The same without a template."""
    contents = [record.content for record in records]
    others = [
        {**own, "completion": following.get("completion")}
        for own, following in zip(contents, [*contents[1:], contents[0]], strict=True)
    ]
    return [
        [
            continuation(tokenizer, content, "completion", record.where)
            for content, record in zip(each, records, strict=True)
        ]
        for each in (contents, others)
    ]


def _one_answer(record: Record) -> tuple[list[Message], list[Message]]:
    if "completion" in record.content:
        return prompt(record), answer(record.content["completion"], record.where, "completion")
    messages = conversation(record)
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise InputError(f"{record.where}: expected a prompt and an answer of the assistant at the end")
    return messages[:-1], messages[-1:]


def _label(record: Record) -> bool:
    value = next((record.content[name] for name in LABELS if name in record.content), None)
    if not isinstance(value, bool):
        raise InputError(f"{record.where}: the label is {value!r}, expected true or false in the field 'label'")
    return value


class _Compared(Shuffled):
    """What both sources share: two examples a row, and a reference's log-probabilities of them, if they are kept."""

    def __init__(
        self, groups: Sequence[tuple[Example, Example]], *, batch_size: int, seed: int, whole: bool, more: Sequence[Any]
    ) -> None:
        if not groups:
            raise InputError("there is no preference to learn from")
        self.groups, self.whole = list(groups), whole
        self.reference_N2: np.ndarray | None = None
        """The summed log-probabilities of each example's answer by a reference, float32."""
        identity = fingerprint([*groups]) + f"-{zlib.crc32(repr(list(more)).encode()):08x}"
        super().__init__(len(groups), batch_size=batch_size, seed=seed, identity=identity)

    def rows(self, numbers: Sequence[int]) -> tuple[Batch, Batch]:
        first, second = (rows_of([[self.groups[i][side]] for i in numbers], whole=self.whole) for side in (0, 1))
        return first, second

    def reference(self, numbers: Sequence[int]) -> Tensor | None:
        return None if self.reference_N2 is None else torch.from_numpy(self.reference_N2[list(numbers)])


class PairRows(_Compared):
    """Batches of pairs. `whole`: with the last token of each among the inputs, for a score that is read there."""

    kind = "pairs"

    def __init__(self, pairs: Sequence[Pair], *, batch_size: int, seed: int = 0, whole: bool = False) -> None:
        self.pairs = list(pairs)
        groups = [(pair.chosen, pair.rejected) for pair in pairs]
        super().__init__(
            groups, batch_size=batch_size, seed=seed, whole=whole, more=[pair.margin for pair in self.pairs]
        )

    def batch(self, numbers: Sequence[int]) -> PairBatch:
        """The pairs of these numbers."""
        chosen, rejected = self.rows(numbers)
        margins_B = torch.tensor([self.pairs[i].margin for i in numbers])
        return PairBatch(
            chosen.inputs_BT,
            chosen.targets_BT,
            rejected.inputs_BT,
            rejected.targets_BT,
            margins_B,
            self.reference(numbers),
        )

    def __next__(self) -> PairBatch:
        return self.batch(self.draw())

    def in_order(self) -> list[PairBatch]:
        """All of it once."""
        numbers = range(self.n)
        return [self.batch(numbers[i : i + self.batch_size]) for i in range(0, self.n, self.batch_size)]


class JudgedRows(_Compared):
    """Batches of judged answers."""

    kind = "judged"

    def __init__(self, judged: Sequence[Judged], *, batch_size: int, seed: int = 0) -> None:
        self.judged = list(judged)
        groups = [(each.example, each.mismatched) for each in judged]
        super().__init__(
            groups, batch_size=batch_size, seed=seed, whole=False, more=[each.is_good for each in self.judged]
        )

    def batch(self, numbers: Sequence[int]) -> JudgedBatch:
        """The answers of these numbers."""
        one, other = self.rows(numbers)
        is_good_B = torch.tensor([self.judged[i].is_good for i in numbers])
        return JudgedBatch(
            one.inputs_BT, one.targets_BT, other.inputs_BT, other.targets_BT, is_good_B, self.reference(numbers)
        )

    def __next__(self) -> JudgedBatch:
        return self.batch(self.draw())

    def in_order(self) -> list[JudgedBatch]:
        """All of it once."""
        numbers = range(self.n)
        return [self.batch(numbers[i : i + self.batch_size]) for i in range(0, self.n, self.batch_size)]
