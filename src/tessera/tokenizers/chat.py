"""A conversation as the ids that a model was trained on: by its chat template, which is not trusted.

The template is rendered in a process of its own (`chat_worker`). A special token becomes an id only where the template
wrote it: there, in `bos_token` and in `eos_token` its letters are replaced by private-use characters that occur nowhere
in the request, and what is found of these in the text that comes back are the special tokens. All else is ordinary
text, however the template cut and joined it: nobody ends a turn, or begins another, by what they write. Where a
template compares or cuts texts, it sees the letters.

Two things in a message can be in an id. In what the assistant has said, the tokens of `Framing.plain`. And its role,
where the template writes a text, a value and a text next to each other that are a special token together
(`'<|' + message.role + '|>'`): the value counts if it is a role or a word of the template, so whoever names the roles
is trusted. A template that makes a special token in yet another way (from a list, by formatting, by changing its case)
gets ordinary text.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from tessera.errors import FormatError, InputError, StorageError
from tessera.tokenizers.contract import Tokenizer
from tessera.tokenizers.specials import check_text, split_specials

Message = Mapping[str, Any]

WORKER = Path(__file__).with_name("chat_worker.py")
SECONDS = 4  # of processor time for a request, and one more for so many characters:
CHARACTERS_A_SECOND = 2**20
WAITING = 5  # times as much on the clock: the machine may be busy
MEMORY = 2**29  # bytes, and so many more for each character of the request:
BYTES_A_CHARACTER = 32
MOST = 2**20  # characters of text, and so many more for each character of the request:
GROWTH = 16
ASSISTANT = "assistant"
PRIVATE_USE = (*range(0xF0000, 0xFFFFE), *range(0x100000, 0x10FFFE))
GENERATION = re.compile(r"\{%[-+]?\s*generation\b")
_PRIVATE = re.compile("[\U000f0000-\U000ffffd\U00100000-\U0010fffd]")


def render(
    template: str,
    conversations: Sequence[Sequence[Message]],
    *,
    add_generation_prompt: bool = True,
    specials: Mapping[str, Any] | None = None,
    marks: Mapping[str, str] | None = None,
    blocks: tuple[str, str] | None = None,
) -> list[str]:
    """The text of each conversation, as transformers' `apply_chat_template` gives it.

    `specials` are what the template knows besides: `bos_token`, `eos_token`. `marks` says what to write for a special
    token that the template itself writes, `blocks` what to write where a `{% generation %}` begins and ends. What the
    template itself complains of is an `InputError` with its words; one that is no Jinja, works without end, takes too
    much memory or tries to leave its sandbox is a `FormatError`.
    """
    variables = {"tools": None, "documents": None, **(specials or {}), "add_generation_prompt": add_generation_prompt}
    chats = [list(each) for each in conversations]
    size = len(template) + len(json.dumps(chats))
    content = {
        "template": template,
        "conversations": chats,
        "variables": variables,
        "marks": dict(marks or {}),
        "blocks": blocks,
        "most": MOST + GROWTH * size,
        "now": datetime.now().isoformat(),
    }
    reply = _ask(json.dumps(content).encode(), SECONDS + size // CHARACTERS_A_SECOND, MEMORY + BYTES_A_CHARACTER * size)
    match reply:
        case {"texts": list(texts)} if len(texts) == len(chats) and all(isinstance(text, str) for text in texts):
            for text in texts:
                check_text(text)
            return texts
        case {"error": "raised", "message": str(message)}:
            raise InputError(f"the chat template does not take this conversation: {message}")
        case {"error": "syntax", "message": str(message)}:
            raise FormatError("chat template", f"not a Jinja template ({message})")
        case {"message": str(message)}:
            raise FormatError("chat template", message)
    raise FormatError("chat template", "its process gave no answer")


def _ask(request: bytes, seconds: int, n_bytes: int, *, worker: Path = WORKER) -> Any:
    """The worker's reply; a `FormatError` where it died without one."""
    folders = dict.fromkeys(_folder_of(name) for name in ("jinja2", "markupsafe"))
    # -I and -S leave out what files of the user or of the site would do at the start.
    command = [sys.executable, "-I", "-S", str(worker), str(seconds), str(n_bytes), *folders]
    try:
        done = subprocess.run(
            command, input=request, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={}, timeout=WAITING * seconds
        )
    except subprocess.TimeoutExpired:
        raise FormatError("chat template", f"it was not done after {WAITING * seconds} seconds") from None
    except OSError as error:
        raise StorageError(sys.executable, error) from error
    if done.returncode:
        raise FormatError("chat template", f"it was not done with {seconds} s of work and {n_bytes >> 20} MB of memory")
    try:
        return json.loads(done.stdout)
    except ValueError:
        raise FormatError("chat template", "its process gave no answer") from None


def _folder_of(package: str) -> str:
    found = find_spec(package)
    if found is None or found.origin is None:
        raise InputError(f"a chat template needs the package {package}: pip install {package}")
    return os.fspath(Path(found.origin).parent.parent)


