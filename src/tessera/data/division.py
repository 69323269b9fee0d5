"""Documents, and which of them are held out: the first pass over a text, which only measures.

A mixture is divided source by source, so that each has its held-out part. A text that is in two sources is held out in
both or in neither.
"""

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import numpy as np

from tessera.data.documents import Document, Split
from tessera.data.settings import SourceSettings
from tessera.data.split import cut_tail, held_out
from tessera.errors import InputError, SettingError


@dataclass(frozen=True)
class Part:
    """One source of a mixture, as it was asked for, and what it turned out to be."""

    name: str
    source: list[str]
    weight: float
    epochs: int | None
    split: Literal["documents", "tail"]
    n_documents: int


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
    digests: np.ndarray
    """What tells whether two documents have the same text."""
    parts: tuple[Part, ...] = ()
    """The sources of a mixture, in the order of their documents."""

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
        return Division(documents, sizes, held, "tail" if split == "tail" else "documents", settings, digests)
    if split == "documents":
        raise InputError("one document cannot be split by documents: give more, or set split = 'tail'")
    parts = cut_tail(next(iter(documents)), share=validation)
    return Division(parts, _measure(parts)[0], np.array([False, True]), "tail", settings, digests.repeat(2))


@dataclass(frozen=True)
class _OneAfterAnother:
    """The documents of several divisions, as often as they are wanted."""

    divisions: Sequence[Division]

    def __iter__(self) -> Iterator[Document]:
        return chain.from_iterable(division.documents for division in self.divisions)


def mix(divided: Sequence[tuple[SourceSettings, Division]]) -> Division:
    """Several sources as one division, each with what it holds out, one after another."""
    divisions = [division for _, division in divided]
    held = _held_in_all([source.name for source, _ in divided], divisions)
    return Division(
        documents=_OneAfterAnother(divisions),
        sizes=np.concatenate([division.sizes for division in divisions]),
        held=np.concatenate(held),
        split="tail" if all(division.split == "tail" for division in divisions) else "documents",
        settings=divisions[0].settings,
        digests=np.concatenate([division.digests for division in divisions]),
        parts=tuple(
            Part(source.name, source.source, source.weight, source.epochs, division.split, len(division.sizes))
            for source, division in divided
        ),
    )


def _held_in_all(names: Sequence[str], divisions: Sequence[Division]) -> list[np.ndarray]:
    """What each holds out, with its copies of what another one does: else a model learns what it is measured by."""
    held = [division.held for division in divisions]
    while True:
        before = held
        for number, division in enumerate(divisions):
            others = [other.digests[mask] for other, mask in zip(divisions, held, strict=True) if other is not division]
            copies = np.isin(division.digests, np.concatenate([*others, np.empty(0, np.uint64)]))
            held = [mask | copies if i == number else mask for i, mask in enumerate(held)]
            if held[number].all():
                raise InputError(
                    f"{names[number]}: the mixture's other sources hold the same text, and nothing of it is left to "
                    "train on: name it in one source only"
                )
        if all(np.array_equal(a, b) for a, b in zip(before, held, strict=True)):
            return held


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
