"""Who watches a job go by: a console, a notebook, or nobody."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Watcher:
    """Sees the job go by. Every method may be overridden; this one keeps quiet."""

    def say(self, line: str) -> None:
        """Something worth knowing, such as a choice that was made."""

    @contextmanager
    def phase(self, what: str) -> Iterator[None]:
        """A part of the job that takes a while."""
        yield

    @contextmanager
    def steps(self) -> Iterator[Any]:
        """The training; gives what is called with each step's `Progress`."""
        yield lambda progress: None

    def sample(self, prompt: str, pieces: Iterator[str]) -> str:
        """A sample as it is made; whatever happens, all pieces are read. Returns the whole."""
        return "".join(pieces)
