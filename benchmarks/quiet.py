"""How much of the processor other programs took, so that a measurement beside them can be refused (Linux)."""

import os
import time
from pathlib import Path

PROC = Path("/proc")
MOST = 0.05
"""Of all cores together: what others take more than this makes times worthless."""


class OthersBusy:
    """The share of all cores that was taken since this was made by processes other than this one and its children."""

    def __init__(self) -> None:
        self._hertz, self._cores = os.sysconf("SC_CLK_TCK"), os.cpu_count() or 1
        self._from, self._busy, self._ours = time.monotonic(), _busy(), _ours()

    def share(self) -> float:
        ticks = (_busy() - self._busy) - (_ours() - self._ours)
        return max(0.0, ticks / self._hertz / self._cores / (time.monotonic() - self._from))


def _busy() -> int:
    """Ticks that the cores have worked, all but waiting and what another machine took."""
    user, nice, system, _idle, _wait, hard, soft, *_ = map(int, (PROC / "stat").read_text().split("\n")[0].split()[1:])
    return user + nice + system + hard + soft


def _ours() -> int:
    """Ticks of this process and of all below it, the ended ones too."""
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for folder in PROC.iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has just ended
                continue
            parents[int(folder.name)], ticks[int(folder.name)] = int(fields[1]), sum(map(int, fields[11:15]))
    below, found = {os.getpid()}, 0
    while below:
        found += sum(ticks[process] for process in below)
        below = {process for process, parent in parents.items() if parent in below}
    return found
