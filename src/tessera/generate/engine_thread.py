"""The engine for many callers: one thread makes the steps, any thread asks, reads and cancels.

    with EngineThread(Scheduler(backend, tokenizer)) as engine:
        asked = engine.ask(ids, sampling)
        for event in asked: print(event.text)        # or asked.cancel(), from anywhere

The scheduler is touched by the one thread alone. Callers leave a note for it and get their events from a queue of their
own; a caller that reads slowly holds nobody up.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Self

from tessera.errors import InputError, TesseraError
from tessera.generate.requests import Completion, Event
from tessera.generate.sampling import Sampling
from tessera.generate.scheduler import Scheduler

Note = Callable[[], None]


class Asked:
    """A request on its way. Iterating gives its events, the last one too; to be read by one thread."""

    def __init__(self, cancel: Callable[["Asked"], None]) -> None:
        self._cancel = cancel
        self._events: SimpleQueue[Event | BaseException] = SimpleQueue()
        self.number: int | None = None
        """What the scheduler calls it, once it has it."""
        self.over = False

    def __iter__(self) -> Iterator[Event]:
        while not self.over:
            yield self.next()

    def next(self, timeout: float | None = None) -> Event:
        """The next event, waited for; `TimeoutError` if none comes in time. An error of the request is raised."""
        try:
            event = self._events.get(timeout=timeout)
        except Empty:
            raise TimeoutError(f"no event in {timeout} seconds") from None
        if isinstance(event, BaseException) or event.error is not None:
            self.over = True
            raise event if isinstance(event, BaseException) else event.error  # type: ignore[misc]
        self.over = event.last
        return event

    def completion(self) -> Completion:
        """The whole answer, waited for."""
        found = [event.completion for event in self if event.completion is not None]
        if not found:
            raise InputError("the answer has been read already")
        return found[0]

    def cancel(self) -> None:
        """Free what it holds before the next step. Who reads on gets an `InputError`, unless it had ended."""
        self._cancel(self)

    def tell(self, event: Event | BaseException) -> None:
        """For the thread that makes the steps."""
        self._events.put(event)


class EngineThread:
    """Owns a scheduler, which nobody else may touch from now on. `close` (or `with`) ends the thread."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._notes: SimpleQueue[Note | None] = SimpleQueue()
        self._asked: dict[int, Asked] = {}
        self._lock = threading.Lock()
        self._closed: InputError | None = None
        self._thread = threading.Thread(target=self._work, name="tessera engine", daemon=True)
        self._thread.start()

    def ask(self, prompt: Sequence[int], sampling: Sampling, *, negative: Sequence[int] | None = None) -> Asked:
        """Put a request into the queue. What is wrong with it is raised where its events are read."""
        asked = Asked(self._cancel)

        def add() -> None:
            try:
                asked.number = self._scheduler.add(prompt, sampling, negative=negative)
            except TesseraError as error:
                asked.tell(error)
            else:
                self._asked[asked.number] = asked

        self._leave(add)
        return asked

    def close(self) -> None:
        """End the thread after the step that it is in; whoever is not answered yet gets an `InputError`."""
        with self._lock:
            if self._closed is None:
                self._closed = InputError("the engine has been closed")
                self._notes.put(None)
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _leave(self, note: Note) -> None:
        with self._lock:  # so that no note comes after the last one
            if self._closed is not None:
                raise self._closed
            self._notes.put(note)

    def _cancel(self, asked: Asked) -> None:
        def cancel() -> None:
            if asked.number is not None and self._asked.pop(asked.number, None) is not None:
                self._scheduler.cancel(asked.number)
                asked.tell(InputError("the request was cancelled"))

        with self._lock:
            if self._closed is None:
                self._notes.put(cancel)

    def _work(self) -> None:
        reason: BaseException = InputError("the engine has been closed")
        try:
            while self._read_notes():
                for event in self._scheduler.step():
                    asked = self._asked[event.request]
                    if event.last:
                        del self._asked[event.request]
                    asked.tell(event)
        except BaseException as error:  # whoever waits must hear of it, or would wait for ever
            reason = error
            raise
        finally:
            self._end(reason)

    def _read_notes(self) -> bool:
        """Do what the notes say, waiting for one if there is nothing else to do; False after the last one."""
        while True:
            try:
                note = self._notes.get(block=not self._scheduler.busy)
            except Empty:
                return True
            if note is None:
                return False
            note()

    def _end(self, reason: BaseException) -> None:
        with self._lock:
            if self._closed is None:
                self._closed = InputError(f"the engine has failed: {reason}")
        while not self._notes.empty():  # what is asked for in these would not be answered either
            note = self._notes.get()
            if note is not None:
                note()
        for asked in self._asked.values():
            asked.tell(reason)
        self._asked.clear()
