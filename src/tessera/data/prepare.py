"""Documents + tokenizer -> a folder that a run trains from.

    train.bin  validation.bin   the ids (`shards`)
    validation.txt              the held-out documents' bytes, one after another: the text that bits per byte
                                divides by, and that another compressor can be given
    meta.json                   what is in them, with their sha256

The first pass over the documents (`divide`) only measures them and decides what is held out, so that a tokenizer can be
trained on the rest; the second (`prepare`) encodes them in groups. Memory holds a group of documents, not the corpus.
"""

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tessera.data.documents import Document, Errors, Split, read_documents
from tessera.data.durable import DurableFile
from tessera.data.shards import Shard, ShardWriter
from tessera.data.split import cut_tail, held_out
from tessera.data.stats import Counts, count
from tessera.errors import DamagedError, InputError, SettingError
from tessera.store.files import (
    fsync_folder,
    make_folder,
    make_folders,
    new_token,
    read_bytes,
    read_json,
    remove_folder,
    rename,
    to_json,
    write_bytes_atomic,
)
from tessera.tokenizers.contract import Tokenizer

META_VERSION = 1
GROUP_BYTES = 4 << 20
HELD_OUT_NAMES = 1000
PARTS = ("train", "validation")
FILES = ("train.bin", "validation.bin", "validation.txt", "meta.json")


@dataclass(frozen=True)
class Prepared:
    """A folder of shards and what `meta.json` says of them."""

    folder: Path
    fingerprint: str
    split: Literal["documents", "tail"]
    counts: dict[str, Counts]
    sources: dict[str, Counts]
    held_out: list[str]
    """Names of the held-out documents: the first HELD_OUT_NAMES."""
    sha256: dict[str, str]

    @classmethod
    def open(cls, folder: str | Path, *, fingerprint: str | None = None, verify: bool = False) -> "Prepared":
        """The prepared folder, its shards' headers checked; `verify` reads them whole, with the held-out text."""
        folder = Path(folder)
        if not (folder / "meta.json").exists():
            raise InputError(f"{folder} holds no prepared data (it has no meta.json)")
        prepared = cls._from_meta(folder, read_json(folder / "meta.json"))
        for part in PARTS:
            shard = Shard.open(folder / f"{part}.bin", fingerprint=fingerprint, verify=verify)
            if shard.sha256 != prepared.sha256[part]:
                raise DamagedError(shard.path or part, "it is not the file that meta.json describes")
        if verify:
            prepared.validation_text()
        return prepared

    @classmethod
    def _from_meta(cls, folder: Path, meta: Any) -> "Prepared":
        try:
            if meta["version"] != META_VERSION:
                raise InputError(f"{folder}: prepared by another version of Tessera; prepare the data again")
            return cls(
                folder=folder,
                fingerprint=meta["tokenizer"],
                split=meta["split"],
                counts={part: Counts(**meta["counts"][part]) for part in PARTS},
                sources={source: Counts(**counts) for source, counts in meta["sources"].items()},
                held_out=list(meta["held_out"]),
                sha256={name: meta["sha256"][name] for name in (*PARTS, "text")},
            )
        except (KeyError, TypeError, AttributeError):
            raise DamagedError(folder / "meta.json", "it does not hold what was written") from None

    @property
    def train(self) -> Shard:
        return Shard.open(self.folder / "train.bin", fingerprint=self.fingerprint)

    @property
    def validation(self) -> Shard:
        return Shard.open(self.folder / "validation.bin", fingerprint=self.fingerprint)

    @property
    def held_out_share(self) -> float:
        """The share of the bytes that was held out: near to what was asked for, as documents are whole."""
        held = self.counts["validation"].n_bytes
        return held / (held + self.counts["train"].n_bytes)

    def validation_text(self) -> bytes:
        """The held-out documents' UTF-8, checked: `counts["validation"].n_bytes` bytes."""
        path = self.folder / "validation.txt"
        text = read_bytes(path)
        if hashlib.sha256(text).hexdigest() != self.sha256["text"]:
            raise DamagedError(path, "its sha256 is not that of what was written")
        return text


