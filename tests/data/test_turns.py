"""Each shape in which conversations are written gives the same messages; what cannot be one is named by its line."""

from typing import Any

import pytest
from tests.data.chats import record, said

from tessera.data.turns import SHAPES, answer, checked, conversation, prompt
from tessera.errors import InputError, SettingError

EXPECTED = said("Add.\n\n2 and 3", "5", system="Be brief.")
WRITTEN: dict[str, dict[str, Any]] = {
    "messages": {"messages": EXPECTED},
    "messages and a system": {"system": "Be brief.", "messages": EXPECTED[1:]},
    "sharegpt": {
        "conversations": [
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "Add.\n\n2 and 3"},
            {"from": "gpt", "value": "5"},
        ]
    },
    "sharegpt in other words": {
        "system": "Be brief.",
        "conversations": [{"from": "user", "value": "Add.\n\n2 and 3"}, {"role": "assistant", "content": "5"}],
    },
    "alpaca": {"system": "Be brief.", "instruction": "Add.", "input": "2 and 3", "output": "5"},
    "prompt": {"system": "Be brief.", "prompt": "Add.\n\n2 and 3", "completion": "5"},
    "prompt of messages": {"prompt": EXPECTED[:2], "completion": EXPECTED[2:]},
    "prompt and a message": {"prompt": EXPECTED[:2], "completion": EXPECTED[2]},
}


@pytest.mark.parametrize("name", WRITTEN)
def test_each_shape_gives_the_same_messages(name: str) -> None:
    found = record(**WRITTEN[name])
    shape = name.split()[0]
    for messages in (conversation(found), conversation(found, shape)):
        assert [{"role": each["role"], "content": each["content"]} for each in messages] == EXPECTED
    assert [each["content"] for each in prompt(found)] == ["Be brief.", "Add.\n\n2 and 3"]
    assert shape in SHAPES


def test_alpaca_keeps_its_input_apart_and_has_a_past() -> None:
    found = conversation(record(instruction="c", input="x", output="d", history=[["a", "b"]], system=" "))
    assert found[:2] == said("a", "b")
    assert found[2] == {"role": "user", "content": "c\n\nx", "instruction": "c", "input": "x"}
    for nothing in ({}, {"input": None}, {"input": " \n"}, {"history": None}):
        assert conversation(record(instruction="c", output="d", **nothing)) == said("c", "d")


def test_of_two_shapes_the_first_is_taken_unless_another_is_asked_for() -> None:
    both = record(messages=said("a", "b"), prompt="c", completion="d")
    assert conversation(both) == said("a", "b")
    assert conversation(both, "prompt") == said("c", "d")


def test_calls_of_tools() -> None:
    calls = [{"function": {"name": "f", "arguments": {}}}]
    messages = [
        *said("a"),
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "content": ""},
    ]
    assert conversation(record(messages=[{**each, "name": None} for each in messages])) == messages


def test_a_prompt_is_what_comes_before_the_last_answer() -> None:
    for content in (
        {"prompt": "a"},
        {"question": "a"},
        {"query": "a"},
        {"instruction": "a"},
        {"messages": said("a", "b")},
    ):
        assert prompt(record(**content)) == said("a")
    assert prompt(record(conversations=[{"from": "human", "value": "a"}])) == said("a")
    assert prompt(record(prompt=said("a", "b", "c"))) == said("a", "b", "c")


def test_an_answer_in_three_ways() -> None:
    for value in ("b", {"from": "gpt", "value": "b"}, {"role": "assistant", "content": "b"}):
        assert answer(value, "f:1", "chosen") == [{"role": "assistant", "content": "b"}]
    for wrong in (7, None, [], said("a"), [{"role": "user", "content": "a"}]):
        with pytest.raises(InputError, match=r"^f:1: 'chosen' (is a|does not end with)"):
            answer(wrong, "f:1", "chosen")


USER, NOBODY = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
BAD: list[tuple[dict[str, Any], str]] = [
    (
        {"messages": [USER, {"role": "asistant", "content": "b"}]},
        "message 2 has the role 'asistant' .choices: system, ",
    ),
    ({"conversations": [{"from": "alien", "value": "a"}]}, "a message is from 'alien' .choices: human, "),
    ({"conversations": [{"from": ["x"], "value": "a"}]}, "a message is from .'x'. .choices"),
    ({"messages": [USER, {"role": "assistant", "content": " \n"}]}, "message 2, the assistant's, is empty"),
    ({"messages": [USER, {"role": "assistant", "content": []}]}, "message 2, the assistant's, is empty"),
    ({"messages": [USER, {"role": "assistant", "content": [{"type": "text", "text": " "}]}]}, "assistant's, is empty"),
    ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": ""}]}, "message 2.* is empty"),
    ({"instruction": "a", "output": ""}, "message 2, the assistant's, is empty"),
    ({"prompt": "a", "completion": ""}, "message 1, the assistant's, is empty"),
    ({"messages": [{"role": "user", "content": 5}]}, "the content of message 1 is 5, expected a text"),
    ({"messages": [{"role": "user"}]}, "the content of message 1 is missing, expected a text"),
    ({"conversations": [{"from": "human"}]}, "the content of message 1 is missing, expected a text"),
    ({"messages": [{"content": "a"}]}, "a message has no role .found: content"),
    ({"messages": ["a"]}, "a message is 'a', expected an object"),
    ({"messages": "a"}, "'messages' is 'a', expected a list of messages"),
    ({"messages": []}, "a conversation without a message"),
    ({"conversations": None}, "'conversations' is missing"),
    ({"instruction": 3, "output": "b"}, "'instruction' is 3, expected a text"),
    ({"instruction": "a", "output": None}, "'output' is missing, expected a text"),
    ({"instruction": "a", "output": "b", "history": ["ab"]}, "an entry of 'history' is 'ab', expected .question"),
    ({"instruction": "a", "output": "b", "history": [["x", ""]]}, "message 2, the assistant's, is empty"),
    ({"prompt": "a", "completion": 7}, "'completion' is a int, expected a text or messages"),
    ({"prompt": 7, "completion": "b"}, "no prompt .found: prompt, completion"),
    ({"messages": [USER, NOBODY], "system": 5}, "'system' is 5, expected a text"),
    (
        {"text": "a"},
        "no conversation .found: text; expected messages; conversations; instruction and output; prompt and",
    ),
]


@pytest.mark.parametrize(("content", "message"), BAD, ids=[message for _, message in BAD])
def test_what_is_no_conversation_is_named(content: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^talk.jsonl:7: .*{message}"):
        conversation(record("talk.jsonl:7", **content))


def test_there_must_be_a_prompt() -> None:
    for content in ({"answer": "5"}, {"messages": [NOBODY]}, {"prompt": []}, {"question": 5}):
        with pytest.raises(InputError, match=r"^f:2: no prompt"):
            prompt(record("f:2", **content))
    with pytest.raises(SettingError, match="did you mean 'alpaca'"):
        conversation(record(messages=[USER]), "alpacca")
    assert checked([USER], "f:1") == [USER]
