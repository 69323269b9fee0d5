"""Renders chat templates in a process that can do nothing else: no part of Tessera imports this module.

A chat template comes with a model from anyone, and Jinja is a programming language. Its sandbox keeps a template from
Python's objects but not from endless work; so `chat.render` runs this file by its path, without an environment, and
before it reads the template it gives up the right to open a file, to start a process, and to more than its share of
memory and time. A request comes as JSON on standard input, an answer goes as JSON to standard output. Its arguments
are seconds of processor time, bytes of memory, and the folders in which Jinja is.

The special tokens that the template itself writes are marked: each letter is replaced by a character that stands for
that letter of that token, and that occurs nowhere else. Marks go with the text through all that a template does to it.
Whoever compares, searches or cuts a text sees the letters, so that a template does as if there were no marks.
"""

import contextlib
import json
import re
import resource
import sys
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import wraps
from itertools import chain
from types import BuiltinMethodType
from typing import Any, NoReturn, cast

sys.path += sys.argv[3:]  # the interpreter is started without its packages

# What Jinja would import when it first needs it comes in now: later no file can be opened.
import jinja2.constants
import jinja2.debug
import jinja2.ext  # noqa: F401
from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

WARM_UP = r"{% for a in ['\n'] if a is string %}{{ (a | trim ~ '<') | tojson }}{{ strftime_now('%Y') }}{% endfor %}"
"""A template that makes Jinja and Python load what they load late, such as the codec of escapes in a string."""


class TooLongError(Exception):
    """A text grew beyond its bound."""


class _RaisedError(Exception):
    """The template says that the conversation is wrong."""


class _Generation(Extension):
    """`{% generation %}` marks what an assistant wrote, for training; the text is the same without it.

    Where the environment has `blocks`, these two texts are written where it begins and ends.
    """

    tags = {"generation"}  # noqa: RUF012  (Jinja reads it from the class)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        blocks = cast(_Environment, self.environment).blocks
        if blocks is not None:
            first, last = (nodes.Output([nodes.TemplateData(text)], lineno=line) for text in blocks)
            body = [first, *body, last]
        return nodes.Scope(body, lineno=line)


class _Names(Namespace):
    """A namespace that holds no name of Python's inner workings."""

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__()
        for name, value in dict(*given, **more).items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"a namespace may not hold {name!r}")
        super().__setitem__(name, value)


class Marks:
    """`marks` leads from a special token to its marked form, one character for each letter.

    `words` may be the middle of a special token whose two ends the template writes: roles, and words of its own.
    """

    def __init__(self, marks: Mapping[str, str], words: Iterable[str] = ()) -> None:
        self._marks = marks
        self.words = set(words)
        pairs = [pair for name, marked in marks.items() for pair in zip(marked, name, strict=True)]
        self._letters = {ord(mark): letter for mark, letter in pairs}
        self._any = re.compile(f"[{min(pairs)[0]}-{max(pairs)[0]}]") if pairs else re.compile("(?!)")
        longest_first = sorted(marks, key=len, reverse=True)
        self._names = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._beginnings = {name[:n] for name in marks for n in range(1, len(name))}
        self._ends = {name[n:] for name in marks for n in range(1, len(name))}
        self._longest = max(map(len, marks), default=0)

    def mark(self, text: str) -> str:
        return self._names.sub(lambda found: self._marks[found[0]], text)

    def plain(self, value: Any) -> Any:
        """The letters of a text, or of the texts in a list; anything else is as it is."""
        if isinstance(value, str):
            return value.translate(self._letters) if self._any.search(value) else value
        if isinstance(value, list | tuple) and any(isinstance(each, str) and self._any.search(each) for each in value):
            return type(value)(self.plain(each) if isinstance(each, str) else each for each in value)
        return value

    def may_surround(self, left: str, right: str) -> bool:
        """Whether a special token may begin at the end of `left` and end in the beginning of `right`."""
        sizes = range(1, self._longest)
        return any(left[-n:] in self._beginnings for n in sizes) and any(right[:n] in self._ends for n in sizes)

    def join(self, value: Any, left: str, right: str) -> str:
        """left + value + right; where they spell one special token around a word, as '<|' + role + '|>', it is one."""
        if isinstance(value, str) and value in self.words:
            for n in range(min(self._longest, len(left)), 0, -1):
                for m in range(min(self._longest, len(right)), 0, -1):
                    marked = self._marks.get(left[-n:] + value + right[:m]) if left[-n:] in self._beginnings else None
                    if marked is not None:
                        return self.mark(left[:-n]) + marked + self.mark(right[m:])
        return self.mark(left) + value + self.mark(right)

    def cut(self, text: str, method: str, *args: Any, **more: Any) -> Any:
        """What a method of `str` that cuts gives for the letters, with the marks of `text`."""
        if method == "replace":
            return self.replace(text, *args, **more)
        args, more = tuple(map(self.plain, args)), {name: self.plain(value) for name, value in more.items()}
        letters = self.plain(text)
        found = getattr(letters, method)(*args, **more)
        if isinstance(found, str):
            kept_left = method in ("rstrip", "removesuffix")
            start = 0 if kept_left else len(letters) - len(letters.lstrip(*args) if method == "strip" else found)
            return text[start : start + len(found)]
        between = len(args[0]) if method in ("split", "rsplit") else 0
        pieces, start = [], 0
        for piece in found:
            pieces.append(text[start : start + len(piece)])
            start += len(piece) + between
        return type(found)(pieces)

    def replace(self, text: object, old: object, new: object, count: int | None = None) -> str:
        if not (isinstance(text, str) and isinstance(old, str) and old):
            return str(text).replace(str(old), str(new), -1 if count is None else count)
        return str(new).join(self.cut(text, "split", old, -1 if count is None else count))

    def to_json(self, value: Any, ensure_ascii: bool = False, indent: Any = None, **more: Any) -> str:
        """Plain JSON: Jinja's own would write <, > and & for web pages."""
        sort_keys, separators = bool(more.get("sort_keys", False)), more.get("separators")
        text = json.dumps(value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys)
        if not ensure_ascii:
            return text
        return re.sub(r"[^\x00-~]", lambda at: at[0] if ord(at[0]) in self._letters else json.dumps(at[0])[1:-1], text)

    def raise_exception(self, message: object) -> NoReturn:
        raise _RaisedError(self.plain(str(message)))


