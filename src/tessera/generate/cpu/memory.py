"""Memory for weights and for the cache, and the file that keeps them packed for the next process.

A file has a line of JSON (checksums of what is in it, and of how it lies), filled up to 4096 bytes, and the bytes of
the memory. It is written beside its place and moved there, so it is whole or not there; what is not as it says is made
anew. It is read and checked in pieces by several threads, into large pages: a file that is mapped has small ones, which
every step would pay for.
"""

import hashlib
import json
import logging
import mmap
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from tessera.native.folder import cache_folder, name_of_made

log = logging.getLogger(__name__)
HEADER = 4096
LARGE_PAGE = 2**21
PIECE = 2**22
THREADS = 4
VERSION = 2
"""Of how weights are packed: files of another version are not read."""


def large_memory(n_bytes: int) -> np.ndarray:
    """Zeros, in large pages where the system has them: reading them costs fewer looks into tables."""
    found = _pages(n_bytes + LARGE_PAGE, "MADV_HUGEPAGE")
    begin = -found.ctypes.data % LARGE_PAGE
    return found[begin : begin + n_bytes]


def memory_by_need(n_bytes: int) -> np.ndarray:
    """Zeros, in small pages, which are taken where something is written: where that is a little here and there, each
    would be a large page."""
    return _pages(n_bytes, "MADV_NOHUGEPAGE")


def _pages(n_bytes: int, advice: str) -> np.ndarray:
    """Zeros on pages of their own, with a piece of advice to the system, if it takes any."""
    if not hasattr(mmap, advice):
        return np.zeros(n_bytes, np.uint8)
    memory = mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):
        memory.madvise(getattr(mmap, advice))
    return np.frombuffer(memory, np.uint8)


def place_of(path: Path, storage: str) -> Path | None:
    """Where the packed weights of the files at `path`, as they are now, are kept; None if they cannot be told apart."""
    name = name_of_made(path, storage, VERSION)
    return None if name is None else cache_folder().parent / "packed" / name


def read_packed(place: Path, layout: Any) -> np.ndarray | None:
    """The weights that are kept at `place`, if they are those of this layout, and whole."""
    try:
        with place.open("rb") as file:
            header = json.loads(file.read(HEADER).rstrip(b"\0") or b"{}")
            size = os.fstat(file.fileno()).st_size - HEADER
            if not isinstance(header, dict) or header.get("layout") != _digest(layout) or header.get("n_bytes") != size:
                return None
            memory = large_memory(size)
            if _checksum(memory, place) != header.get("crc32"):
                log.warning("%s is damaged: the weights are packed anew", place)
                return None
            return memory
    except (OSError, ValueError):
        return None


def _checksum(memory: np.ndarray, place: Path | None = None) -> int:
    """The CRC-32 of those of all pieces, which are read from behind the header of a file before, if there is one."""

    def of_piece(begin: int) -> int:
        piece = memory[begin : begin + PIECE].data
        if place is not None:
            with place.open("rb", buffering=0) as file:
                file.seek(HEADER + begin)
                done = 0
                while done < len(piece) and (n := file.readinto(piece[done:])):
                    done += n
        return zlib.crc32(piece)

    with ThreadPoolExecutor(THREADS) as threads:
        return zlib.crc32(np.array([*threads.map(of_piece, range(0, len(memory), PIECE))], np.uint32).tobytes())


def _digest(layout: Any) -> str:
    return hashlib.sha256(json.dumps(layout).encode()).hexdigest()


def keep_packed(place: Path, layout: Any, memory: np.ndarray) -> None:
    """Keep the weights for the next process, and none of before for the same files; no failure is an error."""
    header = json.dumps({"layout": _digest(layout), "n_bytes": len(memory), "crc32": _checksum(memory)}).encode()
    part = place.with_name(f"{place.name}.{os.getpid()}.part")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(header.ljust(HEADER, b"\0"))
            file.write(memory.data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(place)
        for old in place.parent.glob(f"{place.name.split('-')[0]}-*"):
            if old != place and not old.name.endswith(".part"):
                old.unlink(missing_ok=True)
    except OSError as error:
        log.warning("the packed weights are not kept, so the next process packs again (%s)", error)
        with suppress(OSError):
            part.unlink(missing_ok=True)
