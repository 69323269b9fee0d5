"""Is there room? Memory and disk against what a run will need, before it starts.

What surely fails is refused with what would help; what may fail is said. The needs are those of a plan
(`tessera.plan`): weights, gradients and optimizer are counted, activations are an estimate.
"""

import errno
import resource
import shutil
from pathlib import Path
from typing import Any

from tessera.errors import InputError, StorageError

MEMINFO = Path("/proc/meminfo")
CGROUPS = (  # (limit, use) of the container that we are in, if we are in one: version 2, then 1
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
)


def memory_of(device: Any) -> tuple[int, int] | None:
    """(free, in all) bytes of a device that this process could use; None where the system does not tell."""
    if str(device).startswith("cuda"):
        import torch  # on the CPU nothing is asked of it

        free, total = torch.cuda.mem_get_info(device)
        return int(free), int(total)
    if str(device) != "cpu":
        return None
    known = [found for found in (_machine(), *map(_container, CGROUPS), _limit()) if found is not None]
    return (min(free for free, _ in known), min(total for _, total in known)) if known else None


def _machine() -> tuple[int, int] | None:
    try:
        lines = (line.split() for line in MEMINFO.read_text().splitlines())
        kilobytes = {words[0].rstrip(":"): int(words[1]) for words in lines}
        free = kilobytes["MemAvailable"] + kilobytes["SwapFree"]
        return 1024 * free, 1024 * (kilobytes["MemTotal"] + kilobytes["SwapTotal"])
    except (OSError, KeyError, ValueError, IndexError):  # not Linux
        return None


def _container(files: tuple[Path, Path]) -> tuple[int, int] | None:
    try:
        limit, used = (int(path.read_text()) for path in files)
    except (OSError, ValueError):  # no container, or "max": no limit
        return None
    return max(0, limit - used), limit


def _limit() -> tuple[int, int] | None:
    """What `ulimit -v` leaves."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return None
    try:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (OSError, ValueError):
        used = 0
    return max(0, limit - used), limit


def free_disk(path: Path) -> int:
    """Free bytes where `path` is or would be made."""
    while not path.exists():
        path = path.absolute().parent
    return shutil.disk_usage(path).free


def check_memory(
    device: Any, *, fixed: int, certain: int, per_row: int, batch_size: int, accumulate: int, update: int = 0
) -> list[str]:
    """What is worth saying about memory; `InputError` where the run cannot fit whatever the batch.

    `fixed` is needed whatever the batch is, and `certain` of it without any doubt; `per_row` is for each row of a
    micro-batch, `update` for the optimizer's step, when the rows are gone.
    """
    found = memory_of(device)
    if found is None:
        return []
    free, total = found
    if certain > total:
        raise InputError(
            f"the model does not fit: its weights and gradients need {_size(certain)}, {device} has {_size(total)} in "
            "all: choose a smaller model"
        )
    needed = fixed + max(per_row * batch_size, update)
    if needed <= free:
        return []
    line = f"the run may not fit: it needs about {_size(needed)}, {device} has {_size(free)} free"
    rows = next((rows for rows in _halves(batch_size) if fixed + max(per_row * rows, update) <= free), None)
    if rows is None or rows == batch_size:
        return [line]
    times = accumulate * (batch_size // rows)
    return [f"{line}; the same steps in less: train.batch_size={rows} train.accumulate={times}"]


def _halves(batch_size: int) -> list[int]:
    """`batch_size` divided by two as often as it goes evenly, so that the total can stay the same."""
    sizes = [batch_size]
    while sizes[-1] % 2 == 0:
        sizes.append(sizes[-1] // 2)
    return sizes


def check_disk(path: Path, *, one: int, certain: int, more: int) -> list[str]:
    """What is worth saying about the disk; `StorageError` where not even one checkpoint fits.

    `one` is the size of a checkpoint and `certain` what is in it without any doubt; `more` will be kept beside it.
    """
    free = free_disk(path)
    if certain > free:
        why = f"a checkpoint needs {_size(certain)} or more, {_size(free)} are free: make room first"
        raise StorageError(path, OSError(errno.ENOSPC, why))
    if one + more > free:
        return [
            f"the disk may become full: checkpoints need up to {_size(one + more)}, {_size(free)} are free at {path} "
            "(train.keep says how many stay)"
        ]
    return []


def check_shards(folder: Path, *, n_bytes: int, n_held_out: int) -> list[str]:
    """What is worth saying about the disk before `n_bytes` of text become shards.

    The held-out text is kept as it is; ids take two bytes, for a byte of text or, mostly, for several.
    """
    free = free_disk(folder)
    if n_held_out > free:
        why = f"the held-out text needs {_size(n_held_out)}, {_size(free)} are free: make room first"
        raise StorageError(folder, OSError(errno.ENOSPC, why))
    most = n_held_out + 2 * n_bytes
    return [f"the disk may become full: shards need up to {_size(most)}, {_size(free)} are free"] if most > free else []


def _size(n_bytes: int) -> str:
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if n_bytes >= unit:
            return f"{n_bytes / unit:.1f} {name}"
    return f"{n_bytes / 1e3:.1f} KB"
