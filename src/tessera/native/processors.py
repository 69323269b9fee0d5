"""How many threads a piece of work is worth sharing among."""

import os
from contextlib import suppress
from pathlib import Path

SIBLINGS = "/sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list"


def n_processors() -> int:
    """The cores that this process may run on, each counted once, however many threads the system shows of it; or what
    OMP_NUM_THREADS says."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    if said.isdecimal() and int(said):
        return int(said)
    if not hasattr(os, "sched_getaffinity"):  # not Linux
        return os.cpu_count() or 1
    cores = set()
    for number in os.sched_getaffinity(0):
        core = str(number)
        with suppress(OSError):  # a container may not show it: then each thread is a core
            core = Path(SIBLINGS.format(number=number)).read_text()
        cores.add(core)
    return len(cores)
