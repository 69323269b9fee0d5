"""Different pieces of text and how often each occurs, in memory and in a file."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from tessera.errors import DamagedError, InputError
from tessera.tokenizers.files import write_files

FORMAT = "tessera word counts"


class WordCounts:
    """Different pieces, one after the other in `content`; piece i ends at `ends[i]` and occurs `counts[i]` times.

    `n_dropped` of the pieces that were met are not counted, as there were too many different ones.
    """

    def __init__(self, content: np.ndarray, ends: np.ndarray, counts: np.ndarray, *, n_dropped: int = 0) -> None:
        self.content = np.ascontiguousarray(content, np.uint8)
        self.ends = np.ascontiguousarray(ends, np.int64)
        self.counts = np.ascontiguousarray(counts, np.int64)
        self.n_dropped = n_dropped

    @classmethod
    def of(cls, pieces: Mapping[bytes, int]) -> Self:
        counts = np.fromiter(pieces.values(), np.int64, len(pieces))
        if len(counts) and counts.min() < 1:
            raise InputError(f"a piece is counted {counts.min()} times, which is less than once")
        ends = np.cumsum(np.fromiter(map(len, pieces), np.int64, len(pieces)), dtype=np.int64)
        return cls(np.frombuffer(b"".join(pieces), np.uint8), ends, counts)

    def __len__(self) -> int:
        return len(self.ends)

    def items(self) -> Iterator[tuple[bytes, int]]:
        """Each piece with its count."""
        content, start = self.content.tobytes(), 0
        for end, count in zip(self.ends.tolist(), self.counts.tolist(), strict=True):
            yield content[start:end], count
            start = end

    def save(self, path: str | Path, about: Mapping[str, Any] | None = None) -> None:
        """Write one file, whole or not at all; `about` is what `load_counts` gives back beside the counts."""
        parts = [self.ends.astype("<i8").tobytes(), self.counts.astype("<i8").tobytes(), self.content.tobytes()]
        content = {"n_words": len(self), "n_bytes": len(self.content), "n_dropped": self.n_dropped}
        digest = hashlib.sha256(json.dumps([content, dict(about or {})]).encode())
        for part in parts:
            digest.update(part)
        header = {"format": FORMAT, "version": 1, "sha256": digest.hexdigest(), **content, "about": dict(about or {})}
        write_files({Path(path): b"".join([json.dumps(header).encode(), b"\n", *parts])})


def load_counts(path: str | Path) -> tuple[WordCounts, dict[str, Any]]:
    """The counts in a file that `WordCounts.save` wrote, and what it says about them."""
    try:
        line, _, payload = Path(path).read_bytes().partition(b"\n")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        header = json.loads(line)
        content = {name: int(header[name]) for name in ("n_words", "n_bytes", "n_dropped")}
        about, sha256, kind = header["about"], header["sha256"], (header["format"], header["version"])
    except (ValueError, KeyError, TypeError):
        raise DamagedError(path, "it does not begin as a file of word counts does") from None
    if kind != (FORMAT, 1):
        raise InputError(f"{path}: it is of format {kind[0]!r}, version {kind[1]!r}; expected {FORMAT!r}, version 1")
    digest = hashlib.sha256(json.dumps([content, about]).encode())
    digest.update(payload)
    if digest.hexdigest() != sha256:
        raise DamagedError(path, "its content does not match its sha256")
    n_words = content["n_words"]
    ends, counts = np.frombuffer(payload, "<i8", 2 * n_words).reshape(2, n_words)
    letters = np.frombuffer(payload, np.uint8, content["n_bytes"], 16 * n_words)
    return WordCounts(letters, ends, counts, n_dropped=content["n_dropped"]), about
