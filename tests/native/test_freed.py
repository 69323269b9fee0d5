"""Memory that is freed between what stays: with the C library left alone it is kept, here it goes back."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys
from pathlib import Path
import numpy as np
if sys.argv[1] == "returned":
    from tessera.native.freed import return_freed_memory
    if not return_freed_memory():
        print(-1)
        sys.exit()

def held():
    return int(next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmRSS")).split()[1])

del_me = np.ones(2**21)  # its end raises glibc's own limit to 16 MB
del del_me
before = held()
blocks = [np.ones(2**16) for _ in range(400)]  # 512 KB each
kept = blocks[::20]
del blocks
print((held() - before) // 1024)
"""


def held_after(way: str) -> int:
    """MB, of which 10 are in use."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, way], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator is that of Linux")
def test_what_was_freed_is_given_back() -> None:
    returned = held_after("returned")
    if returned < 0:
        pytest.skip("the C library has no mallopt")
    assert returned < 30
    assert held_after("kept") > 100  # else there was nothing to mend
