"""What counts as Python, and what is cut off before it is judged."""

import warnings

import pytest

from tessera.evaluate.syntax import complete_part, is_python, python_share

CASES = [
    ("", ""),
    ("x = 1", ""),
    ("x = 1\ny = 2", "x = 1\n"),
    ("x = 1\ny = (2,", "x = 1\n"),
    ("def f():\n    return 1\n\ndef g(", "def f():\n    return 1\n\n"),
    ("def f():\n    return", ""),
    ("f(\n    1,\n)\nx", "f(\n    1,\n)\n"),
    ("x = [\n]\n", ""),
    ("import a\n# a comment\n  ", ""),
    ("import a\n\n# a comment\nimport b", "import a\n\n# a comment\n"),
    ("    indented\n  only", ""),
]


@pytest.mark.parametrize(("snippet", "complete"), CASES)
def test_the_last_top_level_statement_is_left_out(snippet: str, complete: str) -> None:
    assert complete_part(snippet) == complete


@pytest.mark.parametrize("text", ["x = 1", "def f():\n    pass\n", "import os\n# end\n", '"text"', 'x = "\\d"', "é = 1"])
def test_python_is_python(text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert is_python(text)


@pytest.mark.parametrize(
    "text",
    ["", "\n\n", "# only a comment", "x =", "def f(:", "  x = 1", "a b", "x = '", "x\0y", "(" * 5000, "\ud800 = 1"],
)
def test_what_is_not_python_is_not(text: str) -> None:
    assert not is_python(text)


def test_the_share_is_of_all_snippets() -> None:
    good, bad, incomplete = "x = 1\ny = (", "x = = 1\ny = 2", "x = 1"
    assert python_share([good, bad, incomplete, good]) == 0.5
    assert python_share([good]) == 1.0
    assert python_share([]) == 0.0
