"""Which tokens of a conversation are learned: what the assistant says, and the token that ends its turn.

The template decides, as nobody else knows what it writes. One that has `{% generation %}` blocks says it itself, and
then exactly these are learned. Of any other, a turn begins where the prompt for it ends, which is seen by writing the
conversation up to that turn with the beginning of an answer, and it ends with the first end token that the template
writes after that, before the next message begins. Special tokens that a message spells are ordinary text
(`tessera.tokenizers.chat`), so that nobody can end or begin what is learned by what they write.

The ids are those of the whole conversation, as `encode_chat` gives them. A token that only partly belongs to what the
assistant says is learned.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

from tessera.data.turns import Message
from tessera.errors import FormatError, InputError
from tessera.tokenizers import Tokenizer
from tessera.tokenizers.chat import ASSISTANT, Transcripts

AT_ONCE = 512
"""Conversations for one process that renders: few enough for its memory and time, many enough to pay for its start."""

Span = tuple[int, int]


@dataclass(frozen=True)
class Chat:
    """A conversation to be encoded. Of the first `n_given` messages nothing is learned."""

    messages: Sequence[Message]
    where: str
    n_given: int = 0

    @property
    def turns(self) -> list[int]:
        """The places of the messages that are learned."""
        return [i for i, each in enumerate(self.messages) if i >= self.n_given and each["role"] == ASSISTANT]


def encode_learned(tokenizer: Tokenizer, chats: Sequence[Chat]) -> list[tuple[list[int], list[bool]]]:
    """The ids of each conversation, and of each id whether it is learned.

    An answer without an end token that is learned is an `InputError`: a model that never sees one never stops.
    """
    made: list[tuple[list[int], list[bool]]] = []
    for start in range(0, len(chats), AT_ONCE):
        made += _encode(tokenizer, chats[start : start + AT_ONCE])
    return made


def _encode(tokenizer: Tokenizer, chats: Sequence[Chat]) -> list[tuple[list[int], list[bool]]]:
    """The same for a few; the conversation that is refused is found by halves, as the template says nothing of it."""
    try:
        writer = _Writer(tokenizer, chats)
        return [writer.encode(i) for i in range(len(chats))]
    except FormatError:
        raise  # of the template, whatever the conversation
    except InputError as error:
        if len(chats) == 1:
            where = chats[0].where
            raise error if str(error).startswith(where) else InputError(f"{where}: {error}") from None
        half = len(chats) // 2
        first = _encode(tokenizer, chats[:half])
        return first + _encode(tokenizer, chats[half:])


class _Writer:
    """The texts of some conversations, and where in them the assistant speaks."""

    def __init__(self, tokenizer: Tokenizer, chats: Sequence[Chat]) -> None:
        self.tokenizer, self.chats = tokenizer, chats
        self.transcripts = Transcripts(tokenizer, [chat.messages for chat in chats])
        self.blocks = self.transcripts.has_blocks
        texts = self.transcripts.texts([chat.messages for chat in chats], blocks=self.blocks)
        self.texts = [self._without_blocks(text) for text in texts]
        asked = [(n, i) for n, chat in enumerate(chats) for i in (chat.turns[:1] if self.blocks else chat.turns)]
        self.starts = self._starts([(n, i) for n, i in asked if not self.blocks or chats[n].n_given])
        self.limits = {} if self.blocks else self._limits(asked)

    def encode(self, n: int) -> tuple[list[int], list[bool]]:
        text, spans = self.texts[n]
        parts, ends, place = list(self.transcripts.split(text)), [], 0
        for part, special in parts:
            if special and self.tokenizer.specials[part] in self.tokenizer.end_ids:
                ends.append((place, place + len(part)))
            place += len(part)
        if not self.blocks:
            spans = [self._span(n, i, ends) for i in self.chats[n].turns]
        else:
            given = min((start for (m, _), start in self.starts.items() if m == n), default=0)
            spans = [span for span in spans if span[1] > max(given, span[0])] if self.chats[n].turns else []
            self._check_blocks(n, spans, ends)
        return encode_spans(self.tokenizer, parts, spans)

    def _without_blocks(self, text: str) -> tuple[str, list[Span]]:
        """The text as it is, and what the template's blocks wrote of it."""
        if not self.blocks:
            return text, []
        opens, closes = self.transcripts.opens, self.transcripts.closes
        clean, spans, depth, length, opened = [], [], 0, 0, 0
        for piece in re.split(f"([{opens}{closes}])", text):
            if piece == opens:
                opened, depth = (opened if depth else length), depth + 1
            elif piece == closes:
                depth -= 1
                spans += [] if depth else [(opened, length)]
            else:
                clean.append(piece)
                length += len(piece)
            if depth < 0:
                break
        if depth:
            raise FormatError("chat template", "it cuts into what a generation block of it wrote")
        return "".join(clean), spans

    def _starts(self, asked: Sequence[tuple[int, int]]) -> dict[tuple[int, int], int]:
        """Where in its conversation's text each turn begins: after the prompt for it, or else with its content."""
        chats = self.chats
        begun = [(n, i) for n, i in asked if i > 0]
        prompts = self._render([chats[n].messages[:i] for n, i in begun], add_generation_prompt=True)
        starts = {
            at: len(prompt)
            for at, prompt in zip(begun, prompts, strict=True)
            if self.texts[at[0]][0].startswith(prompt)
        }
        return starts | self._same_until([at for at in asked if at not in starts], 0)

    def _limits(self, asked: Sequence[tuple[int, int]]) -> dict[tuple[int, int], int]:
        """Where the message after each turn has its content."""
        return self._same_until([(n, i) for n, i in asked if i + 1 < len(self.chats[n].messages)], 1)

    def _same_until(self, asked: Sequence[tuple[int, int]], after: int) -> dict[tuple[int, int], int]:
        """How much of its text stays as it is if the message `after` a turn says something that nobody has said."""
        changed = []
        for n, i in asked:
            messages = list(self.chats[n].messages)
            messages[i + after] = _saying(self.transcripts.probe, messages[i + after])
            changed.append(messages)
        texts = zip(asked, self._render(changed), strict=True)
        return {at: _n_shared(self.texts[at[0]][0], text) for at, text in texts}

    def _render(self, conversations: Sequence[Sequence[Message]], *, add_generation_prompt: bool = False) -> list[str]:
        if not conversations:
            return []
        return self.transcripts.texts(conversations, add_generation_prompt=add_generation_prompt)

    def _span(self, n: int, i: int, ends: Sequence[Span]) -> Span:
        text = self.texts[n][0]
        start, limit = self.starts[n, i], self.limits.get((n, i), len(text))
        for opened, closed in ends:
            if start <= opened and closed <= limit:
                return start, closed
        raise InputError(f"{self.chats[n].where}: {_NO_END} after message {i + 1}, {self._known()}")

    def _check_blocks(self, n: int, spans: Sequence[Span], ends: Sequence[Span]) -> None:
        for start, end in spans:
            if not any(start <= opened and closed <= end for opened, closed in ends):
                raise InputError(
                    f"{self.chats[n].where}: {_NO_END} inside its generation block, {self._known()}: "
                    "its endgeneration belongs after the end token"
                )

    def _known(self) -> str:
        names = [name for name, id in self.tokenizer.specials.items() if id in self.tokenizer.end_ids]
        return f"of those that end an answer ({', '.join(names) or 'the tokenizer has none'})"


