"""Ctrl-C that loses nothing: the first one asks the loop to save and stop, the second one stops at once."""

import signal
import threading
from types import FrameType
from typing import Any


class Interrupt:
    """While active, SIGINT and SIGTERM set `asked`; a second SIGINT raises KeyboardInterrupt, a second SIGTERM
    SystemExit with the status that a shell expects.

    Outside the main thread, where Python handles no signals, it does nothing.
    """

    def __init__(self) -> None:
        self.asked = False
        self.number = 0
        """Of the signal that asked: a command that it ended exits with 128 + number."""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.asked:
            raise SystemExit(128 + number)
        self.asked, self.number = True, number