SEES = frozenset(["startswith", "endswith", "find", "rfind", "index", "rindex", "count"])
CUTS = frozenset(["strip", "lstrip", "rstrip", "removeprefix", "removesuffix", "partition", "rpartition", "split"])
CUTS |= {"rsplit", "replace"}
"""The methods of a text that compare it with another, and of these the ones that give a part of it."""
WRITES = frozenset(("join", "replace", "default", "d"))
"""The filters whose arguments come out again."""
PLAIN, JOIN = "the letters of a text", "a special token around a word"
"""Filters that no template can name."""


class _Environment(ImmutableSandboxedEnvironment):
    """A sandbox in which the template's special tokens are marks."""

    marks = Marks({})
    blocks: tuple[str, str] | None = None

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = _Marking(self.marks).visit(super()._parse(source, name, filename))
        tree.set_environment(self)
        return tree

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        owner, marks = getattr(__obj, "__self__", None), __self.marks
        if isinstance(__obj, BuiltinMethodType):
            name = __obj.__name__
            if isinstance(owner, str) and name in SEES:
                __obj, args = getattr(marks.plain(owner), name), tuple(map(marks.plain, args))
            elif isinstance(owner, str) and name in CUTS and args and args[0] is not None:
                more = {each: value for each, value in kwargs.items() if not each.startswith("_")}  # Jinja's own
                return marks.cut(owner, name, *args, **more)
            elif isinstance(owner, dict | list | tuple):
                args = (*map(marks.plain, args[:1]), *args[1:])
        return super().call(__context, __obj, *args, **kwargs)


class _Marking(NodeTransformer):
    """Marks what the template writes, and has the letters compared."""

    def __init__(self, marks: Marks) -> None:
        self._marks = marks

    def visit_Const(self, node: nodes.Const) -> nodes.Node:  # noqa: N802
        if isinstance(node.value, str):
            self._marks.words.add(node.value)
            node.value = self._marks.mark(node.value)
        return node

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Node:  # noqa: N802
        node.data = self._marks.mark(node.data)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        node.node = self.visit(node.node)
        if isinstance(node.arg, nodes.Slice):
            node.arg = self.visit(node.arg)
        elif not isinstance(node.arg, nodes.Const):
            node.arg = _filtered(self.visit(node.arg), PLAIN)
        return node

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:  # noqa: N802
        node.value = self.visit(node.value)
        return node

    def visit_Filter(self, node: nodes.Filter) -> nodes.Node:  # noqa: N802
        if node.name in WRITES:
            return self.generic_visit(node)
        if node.node is not None:
            node.node = self.visit(node.node)
        return node

    def visit_Test(self, node: nodes.Test) -> nodes.Node:  # noqa: N802
        node.node = self.visit(node.node)
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.expr = _filtered(node.expr, PLAIN)
        for operand in node.ops:
            operand.expr = _filtered(operand.expr, PLAIN)
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Node:  # noqa: N802
        node.nodes = self._joined(node.nodes, to_text=True)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        node.nodes = self._joined(node.nodes, to_text=True)
        return node

    def visit_Add(self, node: nodes.Add) -> nodes.Node:  # noqa: N802
        terms: list[nodes.Expr] = []
        left: nodes.Expr = node
        while isinstance(left, nodes.Add):
            terms.insert(0, left.right)
            left = left.left
        made, *rest = self._joined([left, *terms], to_text=False)
        for term in rest:
            made = nodes.Add(made, term, lineno=node.lineno)
        return made

    def _joined(self, parts: list[nodes.Expr], *, to_text: bool) -> list[nodes.Expr]:
        """The parts of a text, visited; a text, a value and a text become one where they may be a special token."""
        made: list[nodes.Expr] = []
        place = 0
        while place < len(parts):
            left, right = _text_of(parts, place), _text_of(parts, place + 2)
            if left and right and self._marks.may_surround(left, right):
                value = self.visit(parts[place + 1])
                value = _filtered(value, "string") if to_text else value
                made.append(_filtered(value, JOIN, nodes.Const(left), nodes.Const(right)))
                place += 3
            else:
                made.append(self.visit(parts[place]))
                place += 1
        return made


