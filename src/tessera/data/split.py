"""Which documents are held out for validation.

Whole documents, so that no text is in both halves. Documents with the same text count as one: a copy of a training
document would measure memory. Only a single document is cut, at a line end, as it cannot be held out whole.
"""

import numpy as np

from tessera.data.documents import Document, Split
from tessera.data.shuffle import Purpose, permutation
from tessera.errors import InputError


def seeded_choice(sizes: np.ndarray, *, share: float, seed: int) -> np.ndarray:
    """A mask over `sizes` of a seeded choice that amounts to about `share` of their sum; never all, never none.

    Greedy over a random order: what fits is taken, and at last the one that brings the sum nearest to the target.
    """
    wanted = share * float(sizes.sum())
    chosen = np.zeros(len(sizes), dtype=bool)
    held = 0
    for index in permutation(len(sizes), seed=seed, purpose=Purpose.SPLIT):
        if held + sizes[index] <= wanted:
            chosen[index] = True
            held += int(sizes[index])
            if held >= 0.99 * wanted:
                break
    rest = np.flatnonzero(~chosen)
    nearest = rest[np.argmin(np.abs(held + sizes[rest] - wanted))]
    better = abs(held + int(sizes[nearest]) - wanted) < abs(held - wanted)
    if held == 0 or (better and len(rest) > 1):
        chosen[nearest] = True
    return chosen


def last_documents(sizes: np.ndarray, *, share: float) -> np.ndarray:
    """A mask over `sizes` of the last ones that amount to about `share` of their sum; never all, never none."""
    after = np.append(np.cumsum(sizes[::-1])[::-1], 0)  # bytes from document i to the end
    first = int(np.argmin(np.abs(after[1:-1] - share * after[0]))) + 1
    return np.arange(len(sizes)) >= first


def held_out(sizes: np.ndarray, digests: np.ndarray, *, share: float, split: Split, seed: int) -> np.ndarray:
    """The mask of the held-out documents among two or more, from their sizes in bytes and digests of their texts."""
    if split == "tail":
        mask = last_documents(sizes, share=share)
        # A training copy of a held-out text moves to the held-out side with it.
        mask |= np.isin(digests, digests[mask])
        if mask.all():
            raise InputError("the last documents repeat all the others, so none is left to train on")
        return mask
    _, group = np.unique(digests, return_inverse=True)
    group_sizes = np.bincount(group, weights=sizes).astype(np.int64)
    if len(group_sizes) == 1:
        raise InputError(f"all {len(sizes)} documents are the same text: none can be held out for validation")
    return seeded_choice(group_sizes, share=share, seed=seed)[group]


def cut_tail(document: Document, *, share: float) -> tuple[Document, Document]:
    """The document as two, cut at the line end nearest to its last `share`.

    Where every line end would hold out more than half (one endless line), at the nearest space or comma, else anywhere.
    """
    text = document.text
    target = round(len(text) * (1 - share))
    cut = (
        _nearest(text, "\n", target)
        or _nearest(text, " ", target)
        or _nearest(text, ",", target)
        or min(max(target, 1), len(text) - 1)
    )
    if not 0 < cut < len(text):
        raise InputError(f"{document.name}: {len(text)} character is too short to hold out a part for validation")
    start = Document(name=f"{document.name} (start)", text=text[:cut], source=document.source)
    return start, Document(name=f"{document.name} (end)", text=text[cut:], source=document.source)


def _nearest(text: str, mark: str, target: int) -> int:
    """The place after the `mark` nearest to `target`, in the second half and with text on both sides; 0 if none is."""
    first, last = len(text) - len(text.lstrip()), len(text.rstrip())
    before = text.rfind(mark, first, min(target, last)) + 1
    after = text.find(mark, max(target, first), last) + 1
    places = [place for place in (before, after) if max(first, len(text) / 2 - 1) < place < last]
    return min(places, key=lambda place: abs(place - target), default=0)
