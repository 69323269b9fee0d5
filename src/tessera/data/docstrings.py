"""What the docstrings of a Python source say: the name of each public thing, and a summary of a sentence or two.

The source is parsed and never imported. What is described is a module, a class, a function, a method or a property
whose name, and every name above it, is public. A summary is made of whole sentences from the docstring's first
paragraph; a docstring that describes nothing (a signature, "See below", half a sentence) gives none.
"""

import ast
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from tessera.data.documents import Document

Kind = Literal["module", "class", "function", "property"]

LONGEST = 200
"""Characters of a summary."""
SHORTEST = 15
LETTERS_SHARE = 0.6
APPLICATIONS = frozenset({"idlelib", "lib2to3", "turtledemo", "ensurepip"})
"""Packages of the standard library that are programs, not something to be called."""

_PARAGRAPH = re.compile(r"\n\s*\n")
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z`'\"(])")
_ABBREVIATION = re.compile(r"(?:\b(?:e\.g|i\.e|cf|vs|etc|incl|approx|resp|Mr|Dr)|\b[A-Z])\.$")
_NOT_PROSE = re.compile(
    r"\s|>>>|[-*+=~:@#|]|\d+[.):] |(?:Args|Arguments|Parameters|Returns|Raises|Usage|Note|Example)s?:"
)
_SIGNATURE = re.compile(r"[\w.\[\], ]*\([^)]*\)\s*(?:->|--|-|=|:|$)|[\w.]+ ?(?:->|=)")
_USELESS = re.compile(
    r"(?:see|same as|like|todo|xxx|fixme|internal|deprecated|undocumented|docstring|usage|for internal|not implemented"
    r"|abstract method|dummy|private|inherited|copyright|written by|author|\$|override)\b|[^\w`'\"<]",
    re.IGNORECASE,
)
_PROPERTIES = frozenset({"property", "cached_property", "DynamicClassAttribute"})


@dataclass(frozen=True)
class Described:
    """A public thing, what its docstring says in short, and the document that it stands in."""

    name: str
    kind: Kind
    summary: str
    document: str


def describe(document: Document) -> list[Described]:
    """What is described in a module, in the order of its source; each name once.

    The document's name is the module's path from where it is imported ("json/decoder.py"): another name, or one of
    something private, gives nothing. A source that is not Python is a `SyntaxError`.
    """
    module = module_name(document.name)
    if module is None:
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an escape that means nothing is the source's business
        tree = ast.parse(document.text)
    found: dict[str, Described] = {}
    for name, kind, text in _docstrings(tree, module):
        short = summary(text)
        if short is not None and name not in found:
            found[name] = Described(name, kind, short, document.name)
    return list(found.values())


def module_name(path: str) -> str | None:
    """How a module is imported, or None where it is no public module of a library.

    >>> module_name("json/__init__.py"), module_name("json/decoder.py"), module_name("json/_tool.py")
    ('json', 'json.decoder', None)
    """
    parts = path.removesuffix(".py").split("/")
    if parts[-1] == "__init__":
        parts.pop()
    if not path.endswith(".py") or not parts or parts[0] in APPLICATIONS:
        return None
    return ".".join(parts) if all(part.isidentifier() and not part.startswith("_") for part in parts) else None


def _docstrings(tree: ast.Module, module: str) -> Iterator[tuple[str, Kind, str]]:
    """(full name, kind, docstring) of the module and of what is public in it."""
    text = ast.get_docstring(tree)
    if text:
        yield module, "module", text
    yield from _in_body(tree.body, module)


def _in_body(body: Sequence[ast.stmt], above: str) -> Iterator[tuple[str, Kind, str]]:
    """The same of statements, those under an `if`, a `try` or a `with` included: there a name is defined as well."""
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if node.name.startswith("_"):
                continue
            name, text = f"{above}.{node.name}", ast.get_docstring(node)
            if text:
                yield name, _kind(node), text
            if isinstance(node, ast.ClassDef):
                yield from _in_body(node.body, name)
        elif isinstance(node, ast.If | ast.Try | ast.With):
            blocks = [getattr(node, field, []) for field in ("body", "orelse", "finalbody")]
            blocks += [handler.body for handler in getattr(node, "handlers", [])]
            for block in blocks:
                yield from _in_body(block, above)


def _kind(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> Kind:
    if isinstance(node, ast.ClassDef):
        return "class"
    names = {getattr(each, "id", getattr(each, "attr", "")) for each in node.decorator_list}
    return "property" if names & _PROPERTIES else "function"


def summary(docstring: str) -> str | None:
    """The whole sentences at a docstring's start that fit into LONGEST characters; None if they say nothing.

    >>> summary("Return the sum.\\n\\n    More about it.")
    'Return the sum.'
    """
    for paragraph in _PARAGRAPH.split(docstring.strip())[:2]:
        text = _prose(paragraph)
        if _SIGNATURE.match(text):  # an old habit: a signature first, and what it does below it
            continue
        short = _fitting(_sentences(text))
        return short if _says_something(short) else None
    return None


def _prose(paragraph: str) -> str:
    """A paragraph as one line, up to a list, a table, an example or a heading in it."""
    kept: list[str] = []
    for line in paragraph.split("\n"):
        if kept and _NOT_PROSE.match(line):
            break
        kept.append(line)
    return " ".join(" ".join(kept).split())


def _sentences(text: str) -> list[str]:
    """The sentences of a text; an abbreviation ends none."""
    made: list[str] = []
    for piece in _SENTENCE.split(text):
        if made and _ABBREVIATION.search(made[-1]):
            made[-1] += f" {piece}"
        else:
            made.append(piece)
    return made


def _fitting(sentences: Sequence[str]) -> str:
    """The first sentences, as many as fit; one that goes on below (it ends in a colon, say) is none."""
    text = ""
    for sentence in sentences:
        whole = sentence if sentence.endswith((".", "!", "?")) else f"{sentence}."
        if not sentence or not (sentence[-1].isalnum() or sentence[-1] in ".!?)]'\"`>"):
            break
        if sentence.endswith("...") or len(text) + 1 + len(whole) > LONGEST:
            break
        text = f"{text} {whole}" if text else whole
    return text


def _says_something(text: str) -> bool:
    letters = sum(each.isalpha() or each == " " for each in text)
    return (
        len(text) >= SHORTEST
        and len(text.split()) >= 3
        and letters >= LETTERS_SHARE * len(text)
        and not _USELESS.match(text)
        and text.isprintable()
    )
