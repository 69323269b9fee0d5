"""The shapes in which people write conversations, as one: a list of messages, `{"role": ..., "content": ...}`.

    messages       {"messages": [{"role": "user", "content": "..."}, ...]}
    sharegpt       {"conversations": [{"from": "human", "value": "..."}, ...], "system": "..."}
    alpaca         {"instruction": "...", "input": "...", "output": "...", "history": [["question", "answer"], ...]}
    prompt         {"prompt": "..." or messages, "completion": "..." or messages}

Which one a record has is seen by its fields. A role that is not known, a message without a text and an answer that is
empty are errors that name the file and line: a model would learn from them that this is how one talks.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tessera.data.records import Record
from tessera.errors import InputError, SettingError

Message = dict[str, Any]
ROLES = ("system", "developer", "user", "assistant", "tool")
SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "system": "system",
    "observation": "tool",
    "tool": "tool",
}
"""What ShareGPT's "from" says."""


def conversation(record: Record, shape: str = "auto") -> list[Message]:
    """The messages of a record that holds a whole conversation, checked."""
    return checked(_shape(record, shape)(record), record.where)


def prompt(record: Record) -> list[Message]:
    """The messages of a record that come before an answer: all of a conversation but for the answer at its end."""
    messages = _prompt(record)
    while messages and messages[-1].get("role") == "assistant":
        messages = messages[:-1]
    if not messages:
        raise InputError(f"{record.where}: no prompt (found: {', '.join(record.content)})")
    return checked(messages, record.where)


def answer(value: Any, where: str, field: str) -> list[Message]:
    """What an assistant answers, written as a text, a message or several: messages."""
    if isinstance(value, str):
        messages = [{"role": "assistant", "content": value}]
    elif isinstance(value, Mapping):
        messages = [_message(value, where)]
    elif isinstance(value, list):
        messages = [_message(each, where) for each in value]
    else:
        raise InputError(f"{where}: {field!r} is a {type(value).__name__}, expected a text or messages")
    if not messages or messages[-1]["role"] != "assistant":
        raise InputError(f"{where}: {field!r} does not end with what the assistant says")
    return checked(messages, where)


def checked(messages: list[Message], where: str) -> list[Message]:
    """The messages as they are, if each has a role that is known and a content; an assistant's must not be empty."""
    if not messages:
        raise InputError(f"{where}: a conversation without a message")
    for number, message in enumerate(messages, start=1):
        role, content = message["role"], message.get("content")
        if role not in ROLES:
            raise InputError(f"{where}: message {number} has the role {role!r} (choices: {', '.join(ROLES)})")
        calls = bool(message.get("tool_calls"))
        if not isinstance(content, str | list) and not (calls and content is None):
            raise InputError(f"{where}: the content of message {number} is {_said(content)}, expected a text")
        if role == "assistant" and not calls and _is_empty(content):
            raise InputError(f"{where}: message {number}, the assistant's, is empty")
    return messages


def _is_empty(content: Any) -> bool:
    """Whether a content, a text or parts, says nothing."""
    if isinstance(content, str):
        return not content.strip()
    return not any(not isinstance(part, Mapping) or _said_by(part) for part in content)


def _said_by(part: Mapping[str, Any]) -> bool:
    text = part.get("text")
    return bool(text.strip()) if isinstance(text, str) else part.get("type") != "text"


def _message(value: Any, where: str) -> Message:
    """A message of either form of writing, as role and content."""
    if not isinstance(value, Mapping):
        raise InputError(f"{where}: a message is {_said(value)}, expected an object with a role and a content")
    if "from" in value:
        speaker = value["from"]
        if not isinstance(speaker, str) or speaker not in SPEAKERS:
            raise InputError(f"{where}: a message is from {speaker!r} (choices: {', '.join(SPEAKERS)})")
        return {"role": SPEAKERS[speaker], "content": value.get("value")}
    if not isinstance(value.get("role"), str):
        raise InputError(f"{where}: a message has no role (found: {', '.join(map(str, value))})")
    # A table gives every message every field, empty where it was not there.
    return {name: each for name, each in value.items() if each is not None or name == "content"}


def _from_messages(record: Record) -> list[Message]:
    return _system(record) + [_message(each, record.where) for each in _listed(record, "messages")]


def _from_sharegpt(record: Record) -> list[Message]:
    return _system(record) + [_message(each, record.where) for each in _listed(record, "conversations")]


def _from_alpaca(record: Record) -> list[Message]:
    return [*_asked(record), {"role": "assistant", "content": _text(record, "output")}]


def _asked(record: Record) -> list[Message]:
    """An instruction and its input: joined for templates that know no `input`, and kept for the one that does."""
    instruction, given = _text(record, "instruction"), _text(record, "input", "")
    past: list[Message] = []
    for turn in record.content.get("history") or []:
        if not isinstance(turn, Sequence) or isinstance(turn, str) or len(turn) != 2:
            raise InputError(f"{record.where}: an entry of 'history' is {_said(turn)}, expected [question, answer]")
        past += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    both = f"{instruction}\n\n{given}" if given.strip() else instruction
    user: Message = {"role": "user", "content": both}
    if given.strip():
        user |= {"instruction": instruction, "input": given}
    return [*_system(record), *past, user]


def _from_prompt(record: Record) -> list[Message]:
    return [*_prompt(record), *answer(record.content.get("completion"), record.where, "completion")]


def _prompt(record: Record) -> list[Message]:
    content = record.content
    value = content.get("prompt")
    if isinstance(value, str):
        return [*_system(record), {"role": "user", "content": value}]
    if isinstance(value, list):
        return [*_system(record), *(_message(each, record.where) for each in value)]
    for field, read in (("messages", _from_messages), ("conversations", _from_sharegpt), ("instruction", _asked)):
        if field in content:
            return read(record)
    for field in ("question", "query"):
        if isinstance(content.get(field), str):
            return [*_system(record), {"role": "user", "content": content[field]}]
    raise InputError(f"{record.where}: no prompt (found: {', '.join(content)})")


def _system(record: Record) -> list[Message]:
    value = _text(record, "system", "")
    return [{"role": "system", "content": value}] if value.strip() else []


def _listed(record: Record, field: str) -> list[Any]:
    value = record.content.get(field)
    if not isinstance(value, list):
        raise InputError(f"{record.where}: {field!r} is {_said(value)}, expected a list of messages")
    return value


def _text(record: Record, field: str, default: str | None = None) -> str:
    value = record.content.get(field, default)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise InputError(f"{record.where}: {field!r} is {_said(value)}, expected a text")
    return value


def _said(value: Any) -> str:
    return "missing" if value is None else repr(value)[:60]


SHAPES: dict[str, tuple[tuple[str, ...], Callable[[Record], list[Message]]]] = {
    "messages": (("messages",), _from_messages),
    "sharegpt": (("conversations",), _from_sharegpt),
    "alpaca": (("instruction", "output"), _from_alpaca),
    "prompt": (("prompt", "completion"), _from_prompt),
}
"""Name -> the fields by which it is known, and how it is read."""


def _shape(record: Record, shape: str) -> Callable[[Record], list[Message]]:
    if shape == "auto":
        for fields, read in SHAPES.values():
            if all(field in record.content for field in fields):
                return read
        known = "; ".join(" and ".join(fields) for fields, _ in SHAPES.values())
        raise InputError(f"{record.where}: no conversation (found: {', '.join(record.content)}; expected {known})")
    if shape not in SHAPES:
        raise SettingError.unknown("shape", shape, ["auto", *SHAPES])
    return SHAPES[shape][1]
