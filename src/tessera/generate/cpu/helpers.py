"""The threads that help with a step: asleep between steps, awake and looking for work during one and shortly after.

They are ordinary threads of Python inside one compiled function, which holds no GIL. So waking costs a lock's release,
and the thread that asks goes on at once and waits for nobody who has not come yet.
"""

import threading
from typing import Any

import numpy as np

from tessera.generate.cpu.sharing import LINE, STOP, TICKETS
from tessera.generate.cpu.step import PARTS_A_THREAD, help_along


class Control:
    """The memory by which threads share, on a cache line of its own."""

    def __init__(self, n_threads: int) -> None:
        room = TICKETS + LINE * n_threads + 8 * PARTS_A_THREAD * n_threads
        self._memory = np.zeros(room + 128, np.uint8)
        self.address = -(-self._memory.ctypes.data // 128) * 128
        self._begin = self.address - self._memory.ctypes.data

    def stop(self) -> None:
        self._memory[self._begin + STOP : self._begin + STOP + 8].view(np.int64)[0] = 1


class Helpers:
    """`n` threads, numbered from 1, that help with the plan at an address; `held` lives as long as they run."""

    def __init__(self, n: int, plan: int, control: Control, held: Any) -> None:
        self._wake = [threading.Event() for _ in range(n)]
        self._control = control
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(
                target=_help, args=(plan, i + 1, wake, self._ended, held), daemon=True, name=f"cpu-{i + 1}"
            )
            for i, wake in enumerate(self._wake)
        ]
        for thread in self._threads:
            thread.start()

    def wake(self) -> None:
        for each in self._wake:
            if not each.is_set():  # who has not heard of the last time will
                each.set()

    def end(self) -> None:
        """Send them home, and wait until they have gone."""
        self._ended.set()
        self._control.stop()
        self.wake()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()


def _help(plan: int, number: int, wake: threading.Event, ended: threading.Event, held: Any) -> None:
    while not ended.is_set():
        wake.wait()
        wake.clear()
        if not ended.is_set():
            help_along(plan, number)
