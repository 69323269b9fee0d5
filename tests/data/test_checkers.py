"""Checkers: right is 1, wrong is 0, no answer of a model is an error, and a task without what is needed is named."""

import re
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.chats import lines, said

from tessera.data import checkers
from tessera.data.checkers import CHECKERS, Exact, Function, Number, Regex, number_in, read_tasks
from tessera.errors import InputError, SettingError

RIGHT_AND_WRONG: list[tuple[Any, dict[str, Any], list[str], list[str]]] = [
    (Exact(), {"answer": "Paris"}, ["Paris", " Paris\n"], ["paris", "Paris.", ""]),
    (Exact(ignore_case=True), {"answer": "Stra\u00dfe"}, ["strasse", "STRASSE"], ["strase"]),
    (Exact(field="city"), {"city": 7}, ["7"], ["7.0"]),
    (Exact(), {"answer": 0.00001}, ["0.00001"], ["1e-05"]),
    (Regex(), {"pattern": r"^\d+$"}, ["12", " 12 "], ["a12", ""]),
    (Regex(pattern=r"\bcat\b"), {}, ["the cat sat"], ["cats", "dog"]),
    (Regex(pattern="a|b", whole=True), {}, ["a", " b"], ["ab", "c"]),
    (
        Number(),
        {"answer": "so 9 * 2 = <<9*2=18>>18\n#### 18"},
        ["18", "it is $18.00.", "7\n#### 18"],
        ["#### 17", "", "x"],
    ),
    (Number(), {"answer": "#### 1,234"}, ["1234", "1,234", "#### 1234.0 of 9", "= 1,234."], ["234", "#### 1.234"]),
    (Number(), {"answer": -5}, ["-5", "it is -5"], ["5", "5-"]),
    (Number(tolerance=0.01), {"answer": 0.1}, ["0.1", ".105", "0.09"], ["0.2", "0.0899"]),
    (Number(), {"answer": 1e-5}, ["0.00001"], ["5", "-5"]),
    (Number(), {"answer": "no answer 3 #### none"}, ["3"], ["none"]),
]


@pytest.mark.parametrize(("checker", "task", "right", "wrong"), RIGHT_AND_WRONG, ids=[str(i) for i in range(13)])
def test_right_and_wrong(checker: Any, task: dict[str, Any], right: list[str], wrong: list[str]) -> None:
    checker.check_task(task, "f:1")
    assert {answer: checker(answer, task) for answer in [*right, *wrong]} == {
        **dict.fromkeys(right, 1.0),
        **dict.fromkeys(wrong, 0.0),
    }


def theirs(text: str) -> Decimal | None:
    """GSM8K as its authors read it: what stands after the marker, without commas."""
    found = re.search(r"#### (\-?[0-9\.\,]+)", text)
    return Decimal(found[1].replace(",", "")) if found else None


@given(st.integers(-(10**9), 10**9), st.text(max_size=20), st.booleans())
def test_the_marked_number_of_gsm8k(number: int, before: str, commas: bool) -> None:
    text = f"{before.replace('#', '')}\n#### {number:,}" if commas else f"{before.replace('#', '')}\n#### {number}"
    assert number_in(text) == theirs(text) == number


@settings(max_examples=150)
@given(st.text(st.sampled_from("0123456789,.-+# e\u0663\u00b2x") | st.characters(), max_size=30))
def test_whatever_a_model_says_is_judged(answer: str) -> None:
    for checker, task in ((Number(), {"answer": 3}), (Exact(), {"answer": "3"}), (Regex(pattern="3$"), {})):
        assert checker(answer, task) in (0.0, 1.0)


def test_a_number_as_long_as_a_book() -> None:
    for answer in ("9" * 100_000, "0." + "9" * 100_000, "9" * 1_100_000):
        assert Number()(answer, {"answer": 3}) == 0.0


def test_a_pattern_that_would_take_for_ever_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkers, "SECONDS", 0.05)
    assert Regex(pattern=r"(a|aa|b?)+(a+)+$")("a" * 500 + "!", {}) == 0.0
    assert Regex(pattern=r"(x+x+)+y")("x" * 500 + "y", {}) == 1.0


def reward(answer: str, task: dict[str, Any]) -> Any:
    return task["rewards"].get(answer)


