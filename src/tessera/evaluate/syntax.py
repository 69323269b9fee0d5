"""Of what a model wrote, how much is Python: the share of snippets that `ast.parse` accepts."""

import ast
import re
import warnings
from collections.abc import Iterable

_STATEMENT = re.compile(r"^(?=[^\s#)\]}])", re.MULTILINE)


def complete_part(snippet: str) -> str:
    """`snippet` without its last top-level statement, which the end of sampling may have cut in two.

    A statement starts at a line that is neither blank, indented, a comment nor a closing bracket. What is left may be
    empty.
    """
    starts = [match.start() for match in _STATEMENT.finditer(snippet)]
    return snippet[: starts[-1]] if starts else ""


def is_python(text: str) -> bool:
    """Whether `ast.parse` accepts `text` and finds a statement in it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a sampled "\d" is a SyntaxWarning, not a syntax error
        try:
            return bool(ast.parse(text).body)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False


def python_share(snippets: Iterable[str]) -> float:
    """The share of `snippets` whose complete part is Python; one with no complete statement counts as not."""
    verdicts = [is_python(complete_part(snippet)) for snippet in snippets]
    return sum(verdicts) / len(verdicts) if verdicts else 0.0
