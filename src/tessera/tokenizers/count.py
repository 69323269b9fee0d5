"""How often each piece of text occurs: all that training needs to know of a corpus.

Special tokens are split off first; they are not counted, and no piece crosses one. Text streams through in blocks, cut
where every pattern cuts, into a compiled hash table (`word_table`), so memory goes with the number of different pieces.
A pattern that has a compiled scanner is counted on as many threads as wanted; any other goes through `regex` on one,
and needs a whole file at a time, as nobody knows where it may be cut.

Counts can be saved: in the middle of a long count as at its end, with what was counted, so that it can go on.
"""

import codecs
import hashlib
import logging
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import accumulate
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from tessera.errors import InputError, SettingError
from tessera.tokenizers.scan import RULES, UNICODE, compile_pattern, split_pieces
from tessera.tokenizers.specials import DEFAULT_SPECIALS, Specials, assign_specials, check_text
from tessera.tokenizers.word_counts import WordCounts, load_counts

if TYPE_CHECKING:
    from tessera.tokenizers.compiled.word_table import WordTable

log = logging.getLogger("tessera.tokenizers")

BLOCK = 2**22  # bytes of text in one go
MAX_WORDS = 2**23  # above this the rarest are dropped: training on so many words of usual length fits in 1.5 GB
FLUSH = 2**18  # words of one thread, before they go to the common table
PADDING = bytes(64)
Progress = Callable[[int, int], None]
Ranges = list[tuple[int, int]]


class _Splitter:
    """Where a block of text may be cut, what of it is ordinary, and how its pieces are counted."""

    def __init__(self, pattern: str, specials: Specials, unicode_version: str) -> None:
        names = sorted(map(str.encode, assign_specials(specials, ())), key=len, reverse=True)
        self.names, self.longest = names, max(map(len, names), default=1)
        self.pattern = compile_pattern(pattern)
        self.rule = RULES.get(pattern)
        if self.rule is not None:
            from tessera.tokenizers.compiled.scanners import unicode_table_address

            self.classes = unicode_table_address(unicode_version)
            self._ends = np.empty(2**9, np.int64)

    def split(self, text: bytes, stop: int, *, whole: bool) -> tuple[int, Ranges]:
        """How far `text`, before `stop`, can be counted without what follows, and its ordinary ranges up to there."""
        limit = stop
        if not whole:
            limit = max(0, stop - self.longest + 1)
            while limit and text[limit] & 0xC0 == 0x80:
                limit -= 1
        ranges: Ranges = []
        at = 0
        for start, end in self._specials(text, stop):
            if start >= limit and not whole:
                break
            ranges.append((at, start))
            at = end
        cut = stop if whole else max(at, self._cut(text, at, limit))
        ranges.append((at, cut))
        return cut, [(start, end) for start, end in ranges if start < end]

    def _specials(self, text: bytes, stop: int) -> Iterator[tuple[int, int]]:
        present = [name for name in self.names if text.find(name, 0, stop) >= 0]
        if not present:
            return iter(())
        found = re.compile(b"|".join(map(re.escape, present))).finditer(text, 0, stop)
        return (match.span() for match in found)

    def _cut(self, text: bytes, at: int, limit: int) -> int:
        from tessera.native.memory import address_of
        from tessera.tokenizers.compiled.scanners import safe_cut
        from tessera.tokenizers.compiled.word_table import settled_end

        if limit <= at or self.rule is None:
            return at
        address = address_of(np.frombuffer(text, np.uint8))
        cut = safe_cut(address, max(at, limit - 2**16), limit)
        if cut < limit:
            return cut
        return settled_end(address_of(self._ends), self.rule, self.classes, address, at, limit)

    def count(self, table: "WordTable", text: bytes, ranges: Ranges) -> None:
        """Count the pieces of the ranges of `text`, which is followed by PADDING."""
        if self.rule is not None:
            places = np.array(ranges, np.int64).reshape(-1, 2)
            table.count(self.rule, self.classes, np.frombuffer(text, np.uint8), places)
            return
        pieces: Counter[str] = Counter()
        for start, end in ranges:
            pieces.update(split_pieces(self.pattern, text[start:end].decode()))
        words = WordCounts.of({piece.encode(): count for piece, count in pieces.items()})
        table.add(words.content, words.ends, words.counts)