def encode_chat(tokenizer: Tokenizer, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> list[int]:
    """The ids of a conversation: `[{"role": "user", "content": "..."}, ...]`, with the beginning of the answer.

    They are those of transformers' `apply_chat_template(..., tokenize=True)`, but where a message spells a special
    token: that stays ordinary text. (What the assistant has said may hold those of `Framing.plain`.) There is a begin
    token if the template writes one.
    """
    return encode_chats(tokenizer, [messages], add_generation_prompt=add_generation_prompt)[0]


def encode_chats(
    tokenizer: Tokenizer, conversations: Sequence[Sequence[Message]], *, add_generation_prompt: bool = True
) -> list[list[int]]:
    """`encode_chat` of each, for the price of one process."""
    transcripts = Transcripts(tokenizer, conversations)
    texts = transcripts.texts(conversations, add_generation_prompt=add_generation_prompt)
    return [tokenizer.encode_split(list(transcripts.split(text))) for text in texts]


class Transcripts:
    """The texts of conversations by a tokenizer's template, in which it is seen what the template itself wrote.

    Each letter of a special token that the template wrote is a character that stands for that letter; `split` finds
    them. `probe` is a character that is in none of the messages.
    """

    def __init__(self, tokenizer: Tokenizer, conversations: Sequence[Sequence[Message]]) -> None:
        if tokenizer.framing.template is None:
            raise InputError("the tokenizer has no chat template, so it knows no roles: give it a text to go on from")
        for messages in conversations:
            for message in messages:
                _check(message)
        self._template = tokenizer.framing.template
        self._names, self._plain = frozenset(tokenizer.specials), frozenset(tokenizer.framing.plain)
        variables = template_names(tokenizer)
        written = "\n".join((self._template, *variables.values(), *tokenizer.framing.plain))
        said = "".join((*self._names, *_texts([list(each) for each in conversations])))
        self._marks = _Marks(self._names, written, said)
        self._variables = self._marks.mark(variables, self._names)
        if len(self._marks.free) < 3:
            raise InputError("the conversation holds so many private-use characters that none are left")
        self.probe, self.opens, self.closes = self._marks.free
        self.has_blocks = GENERATION.search(self._template) is not None
        """Whether the template says itself, by `{% generation %}`, what an assistant writes."""

    def texts(
        self, conversations: Sequence[Sequence[Message]], *, add_generation_prompt: bool = False, blocks: bool = False
    ) -> list[str]:
        """The text of each, whose messages are those that this was made with, or hold `probe` as their texts.

        With `blocks`, two more such characters, `opens` and `closes`, are around what each `{% generation %}` wrote.
        """
        shown = [
            [self._marks.mark(each, self._plain) if each["role"] == ASSISTANT else each for each in messages]
            for messages in conversations
        ]
        return render(
            self._template,
            shown,
            add_generation_prompt=add_generation_prompt,
            specials=self._variables,
            marks=self._marks.marked,
            blocks=(self.opens, self.closes) if blocks else None,
        )

    def split(self, text: str) -> Iterator[tuple[str, bool]]:
        """The parts of a text in order, each with whether it is a special token: for `Tokenizer.encode_split`."""
        return self._marks.split(text)


def template_names(tokenizer: Tokenizer) -> dict[str, str]:
    """The special tokens that a template may ask for."""
    framing = tokenizer.framing
    by_id = {id: name for name, id in tokenizer.specials.items()}
    begin = framing.begin or framing.bos_token
    end = framing.ends[0] if framing.ends else by_id.get(-1 if tokenizer.end_id is None else tokenizer.end_id)
    return {name: token for name, token in (("bos_token", begin), ("eos_token", end)) if token is not None}


class _Marks:
    """Special tokens as characters that occur nowhere else: each stands for one letter of one of them.

    Those in `written`, which is what the template may write, come first; `text` is whatever else there is. The planes
    of private use have characters for them all, unless a vocabulary has thousands that no template names.
    """

    def __init__(self, names: frozenset[str], written: str, text: str) -> None:
        taken = set(written).union(text)
        free = iter([mark for mark in map(chr, PRIVATE_USE) if mark not in taken])
        self.free = tuple(islice(free, 3))
        """Characters that occur nowhere at all."""
        self._names = names
        self.marked: dict[str, str] = {}
        for name in sorted(names, key=lambda name: (name not in written, name)):
            marked = "".join(islice(free, len(name)))
            if len(marked) == len(name):
                self.marked[name] = marked
            elif name in written:
                raise InputError("the conversation holds so many private-use characters that none are left")
        self._starts = {marked[0]: name for name, marked in self.marked.items()}
        pairs = (pair for name, marked in self.marked.items() for pair in zip(marked, name, strict=True))
        self._letters = {ord(mark): letter for mark, letter in pairs}

    def mark(self, value: Any, which: frozenset[str]) -> Any:
        """`value` with those special tokens in its texts, however deep, marked."""
        if isinstance(value, str):
            parts = split_specials(value, self._names)
            return "".join(self.marked[part] if special and part in which else part for part, special in parts)
        if isinstance(value, Mapping):
            return {name: self.mark(each, which) for name, each in value.items()}
        if isinstance(value, list | tuple):
            return [self.mark(each, which) for each in value]
        return value

    def split(self, text: str) -> Iterator[tuple[str, bool]]:
        """The parts of a text in order, each with whether it is a special token; pieces of marks are letters again."""
        done = 0
        for found in _PRIVATE.finditer(text):
            name = self._starts.get(found[0])
            if name is None or not text.startswith(self.marked[name], found.start()):
                continue
            if done < found.start():
                yield text[done : found.start()].translate(self._letters), False
            yield name, True
            done = found.start() + len(name)
        if done < len(text):
            yield text[done:].translate(self._letters), False


def _check(message: Message) -> None:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise InputError(f"a message is {repr(message)[:80]}, expected an object with a role and a content")
    for text in _texts(message):
        check_text(text)


def _texts(value: Any) -> Iterator[str]:
    """Every text in a message, however deep; what JSON cannot hold is an `InputError`."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, each in value.items():
            yield from _texts(name)
            yield from _texts(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each)
    elif value is not None and not isinstance(value, bool | int | float):
        raise InputError(f"a message holds {repr(value)[:80]}, which is not text, a number, a list or an object")
