"""What docstrings say: names, kinds and whole sentences; against what Python itself says of imported modules."""

import importlib
import inspect

import pytest

from tessera.data.docstrings import LONGEST, describe, module_name, summary
from tessera.data.documents import Document, read_documents

SOURCE = '''
"""A module to read. It has two sentences."""

import sys

if sys.platform == "linux":
    def chosen():
        """Return what this platform has."""
else:
    def chosen():
        """Return what the others have."""

def _private():
    """Return what nobody may ask for."""

def silent(): ...

class Box:
    """Hold a single thing."""

    def open(self):
        """Open the box,
        and look into it.

        Much more is said here."""

        def inner():
            """Return what is inside of a function."""

    def __len__(self):
        """Return how much is in it."""

    @property
    def size(self):
        """The size in metres."""

    @size.setter
    def size(self, value):
        """Change the size to this."""

class _Hidden:
    def shown(self):
        """Return what only looks public."""
'''


def test_names_kinds_and_summaries() -> None:
    found = [(each.name, each.kind, each.summary) for each in describe(Document("pack/thing.py", SOURCE))]
    assert found == [
        ("pack.thing", "module", "A module to read. It has two sentences."),
        ("pack.thing.chosen", "function", "Return what this platform has."),
        ("pack.thing.Box", "class", "Hold a single thing."),
        ("pack.thing.Box.open", "function", "Open the box, and look into it."),
        ("pack.thing.Box.size", "property", "The size in metres."),
    ]


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        ("Return the sum of them", "Return the sum of them."),
        ("Join them, e.g. Two words. See `also`.", "Join them, e.g. Two words. See `also`."),
        ("Do it now, at once. " + "X" * LONGEST, "Do it now, at once."),
        ("Return one of these:\n  - a\n  - b", None),
        ("Find the best of them. The choices are:\n  a\n  b", "Find the best of them."),
        ("dumps(obj, indent=None) -> str\n\nReturn obj as a JSON text.", "Return obj as a JSON text."),
        ("See the other one for it.", None),
        ("No.", None),
        (">>> print(1)\n1", None),
        ("x = " + "0123456789 " * 5, None),
        ("word " * 60, None),
    ],
)
def test_a_summary_is_whole_sentences_that_say_something(docstring: str, expected: str | None) -> None:
    assert summary(docstring) == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("os.py", "os"),
        ("xml/dom/__init__.py", "xml.dom"),
        ("_pyio.py", None),
        ("a/_b/c.py", None),
        ("__init__.py", None),
        ("config-3.11/python-config.py", None),
        ("idlelib/run.py", None),
        ("notes.txt", None),
        ("/usr/lib/os.py", None),
    ],
)
def test_a_path_says_how_a_module_is_imported(path: str, expected: str | None) -> None:
    assert module_name(path) == expected


def test_python_says_the_same_of_the_modules_it_imports() -> None:
    """A summary is how the object's own docstring begins, or (below a signature) a part of it."""
    names = {"json/__init__.py", "textwrap.py", "shutil.py", "collections/__init__.py", "pathlib.py", "heapq.py"}
    checked = 0
    for document in read_documents(["python-stdlib"]):
        if document.name not in names:
            continue
        module = importlib.import_module(str(module_name(document.name)))
        for each in describe(document):
            value = module
            for part in each.name.removeprefix(module.__name__).strip(".").split("."):
                value = inspect.getattr_static(value, part) if part else value
            text = " ".join((inspect.getdoc(getattr(value, "__func__", value)) or "").split())
            if "built-in" not in repr(value):  # what C code put in the place of the Python source
                assert each.summary.rstrip(".") in text, each
                checked += 1
    assert checked > 100
