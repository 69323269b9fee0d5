"""What this process holds of memory."""

import resource
from pathlib import Path


def megabytes(which: str) -> float:
    """Now (VmRSS) or at most until now (VmHWM); where there is no /proc the latter for both."""
    # Not by getrusage where that can be helped: it counts what the process was forked from.
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split(f"{which}:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
