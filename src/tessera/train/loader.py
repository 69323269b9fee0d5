"""Batches made ahead on a thread, so that a step finds its own ready.

What is saved is where the last batch that was *used* stood, not the last that was made: each batch travels with the
cursor that stood behind it. To go back, or on in another size, what was made ahead is thrown away and made again.
"""

from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from tessera.objectives.objective import Source


class Prefetched:
    """A source like the one it wraps, `depth` batches ahead of it.

    The wrapped one must not be drawn from by anybody else. `pin` puts batches where a GPU can fetch them by itself. An
    error in making a batch is raised where that batch would have been used. The thread ends with this object.
    """

    def __init__(self, source: "Source", *, depth: int = 2, pin: bool = False) -> None:
        self.source = source
        self.depth = depth
        self.pin = pin
        self._cursor = dict(source.state())
        self._ahead: deque[Future[tuple[Any, dict[str, Any]]]] = deque()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        while len(self._ahead) <= self.depth:
            self._ahead.append(self._thread.submit(_make, self.source, self.pin))
        batch, self._cursor = self._ahead.popleft().result()
        return batch

    def state(self) -> dict[str, Any]:
        """The cursor behind the last batch that was used."""
        return dict(self._cursor)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on exactly where the source that gave `state` stood."""
        self._stop()
        self.source.restore(state)
        self._cursor = dict(self.source.state())

    @property
    def batch_size(self) -> int:
        """Of the batches that are used from now on."""
        return int(self.source.batch_size)  # type: ignore[attr-defined]

    @batch_size.setter
    def batch_size(self, size: int) -> None:
        if size != self.batch_size:
            self.restore(self._cursor)
            self.source.batch_size = size  # type: ignore[attr-defined]

    def _stop(self) -> None:
        """Let nothing be made any more, and throw away what was."""
        for future in self._ahead:
            if not future.cancel():
                future.exception()  # waits; an error of a batch that nobody uses is nobody's
        self._ahead.clear()


def _make(source: "Source", pin: bool) -> tuple[Any, dict[str, Any]]:
    batch = next(source)
    return batch.pinned() if pin else batch, dict(source.state())
