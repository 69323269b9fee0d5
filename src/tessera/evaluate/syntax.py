"""Of what a model wrote, how much is Python: the share of snippets that `ast.parse` accepts."""

import ast
import warnings
from collections.abc import Iterable


def with_body(snippet: str) -> str:
    """A snippet that ends with the head of a block (`if x:`), with `pass` as the block; any other as it is."""
    text = snippet.rstrip()
    if not text.endswith(":"):
        return snippet
    head = text.rpartition("\n")[2]
    indent = head[: len(head) - len(head.lstrip())]
    return f"{text}\n{indent}    pass\n"


def is_python(text: str) -> bool:
    """Whether `ast.parse` accepts `text` and finds a statement in it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a sampled "\d" is a SyntaxWarning, not a syntax error
        try:
            return bool(ast.parse(text).body)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False


def python_share(snippets: Iterable[str]) -> float:
    """The share of `snippets` that are Python, a block without its body counted with one; 0 of none."""
    verdicts = [is_python(with_body(snippet)) for snippet in snippets]
    return sum(verdicts) / len(verdicts) if verdicts else 0.0