def test_a_function_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_rewards.py").write_text("LIMIT = 3\ndef short(answer, task):\n    return len(answer) < LIMIT\n")
    monkeypatch.syspath_prepend(tmp_path)
    for path in ("my_rewards:short", f"{tmp_path}/my_rewards.py:short"):
        checker = Function(path=path)
        checker.check_task({}, "f:1")
        assert (checker("ab", {}), checker("abc", {})) == (1.0, 0.0)
    sys.modules.pop("my_rewards", None)
    for wrong, expected in (
        ("short", "module:function, or FILE.py:function"),
        (":short", "module:function"),
        ("my_rewards:", "module:function"),
        ("no_such_module_of_mine:short", "a module that can be imported .No module named"),
        (f"{tmp_path}/none.py:short", "a module that can be imported .*No such file"),
        ("my_rewards:LIMIT", "a function in the module: my_rewards has no function 'LIMIT'"),
        ("my_rewards:none", "has no function 'none'"),
    ):
        with pytest.raises(SettingError, match=f"checker.path = .*{expected}"):
            Function(path=wrong)


def test_what_a_function_gives_must_be_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    checker = Function(path="os.path:join")
    good = {"half": 0.5, "yes": True, "one": 1, "small": np.float32(0.25), "int": np.int64(2)}
    monkeypatch.setattr(checker, "_function", reward)
    task = {"rewards": good | {"bad": "x", "nan": float("nan"), "inf": float("inf")}}
    assert [checker(name, task) for name in good] == [0.5, 1.0, 1.0, 0.25, 2.0]
    for name in ("bad", "nan", "inf", "missing"):
        with pytest.raises(InputError, match=r"os\.path:join gave .*, expected a finite number"):
            checker(name, task)


def test_tasks_are_read_with_their_prompts(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "tasks.jsonl",
        {"question": "2+2?", "answer": "#### 4"},
        {"prompt": said("a", "b", "c", system="S"), "answer": 5},
        {"instruction": "3+3?", "answer": "6"},
    )
    found = read_tasks(path, Number())
    assert [task.messages for task in found] == [said("2+2?"), said("a", "b", "c", system="S"), said("3+3?")]
    assert [task.where for task in found] == [f"{path}:{n}" for n in (1, 2, 3)]
    assert Number()("it is 4", found[0].content) == 1.0


BAD: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("exact", {}, {"question": "a"}, "'answer' is None, expected a text or a number"),
    ("exact", {}, {"question": "a", "answer": True}, "'answer' is True, expected a text or a number"),
    ("exact", {"field": "city"}, {"question": "a", "answer": "b"}, "'city' is None"),
    ("regex", {}, {"question": "a", "pattern": "(a"}, r"'\(a' is not a regular expression"),
    ("regex", {}, {"question": "a"}, "'pattern' is None"),
    ("number", {}, {"question": "a", "answer": "four"}, r"no number in 'answer' \('four'\)"),
    ("number", {}, {"question": "a", "answer": float("nan")}, r"no number in 'answer' \('NaN'\)"),
    ("number", {}, {"answer": 4}, r"no prompt \(found: answer\)"),
    ("function", {"path": "os.path:join"}, {"answer": 4}, r"no prompt"),
]


@pytest.mark.parametrize(
    ("name", "given", "content", "message"), BAD, ids=[f"{each[0]} {each[3][:30]}" for each in BAD]
)
def test_a_task_that_cannot_be_judged_is_named(
    tmp_path: Path, name: str, given: Any, content: Any, message: str
) -> None:
    good = {"question": "a", "answer": 4, "pattern": "a", "city": "b"}
    path = lines(tmp_path / "tasks.jsonl", good, content)
    with pytest.raises(InputError, match=rf"tasks\.jsonl:2: {message}"):
        read_tasks(path, CHECKERS[name](**given))


def test_wrong_settings() -> None:
    for tolerance in (-1.0, float("inf"), float("nan")):
        with pytest.raises(SettingError, match=r"checker\.tolerance = .*: expected a number, 0 or greater"):
            Number(tolerance=tolerance)
    with pytest.raises(InputError, match=r"checker\.pattern: '\[' is not a regular expression"):
        Regex(pattern="[")