class _Tally:
    """Counts blocks, on one thread or on several that each have a table of their own beside the common one."""

    def __init__(self, splitter: _Splitter, threads: int, max_words: int) -> None:
        from tessera.tokenizers.compiled.word_table import WordTable

        if threads < 1:
            raise SettingError("threads", threads, "1 or more")
        if max_words < 1024:
            raise SettingError("max_words", max_words, "1024 or more")
        self._splitter, self._threads, self._max_words = splitter, threads, max_words
        self._common, self._lock, self._n_dropped = WordTable(), Lock(), 0
        self._own = [WordTable() for _ in range(threads)] if threads > 1 else [self._common]
        self._free: SimpleQueue[WordTable] = SimpleQueue()
        for table in self._own:
            self._free.put(table)
        self._pool = ThreadPoolExecutor(threads)
        self._waiting: deque[Future[None]] = deque()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def add(self, text: bytes, ranges: Ranges) -> None:
        """Count a block, now or soon."""
        if self._threads == 1:
            self._count(text, ranges)
            return
        while len(self._waiting) > self._threads:
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(self._count, text, ranges))

    def start_with(self, words: WordCounts) -> None:
        """Go on from counts that were made before."""
        self._n_dropped = words.n_dropped
        self._common.add(words.content, words.ends, words.counts)

    def result(self) -> WordCounts:
        """What was counted so far."""
        while self._waiting:
            self._waiting.popleft().result()
        for table in self._own:
            self._flush(table, 0)
        return WordCounts(*self._common.words(), n_dropped=self._n_dropped)

    def _count(self, text: bytes, ranges: Ranges) -> None:
        table = self._free.get()
        try:
            self._splitter.count(table, text, ranges)
            self._flush(table, min(FLUSH, self._max_words))
        finally:
            self._free.put(table)

    def _flush(self, table: "WordTable", limit: int) -> None:
        with self._lock:
            if table is not self._common and len(table) > limit:
                self._common.add(*table.words())
                table.clear()
            if len(self._common) > self._max_words:
                self._prune()

    def _prune(self) -> None:
        """Drop at least half of the words, the rarest; what occurs again is counted from there on."""
        content, ends, counts = self._common.words()
        self._common.clear()
        least = int(np.partition(counts, len(counts) // 2)[len(counts) // 2]) + 1
        rare = counts < least
        n_dropped = int(counts[rare].sum())
        self._n_dropped += n_dropped
        self._common.add(content, ends, counts, least=least)
        log.warning(
            "more than %d different pieces: %d that occur fewer than %d times (%d pieces in all) are dropped, "
            "so the counts of rare pieces are too low",
            *(self._max_words, int(rare.sum()), least, n_dropped),
        )


def count_words(
    texts: Iterable[str],
    *,
    pattern: str = "gpt4",
    specials: Specials = DEFAULT_SPECIALS,
    threads: int = 1,
    max_words: int = MAX_WORDS,
    unicode_version: str = UNICODE,
) -> WordCounts:
    """The pieces of `texts`, each of which stands for itself.

    Where there are more than `max_words` different pieces, the rarest are dropped, with a warning. `unicode_version` is
    the table by which a pattern that has a scanner cuts.
    """
    splitter = _Splitter(pattern, specials, unicode_version)
    with closing(_Tally(splitter, threads, max_words)) as tally:
        parts: list[bytes] = []
        ranges: Ranges = []
        size = 0
        for text in texts:
            part = _utf8(text)
            _, found = splitter.split(part, len(part), whole=True)
            ranges += ((size + start, size + end) for start, end in found)
            parts.append(part)
            size += len(part)
            if size > BLOCK:
                tally.add(b"".join([*parts, PADDING]), ranges)
                parts, ranges, size = [], [], 0
        tally.add(b"".join([*parts, PADDING]), ranges)
        return tally.result()


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        check_text(text)
        raise


def count_files(
    paths: Sequence[str | Path],
    *,
    pattern: str = "gpt4",
    specials: Specials = DEFAULT_SPECIALS,
    threads: int = 1,
    max_words: int = MAX_WORDS,
    unicode_version: str = UNICODE,
    partial: str | Path | None = None,
    save_seconds: float = 60.0,
    progress: Progress | None = None,
) -> WordCounts:
    """The pieces of files of UTF-8 text, each file one text; as `count_words`, in constant memory for any size.

    With `partial`, the counts so far are saved there every `save_seconds` and at the end; where that file exists, the
    count goes on from it, and ends as if it had never stopped. `progress(bytes done, of)` is called now and then.
    """
    splitter = _Splitter(pattern, specials, unicode_version)
    files = [_fingerprint(Path(path)) for path in paths]
    about = {"pattern": pattern, "specials": sorted(specials), "unicode": unicode_version, "files": files}
    starts = list(accumulate((file["size"] for file in files), initial=0))
    with closing(_Tally(splitter, threads, max_words)) as tally:
        state = _Partial(None if partial is None else Path(partial), about, tally, save_seconds)
        first, offset = state.resume()
        state.save(first, offset)  # a path that cannot be written is found out before the work is done
        for number in range(first, len(files)):
            for text, ranges, end in _blocks(Path(paths[number]), offset, splitter):
                tally.add(text, ranges)
                if progress is not None:
                    progress(starts[number] + end, starts[-1])
                state.save_if_due(number, end)
            offset = 0
        state.save(len(files), 0)
        return tally.result()


class _Partial:
    """The file that holds the counts so far, and up to which file and byte they go; None keeps nothing."""

    def __init__(self, path: Path | None, about: Mapping[str, Any], tally: _Tally, seconds: float) -> None:
        self._path, self._about, self._tally, self._seconds = path, about, tally, seconds
        self._saved = time.monotonic()

    def resume(self) -> tuple[int, int]:
        """Take over what is there; the file and the byte to go on from."""
        if self._path is None or not self._path.exists():
            return 0, 0
        words, known = load_counts(self._path)
        if {name: known.get(name) for name in self._about} != self._about:
            raise InputError(f"{self._path} counts other files, or other pieces: delete it, or name another file")
        self._tally.start_with(words)
        first, offset = known["done"]
        return first, offset

    def save_if_due(self, number: int, offset: int) -> None:
        if time.monotonic() - self._saved >= self._seconds:
            self.save(number, offset)

    def save(self, number: int, offset: int) -> None:
        if self._path is not None:
            self._tally.result().save(self._path, {**self._about, "done": [number, offset]})
            self._saved = time.monotonic()


def _fingerprint(path: Path) -> dict[str, Any]:
    """What tells a file from another: its size, and the sha256 of its first and last bytes."""
    try:
        with path.open("rb") as file:
            digest = hashlib.sha256(file.read(2**16))
            size = file.seek(0, 2)
            file.seek(max(0, size - 2**16))
            digest.update(file.read())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    return {"path": str(path), "size": size, "sha256": digest.hexdigest()}


def _blocks(path: Path, offset: int, splitter: _Splitter) -> Iterator[tuple[bytes, Ranges, int]]:
    """A file from `offset` on, in blocks that can be counted alone: text, its ordinary ranges, where it ends."""
    with path.open("rb") as file:
        file.seek(offset)
        rest, whole = b"", False
        while not whole:
            wanted = max(BLOCK, len(rest))  # twice as much where nothing could be cut
            new = file.read(wanted if splitter.rule is not None else -1)
            whole = len(new) < wanted
            text = b"".join([rest, new, PADDING])
            stop = _check_utf8(text, len(rest) + len(new), path, offset, whole=whole)
            cut, ranges = splitter.split(text, stop, whole=whole)
            if cut:
                yield text, ranges, offset + cut
            rest = text[cut : -len(PADDING)]
            offset += cut


def _check_utf8(text: bytes, size: int, path: Path, offset: int, *, whole: bool) -> int:
    """Where the last whole character ends; an `InputError` that says where in the file is none."""
    try:
        return codecs.utf_8_decode(memoryview(text)[:size], "strict", whole)[1]
    except UnicodeDecodeError as error:
        byte = text[error.start]
        raise InputError(
            f"{path}: byte {offset + error.start} ({byte:#04x}) is not UTF-8 text: convert the file to UTF-8"
        ) from None
