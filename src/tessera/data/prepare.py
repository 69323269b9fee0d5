"""Documents + tokenizer -> a folder that a run trains from.

    train.bin  validation.bin   the ids (`shards`)
    validation.txt              the held-out documents' bytes, one after another: the text that bits per byte
                                divides by, and that another compressor can be given
    documents.jsonl             each document in its order: name, size, sha256
    meta.json                   what is in them, with their sha256

The first pass over the documents (`division`) only measures them and decides what is held out, so that a tokenizer can
be trained on the rest; the second (`prepare`) encodes them in groups. Memory holds a group of documents, not the
corpus. Of a mixture, each source has a stretch of every file, one after another; `meta.json` tells how long they are.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np

from tessera.data.division import Division
from tessera.data.documents import Document, Errors, read_documents
from tessera.data.durable import DurableFile
from tessera.data.encode import encoded
from tessera.data.prepared import META_VERSION, PARTS, Prepared
from tessera.data.shards import ShardWriter
from tessera.data.stats import Counts, count
from tessera.store.files import (
    fsync_folder,
    make_folder,
    make_folders,
    new_token,
    remove_folder,
    rename,
    to_json,
    write_bytes_atomic,
)
from tessera.tokenizers.contract import Tokenizer

GROUP_BYTES = 4 << 20
HELD_OUT_NAMES = 1000
FILES = ("train.bin", "validation.bin", "validation.txt", "documents.jsonl", "meta.json")


def prepare(
    division: Division,
    tokenizer: Tokenizer,
    folder: str | Path,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Prepared:
    """Encode the divided documents into `folder`; `progress(bytes done, of)`.

    Each document is closed by the tokenizer's end token if it has one. If anything fails, the folder is as it was
    before.
    """
    report = _reporter(progress, int(division.sizes.sum()))
    with _staging(Path(folder)) as staging:
        meta = _encode(division, tokenizer, staging, report)
        meta |= {"version": META_VERSION, "tokenizer": tokenizer.fingerprint, "split": division.split}
        meta |= division.settings
        write_bytes_atomic(staging / "meta.json", to_json(meta).encode())
    return Prepared.open(folder, fingerprint=tokenizer.fingerprint)


@contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """A folder inside `folder`; its files move to `folder` when all of them are written, or go with it.

    So a failure leaves data that was prepared before as it was. A kill between the renames leaves a `meta.json` that
    does not match the shards, which `Prepared.open` refuses.
    """
    existed = folder.is_dir()
    make_folders(folder)
    staging = folder / f".tmp-{new_token()}"
    make_folder(staging)
    try:
        yield staging
        for name in FILES:
            rename(staging / name, folder / name)
        fsync_folder(folder)
    except BaseException:
        remove_folder(staging)
        if not existed:
            with suppress(OSError):
                folder.rmdir()
        raise
    remove_folder(staging)


def _reporter(progress: Callable[[int, int], None] | None, total: int) -> Callable[[int], None]:
    return (lambda done: progress(done, total)) if progress else lambda done: None


def _groups(division: Division) -> Iterator[list[tuple[Document, bytes, bool]]]:
    """Consecutive documents of GROUP_BYTES in all, or a little more, to be encoded together."""
    group: list[tuple[Document, bytes, bool]] = []
    n_bytes = 0
    for document, text, held in division:
        group.append((document, text, held))
        n_bytes += len(text)
        if n_bytes >= GROUP_BYTES:
            yield group
            group, n_bytes = [], 0
    if group:
        yield group


class _Tally:
    """Counts of everything that was written, and the list of the documents."""

    def __init__(self, division: Division, documents: DurableFile) -> None:
        self.counts = {half: Counts() for half in PARTS}
        self.sources: dict[str, Counts] = {}
        self.parts = {part.name: {half: Counts() for half in PARTS} for part in division.parts}
        self.held_out: list[str] = []
        self.text = hashlib.sha256()
        self.list = hashlib.sha256()
        self._documents = documents
        self._part_of = chain.from_iterable(repeat(part.name, part.n_documents) for part in division.parts)

    def add(self, document: Document, text: bytes, held: bool, n_tokens: int) -> None:
        half = PARTS[held]
        part = next(self._part_of, "")
        tallies = [self.counts[half], self.sources.setdefault(document.source, Counts())]
        for tally in [*tallies, *([self.parts[part][half]] if part else [])]:
            tally.add(document, len(text))
            tally.n_tokens += n_tokens
        if held:
            self.text.update(text)
            self.held_out.append(document.name)
        about: dict[str, Any] = {"name": document.name, "source": part or document.source, "half": half}
        about |= {"bytes": len(text), "tokens": n_tokens, "sha256": hashlib.sha256(text).hexdigest()}
        line = to_json(about).encode() + b"\n"
        self.list.update(line)
        self._documents.write(line)

    def meta(self, division: Division) -> dict[str, Any]:
        parts = [
            {"asked": asdict(part), "counts": {half: asdict(self.parts[part.name][half]) for half in PARTS}}
            for part in division.parts
        ]
        return {
            "counts": {half: asdict(self.counts[half]) for half in PARTS},
            "sources": {source: asdict(counts) for source, counts in self.sources.items()},
            "held_out": self.held_out[:HELD_OUT_NAMES],
            "documents_sha256": self.list.hexdigest(),
            **({"mixture": parts} if parts else {}),
        }


def _encode(division: Division, tokenizer: Tokenizer, folder: Path, report: Callable[[int], None]) -> dict[str, Any]:
    """Write the two shards, the held-out text and the list of the documents; what `meta.json` says of them."""
    end = np.array([] if tokenizer.end_id is None else [tokenizer.end_id], dtype=np.int64)
    n_vocab, fingerprint = tokenizer.n_vocab, tokenizer.fingerprint
    with (
        DurableFile(folder / "validation.txt") as text_file,
        DurableFile(folder / "documents.jsonl") as documents,
        ShardWriter(folder / "validation.bin", n_vocab=n_vocab, fingerprint=fingerprint) as validation,
        ShardWriter(folder / "train.bin", n_vocab=n_vocab, fingerprint=fingerprint) as train,
    ):
        tally, done = _Tally(division, documents), 0
        for group in _groups(division):
            ids_of = encoded([document for document, _, _ in group], tokenizer)
            for (document, text, held), ids in zip(group, ids_of, strict=True):
                writer = validation if held else train
                writer.write(ids)
                writer.write(end)
                tally.add(document, text, held, len(ids) + len(end))
                if held:
                    text_file.write(text)
                done += len(text)
            report(done)
    sha256 = {"train": train.sha256, "validation": validation.sha256, "text": tally.text.hexdigest()}
    return {**tally.meta(division), "sha256": sha256}


def stats(
    sources: Sequence[str], tokenizer: Tokenizer | None = None, *, errors: Errors = "strict", field: str = "text"
) -> dict[str, Counts]:
    """The counts of a prepared folder, as "train" and "validation", and so of each source of a mixture; else of the
    documents, source by source."""
    if len(sources) == 1 and (Path(sources[0]) / "meta.json").is_file():
        prepared = Prepared.open(sources[0])
        by_source = {
            f"{name}, {half}": counts for name, both in prepared.part_counts.items() for half, counts in both.items()
        }
        return prepared.counts | by_source
    return {source: count(read_documents([source], errors=errors, field=field), tokenizer) for source in sources}
