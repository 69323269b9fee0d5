"""Files of conversations -> examples for fine-tuning on what the assistant says.

    file -> records -> messages -> text by the template -> ids, and of each whether it is learned

`records` reads the files, `turns` the shapes of a conversation, `learned` finds what the assistant says. Whatever is
wrong with a conversation is an error that names its file and line, before anything is trained.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from tessera.data.examples import Example, Fitting, TooLong, Unlearned, fit
from tessera.data.learned import Chat, encode_learned, encode_spans
from tessera.data.records import Record, read_records
from tessera.data.templates import with_template
from tessera.data.turns import Message, conversation
from tessera.errors import InputError, SettingError
from tessera.tokenizers import Tokenizer

Learn = Literal["all", "last"]
PLAIN = "none"
"""The template that writes nothing around a text: a prompt, and then its completion."""


def read_examples(
    sources: str | Path | Sequence[str | Path],
    tokenizer: Tokenizer,
    *,
    max_tokens: int,
    shape: str = "auto",
    template: str | Path | None = None,
    learn: Learn = "all",
    too_long: TooLong = "error",
    unlearned: Unlearned = "error",
) -> tuple[list[Example], Fitting]:
    """The examples in some files, none longer than `max_tokens`, and what was cut or left out.

    `template` is a name of TEMPLATES, a Jinja file, "none", or (None) the tokenizer's own. `learn` all that the
    assistant says, or its last turn.
    """
    records = read_records(sources)
    examples = encode_records(tokenizer, records, shape=shape, template=template, learn=learn)
    return fit(examples, max_tokens=max_tokens, too_long=too_long, unlearned=unlearned)


def encode_records(
    tokenizer: Tokenizer,
    records: Sequence[Record],
    *,
    shape: str = "auto",
    template: str | Path | None = None,
    learn: Learn = "all",
) -> list[Example]:
    """The example in each record, of whatever length."""
    if learn not in ("all", "last"):
        raise SettingError("learn", learn, "'all' or 'last'")
    if template == PLAIN:
        return [continuation(tokenizer, record.content, "completion", record.where) for record in records]
    tokenizer = with_template(tokenizer, template)
    chats = []
    for record in records:
        chat = Chat(conversation(record, shape), record.where)
        if not chat.turns:
            raise InputError(f"{record.where}: the assistant says nothing in it")
        chats.append(chat if learn == "all" else replace(chat, n_given=chat.turns[-1]))
    return encode_chats(tokenizer, chats)


def encode_chats(tokenizer: Tokenizer, chats: Sequence[Chat]) -> list[Example]:
    """The example of each conversation, by the tokenizer's own template."""
    made = zip(chats, encode_learned(tokenizer, chats), strict=True)
    return [Example.of(ids, learned, chat.where) for chat, (ids, learned) in made]


def answered(given: Sequence[Message], said: Sequence[Message], where: str) -> Chat:
    """What was given and what was said after it as one conversation, of which the second is learned."""
    return Chat([*given, *said], where, n_given=len(given))


def continuation(tokenizer: Tokenizer, content: Any, field: str, where: str) -> Example:
    """A prompt and what follows it as plain text, of which that and an end token are learned."""
    prompt, said = content.get("prompt"), content.get(field)
    for name, value in (("prompt", prompt), (field, said)):
        if not isinstance(value, str):
            found = "missing" if value is None else f"a {type(value).__name__}"
            raise InputError(f"{where}: {name!r} is {found}: without a template it has to be a text")
    if not said.strip():
        raise InputError(f"{where}: {field!r} is empty")
    if tokenizer.end_id is None:
        raise InputError(f"{where}: the tokenizer has no end token, so a model could not learn where to stop")
    end = next(name for name, id in tokenizer.specials.items() if id == tokenizer.end_id)
    begin = [] if tokenizer.framing.begin is None else [(tokenizer.framing.begin, True)]
    start = len(prompt) + sum(len(name) for name, _ in begin)
    parts = [*begin, (prompt + said, False), (end, True)]
    ids, learned = encode_spans(tokenizer, parts, [(start, start + len(said) + len(end))])
    return Example.of(ids, learned, where)