@dataclass(frozen=True, eq=False)
class Division:
    """Documents, and which of them are held out: what the first pass over them found."""

    documents: Iterable[Document]
    sizes: np.ndarray
    """Each document's bytes."""
    held: np.ndarray
    """Whether each document is held out."""
    split: Literal["documents", "tail"]
    settings: dict[str, Any]
    """The share and the seed that were asked for."""

    def __iter__(self) -> Iterator[tuple[Document, bytes, bool]]:
        """Each document with its bytes and whether it is held out, as long as it is the one that was measured."""
        number = 0
        for document in self.documents:
            text = document.text.encode("utf-8")
            if number >= len(self.sizes) or len(text) != self.sizes[number]:
                raise InputError(f"{document.name} changed while it was being prepared: try again")
            yield document, text, bool(self.held[number])
            number += 1
        if number != len(self.sizes):
            raise InputError(f"{len(self.sizes) - number} documents were gone when they were read again: try again")

    def train_texts(self) -> Iterator[str]:
        """The texts to learn from: what a tokenizer may see."""
        return (document.text for document, _, held in self if not held)

    def room(self) -> dict[str, int]:
        """Bytes of text, in all and held out."""
        return {"n_bytes": int(self.sizes.sum()), "n_held_out": int(self.sizes[self.held].sum())}

    def describe(self) -> str:
        """One line for a person."""
        n_bytes, held = int(self.sizes.sum()), int(self.sizes[self.held].sum())
        if len(self.sizes) == 2 and self.split == "tail":
            what = "the end of the text"
        else:
            what = f"{int(self.held.sum()):,} of {len(self.sizes):,} documents"
        return f"{n_bytes:,} bytes of text; held out for validation: {what}, {held:,} bytes ({held / n_bytes:.1%})"


def divide(documents: Iterable[Document], *, validation: float = 0.1, split: Split = "auto", seed: int = 0) -> Division:
    """Measure `documents` and hold out about `validation` of their bytes.

    `documents` is gone through more than once: what `read_documents` gives, or a list; an iterator is gathered into a
    list first. A single document is cut into two at a line end, unless `split` is "documents".
    """
    if not 0 < validation < 0.5:
        raise SettingError("validation", validation, "a number between 0 and 0.5")
    settings = {"validation": validation, "seed": seed}
    documents = list(documents) if isinstance(documents, Iterator) else documents
    sizes, digests = _measure(documents)
    if len(sizes) > 1:
        held = held_out(sizes, digests, share=validation, split=split, seed=seed)
        return Division(documents, sizes, held, "tail" if split == "tail" else "documents", settings)
    if split == "documents":
        raise InputError("one document cannot be split by documents: give more, or set split = 'tail'")
    parts = cut_tail(next(iter(documents)), share=validation)
    return Division(parts, _measure(parts)[0], np.array([False, True]), "tail", settings)


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


def _measure(documents: Iterable[Document]) -> tuple[np.ndarray, np.ndarray]:
    """Each document's size in bytes and a 64-bit digest of its text: 16 bytes a document, however many there are."""
    sizes, digests = array("q"), array("Q")
    for document in documents:
        text = document.text.encode("utf-8")
        sizes.append(len(text))
        digests.append(int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little"))
    if not sum(sizes):
        raise InputError("there is no text to prepare")
    return np.array(sizes, dtype=np.int64), np.array(digests, dtype=np.uint64)


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


def _encode(division: Division, tokenizer: Tokenizer, folder: Path, report: Callable[[int], None]) -> dict[str, Any]:
    """Write the two shards and the held-out text; what `meta.json` says of them."""
    counts = {part: Counts() for part in PARTS}
    sources: dict[str, Counts] = {}
    names: list[str] = []
    end = np.array([] if tokenizer.end_id is None else [tokenizer.end_id], dtype=np.int64)
    n_vocab, fingerprint = tokenizer.n_vocab, tokenizer.fingerprint
    digest = hashlib.sha256()
    with (
        DurableFile(folder / "validation.txt") as text_file,
        ShardWriter(folder / "validation.bin", n_vocab=n_vocab, fingerprint=fingerprint) as validation,
        ShardWriter(folder / "train.bin", n_vocab=n_vocab, fingerprint=fingerprint) as train,
    ):
        done = 0
        for group in _groups(division):
            encoded = tokenizer.encode_batch([document.text for document, _, _ in group])
            for (document, text, held), ids in zip(group, encoded, strict=True):
                writer, part = (validation, "validation") if held else (train, "train")
                writer.write(ids)
                writer.write(end)
                for tally in (counts[part], sources.setdefault(document.source, Counts())):
                    tally.add(document, len(text))
                    tally.n_tokens += len(ids) + len(end)
                if held:
                    text_file.write(text)
                    digest.update(text)
                    names.append(document.name)
                done += len(text)
            report(done)
    return {
        "counts": {part: asdict(counts[part]) for part in PARTS},
        "sources": {source: asdict(counts) for source, counts in sources.items()},
        "held_out": names[:HELD_OUT_NAMES],
        "sha256": {"train": train.sha256, "validation": validation.sha256, "text": digest.hexdigest()},
    }


def stats(
    sources: Sequence[str], tokenizer: Tokenizer | None = None, *, errors: Errors = "strict", field: str = "text"
) -> dict[str, Counts]:
    """The counts of a prepared folder, as "train" and "validation"; else of the documents, source by source."""
    if len(sources) == 1 and (Path(sources[0]) / "meta.json").is_file():
        return Prepared.open(sources[0]).counts
    return {source: count(read_documents([source], errors=errors, field=field), tokenizer) for source in sources}