def _text_of(parts: list[nodes.Expr], place: int) -> str | None:
    part = parts[place] if place < len(parts) else None
    if isinstance(part, nodes.TemplateData):
        return part.data
    return part.value if isinstance(part, nodes.Const) and isinstance(part.value, str) else None


def _filtered(node: nodes.Expr, name: str, *args: nodes.Expr) -> nodes.Expr:
    return nodes.Filter(node, name, list(args), [], None, None, lineno=node.lineno)


def _seeing(test: Callable[..., Any], plain: Callable[[Any], Any]) -> Callable[..., Any]:
    @wraps(test)
    def seen(*args: Any, **more: Any) -> Any:
        return test(*map(plain, args), **more)

    return seen


def environment(now: datetime, marks: Marks, blocks: tuple[str, str] | None = None) -> ImmutableSandboxedEnvironment:
    """Jinja as chat templates expect it, in its sandbox."""
    made = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"])
    made.marks, made.blocks = marks, blocks
    made.filters |= {"tojson": marks.to_json, "replace": marks.replace, PLAIN: marks.plain, JOIN: marks.join}
    made.tests = {name: _seeing(cast(Callable[..., Any], test), marks.plain) for name, test in made.tests.items()}
    made.globals |= {
        "raise_exception": marks.raise_exception,
        "strftime_now": now.strftime,
        "namespace": _Names,
        "dict": lambda *given, **more: dict(*given, **more),
    }
    return made


def render_all(request: dict[str, Any]) -> list[str]:
    """The text of each conversation."""
    now, roles = datetime.fromisoformat(request["now"]), (each["role"] for each in chain(*request["conversations"]))
    marks = Marks(request["marks"], roles)
    try:
        template = environment(now, marks, request["blocks"]).from_string(request["template"])
    except SyntaxError as error:  # Python's own, for what Jinja let pass, such as a break that is in no loop
        raise TemplateSyntaxError(error.msg, error.lineno or 0) from None
    texts, left = [], request["most"]
    for messages in request["conversations"]:
        pieces: list[str] = []
        for piece in template.generate(messages=messages, **request["variables"]):
            left -= len(piece)
            if left < 0:
                raise TooLongError
            pieces.append(piece)
        texts.append("".join(pieces))
    return texts


def give_up_rights(seconds: int, n_bytes: int) -> None:
    """From here on: no file to open beside the pipes that are, no process to start, so much work and memory."""
    limits = {
        "RLIMIT_CPU": seconds,
        "RLIMIT_AS": n_bytes,
        "RLIMIT_FSIZE": 0,
        "RLIMIT_NOFILE": 0,
        "RLIMIT_NPROC": 0,
        "RLIMIT_CORE": 0,
    }
    for name, most in limits.items():
        with contextlib.suppress(AttributeError, ValueError, OSError):  # some systems lack some
            resource.setrlimit(getattr(resource, name), (most, most))


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """The texts, or which kind of error stood in the way and what it says."""
    try:
        return {"texts": render_all(request)}
    except _RaisedError as error:
        return {"error": "raised", "message": str(error)}
    except TooLongError:
        return {"error": "limit", "message": "its text grows beyond every bound"}
    except (MemoryError, RecursionError, OverflowError) as error:
        return {"error": "limit", "message": f"it asks for too much ({type(error).__name__})"}
    except SecurityError as error:
        return {"error": "limit", "message": f"it tries to leave the sandbox: {error}"}
    except TemplateSyntaxError as error:
        return {"error": "syntax", "message": f"line {error.lineno}: {error.message}"}
    except TemplateError as error:
        return {"error": "raised", "message": str(error.message or type(error).__name__)}
    except Exception as error:  # whatever a template does with values of the wrong type
        return {"error": "raised", "message": f"{type(error).__name__}: {error}"}


def main() -> None:
    environment(datetime.now(), Marks({})).from_string(WARM_UP).render()
    give_up_rights(int(sys.argv[1]), int(sys.argv[2]))
    reply = answer(json.load(sys.stdin.buffer))
    sys.stdout.buffer.write(json.dumps(reply).encode())
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
