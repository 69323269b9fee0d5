"""Prompts with a checker: a task whose answer can be judged by a rule, which is a reward that nobody can flatter.

    exact       the answer, without space around it, is the task's "answer"
    regex       a pattern is found in it (or is all of it)
    number      the last number in it, or the one after "####" (Cobbe et al. 2021, GSM8K), is that of the task's answer
    function    what a Python function, `module:function` or `FILE.py:function`, says of (answer, task)

A checker is called with the text of an answer and the record of its task, and gives a number: 1.0 right, 0.0 wrong, or
whatever a function says.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import regex

from tessera.data.records import Record, read_records
from tessera.data.turns import Message, prompt
from tessera.errors import InputError, SettingError

Content = Mapping[str, Any]
SECONDS = 1.0
"""For one search with a pattern: some patterns would take for ever."""


class Checker(Protocol):
    """Judges answers."""

    def check_task(self, task: Content, where: str) -> None:
        """An `InputError` that names the file and line if the task lacks what is needed to judge its answers."""

    def __call__(self, answer: str, task: Content) -> float: ...


@dataclass(frozen=True)
class Task:
    """A prompt, and the record that a checker judges its answers by."""

    messages: list[Message]
    content: Content
    where: str


def read_tasks(sources: str | Path | Sequence[str | Path], checker: Checker) -> list[Task]:
    """The tasks in some files, each one such that its answers can be judged."""
    return tasks_of(read_records(sources), checker)


def tasks_of(records: Sequence[Record], checker: Checker | None) -> list[Task]:
    """The tasks in some records; without a checker somebody else judges their answers."""
    if checker is not None:
        for record in records:
            checker.check_task(record.content, record.where)
    return [Task(prompt(record), record.content, record.where) for record in records]


class _OfField:
    """What the checkers that compare with a field of the task share."""

    def __init__(self, *, field: str = "answer") -> None:
        self.field = field

    def expected(self, task: Content, where: str = "a task") -> str:
        value = task.get(self.field)
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise InputError(f"{where}: {self.field!r} is {value!r}, expected a text or a number")
        # A float as people write it: 1e-05 would be read as a number 5.
        return format(Decimal(repr(value)), "f") if isinstance(value, float) else str(value)

    def check_task(self, task: Content, where: str) -> None:
        self.expected(task, where)


class Exact(_OfField):
    """The very answer; with `ignore_case` in letters of either size."""

    def __init__(self, *, field: str = "answer", ignore_case: bool = False) -> None:
        super().__init__(field=field)
        self.ignore_case = ignore_case

    def __call__(self, answer: str, task: Content) -> float:
        found, expected = answer.strip(), self.expected(task).strip()
        same = found.casefold() == expected.casefold() if self.ignore_case else found == expected
        return float(same)


class Regex(_OfField):
    """A pattern that is found in the answer, or with `whole` is all of it. If none is given, the task has it."""

    def __init__(self, *, pattern: str | None = None, field: str = "pattern", whole: bool = False) -> None:
        super().__init__(field=field)
        self.whole = whole
        self._given = None if pattern is None else _compiled(pattern, "checker.pattern")

    def check_task(self, task: Content, where: str) -> None:
        if self._given is None:
            _compiled(self.expected(task, where), where)

    def __call__(self, answer: str, task: Content) -> float:
        pattern = _compiled(self.expected(task), "a task") if self._given is None else self._given
        search = pattern.fullmatch if self.whole else pattern.search
        try:
            return float(search(answer.strip(), timeout=SECONDS) is not None)
        except TimeoutError:
            return 0.0


def _compiled(pattern: str, where: str) -> Any:
    try:
        return regex.compile(pattern)
    except regex.error as error:
        raise InputError(f"{where}: {pattern!r} is not a regular expression ({error})") from None


_NUMBER = regex.compile(r"[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")


def number_in(text: str) -> Decimal | None:
    """The number after the last "####", or else the last number; commas in it are left out.

    >>> number_in("2 and 2 are 4, so #### 1,234.50")
    Decimal('1234.50')
    """
    _, marked, after = text.rpartition("####")
    found = _NUMBER.search(after) if marked else None
    numbers = [found[0]] if found else _NUMBER.findall(text)
    try:
        return Decimal(numbers[-1].replace(",", "")) if numbers else None
    except InvalidOperation:
        return None


class Number(_OfField):
    """The same number, however it is written, within `tolerance`."""

    def __init__(self, *, field: str = "answer", tolerance: float = 0.0) -> None:
        super().__init__(field=field)
        if not 0 <= tolerance < math.inf:
            raise SettingError("checker.tolerance", tolerance, "a number, 0 or greater")
        self.tolerance = tolerance

    def check_task(self, task: Content, where: str) -> None:
        expected = self.expected(task, where)
        if number_in(expected) is None:
            raise InputError(f"{where}: no number in {self.field!r} ({expected[:60]!r})")

    def __call__(self, answer: str, task: Content) -> float:
        found, expected = number_in(answer), number_in(self.expected(task))
        if found is None or expected is None:
            return 0.0
        # No arithmetic on what a model says: its number may be longer than any that can be subtracted.
        tolerance = Decimal(str(self.tolerance))
        return float(found == expected or expected - tolerance <= found <= expected + tolerance)


def _module(name: str) -> ModuleType:
    """A module by its name, or a file of Python by its path."""
    if not name.endswith(".py"):
        return import_module(name)
    spec = spec_from_file_location(Path(name).stem, name)
    assert spec is not None  # as a name that ends in .py always has a loader
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Function:
    """`path` is `module:function` or `FILE.py:function`; the function takes an answer and its task's record."""

    def __init__(self, *, path: str) -> None:
        module, colon, name = path.rpartition(":")
        if not (module and colon and name):
            raise SettingError("checker.path", path, "module:function, or FILE.py:function")
        try:
            found = getattr(_module(module), name, None)
        except (ImportError, FileNotFoundError, ValueError) as error:
            raise SettingError("checker.path", path, f"a module that can be imported ({error})") from None
        if not callable(found):
            raise SettingError("checker.path", path, f"a function in the module: {module} has no function {name!r}")
        self.path, self._function = path, found

    def check_task(self, task: Content, where: str) -> None:
        """Nothing is known of what the function needs."""

    def __call__(self, answer: str, task: Content) -> float:
        reward = self._function(answer, task)
        if not isinstance(reward, Real) or not math.isfinite(reward):
            raise InputError(f"{self.path} gave {reward!r}, expected a finite number")
        return float(reward)


CHECKERS: dict[str, Any] = {"exact": Exact, "regex": Regex, "number": Number, "function": Function}