def _saying(text: str, message: Message) -> Message:
    """The message with `text` in the place of whatever it says."""
    changed = {name: text if isinstance(each, str) and name != "role" else each for name, each in message.items()}
    if isinstance(message.get("content"), list):
        changed["content"] = [{**part, "text": text} if "text" in part else part for part in message["content"]]
    return changed


def _n_shared(a: str, b: str) -> int:
    """How many characters two texts begin with alike; by halves, as Python compares slowly one by one."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[:middle] == b[:middle] else (low, middle - 1)
    return low


_NO_END = "the chat template writes no end token"


def encode_spans(
    tokenizer: Tokenizer, parts: Sequence[tuple[str, bool]], spans: Sequence[Span]
) -> tuple[list[int], list[bool]]:
    """The ids of a text in parts (`Tokenizer.encode_split`), and which of them have a character in one of the spans."""
    ids: list[int] = []
    learned: list[bool] = []
    place = 0
    for number, (part, special) in enumerate(parts):
        encode = partial(_encode_after, tokenizer, [] if special else parts[max(number - 1, 0) : number])
        inside = [
            (max(start - place, 0), min(end - place, len(part)))
            for start, end in spans
            if start < place + len(part) and place < end
        ]
        made = [tokenizer.specials[part]] if special else encode(part)
        flags = [special and bool(inside)] * len(made)
        for start, end in [] if special else inside:
            first, last = _tokens_of(tokenizer, part, made, start, end, encode)
            flags[first:last] = [True] * (last - first)
        ids += made
        learned += flags
        place += len(part)
    return ids, learned


def _encode_after(tokenizer: Tokenizer, before: Sequence[tuple[str, bool]], text: str) -> list[int]:
    """The ids of a text: some kinds write the beginning of all in another way than what follows a special token."""
    return tokenizer.encode_split([*before, (text, False)])[len(before) :]


def _tokens_of(
    tokenizer: Tokenizer, text: str, ids: Sequence[int], start: int, end: int, encode: Callable[[str], list[int]]
) -> tuple[int, int]:
    """The tokens (from, to) of an ordinary text, encoded so, that hold its characters from `start` to `end`."""
    pieces = [tokenizer.token_bytes(id) for id in ids]
    joined, raw = tokenizer.separator.join(pieces), text.encode()
    if joined.endswith(raw):  # what a tokenizer puts in front, such as a space, belongs to the first token
        before = len(joined) - len(raw)
        ends = list(accumulate(len(piece) + len(tokenizer.separator) for piece in pieces))
        low, high = before + len(text[:start].encode()), before + len(text[:end].encode())
        first = 0 if start == 0 else sum(e <= low for e in ends)
        return first, sum(e < high for e in ends) + 1
    # The text was changed on its way to the tokens: they are compared with those of its beginnings.
    first, _ = _same_tokens(encode, text[:start], ids)
    last, whole = _same_tokens(encode, text[:end], ids)
    return first, last if whole or end == len(text) else last + 1


def _same_tokens(encode: Callable[[str], list[int]], beginning: str, ids: Sequence[int]) -> tuple[int, bool]:
    """How many of the first ids are those of a beginning of the text, and whether that is all of them."""
    own = encode(beginning) if beginning else []
    same = next((i for i, (a, b) in enumerate(zip(own, ids, strict=False)) if a != b), min(len(own), len(ids)))
    return same, same == len(own)
