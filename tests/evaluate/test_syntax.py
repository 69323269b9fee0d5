"""What counts as Python, and what is added before it is judged."""

import warnings

import pytest

from tessera.evaluate.syntax import is_python, python_share, with_body

CASES = [
    ("", ""),
    ("x = 1", "x = 1"),
    ("if x:", "if x:\n    pass\n"),
    ("if x:  \n", "if x:\n    pass\n"),
    ("def f():\n    for x in y:", "def f():\n    for x in y:\n        pass\n"),
    ("x[1:", "x[1:\n    pass\n"),
]


@pytest.mark.parametrize(("snippet", "whole"), CASES)
def test_the_head_of_a_block_is_given_a_body(snippet: str, whole: str) -> None:
    assert with_body(snippet) == whole


@pytest.mark.parametrize(
    "text", ["x = 1", "def f():\n    pass\n", "import os\n# end\n", '"text"', 'x = "\\d"', "é = 1"]
)
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
    good, head, bad, incomplete = "x = 1", "def f():", "x = = 1", "x = ("
    assert python_share([good, bad, incomplete, head]) == 0.5
    assert python_share([good, head]) == 1.0
    assert python_share([]) == 0.0
