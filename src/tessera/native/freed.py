"""Memory that was freed goes back to the system at once, where the C library is glibc.

glibc keeps freed blocks of up to 32 MB for later, and where what stays lies between what goes that is much: fine-tuning
on a base of 4 bits held 1.2 times as much. Blocks above a fixed size are mapped and unmapped one by one instead
(mallopt(3), M_MMAP_THRESHOLD), which costs page faults.
"""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
SMALLEST = 2**18
"""Bytes of a block that is mapped by itself."""


def return_freed_memory() -> bool:
    """For the rest of the process. Whether the C library can."""
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, SMALLEST)) and bool(mallopt(M_TRIM_THRESHOLD, SMALLEST))
