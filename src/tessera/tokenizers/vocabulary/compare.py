"""Tokenizers side by side on the same texts: how few tokens each needs, language by language, and how fast it is."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tessera.errors import InputError
from tessera.tokenizers.contract import Tokenizer
from tessera.tokenizers.vocabulary.samples import SAMPLES
from tessera.tokenizers.vocabulary.usage import Usage, parts_by_group

EXCERPT = 1200  # characters of a given text that are shown in pieces
TIMED_CHARACTERS = 2**17  # of each row
TIMED_SECONDS = 0.2


@dataclass
class Column:
    """One tokenizer, its usage by each row that it can encode, and the bytes that it encodes in a second.

    Rows that it cannot encode are `refused`: bins take numbers only. `lossy` are the rows of which it does not give
    the excerpt back: few tokens are no merit there.
    """

    name: str
    tokenizer: Tokenizer
    usages: dict[str, Usage] = field(default_factory=dict)
    lossy: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    bytes_per_second: float = 0.0

    def bytes_per_token(self, row: str) -> float | None:
        """None where it cannot encode the text."""
        return self.usages[row].bytes_per_token if row in self.usages else None


@dataclass(frozen=True)
class Comparison:
    """A column for each tokenizer, a row for each text; `excerpts` is what there is to show of a row's text."""

    columns: list[Column]
    excerpts: dict[str, str]

    @property
    def rows(self) -> list[str]:
        return list(self.excerpts)

    def best(self, row: str) -> float:
        """The most bytes for each token that any of them reaches which gives the text back; 0 if none does."""
        return max(
            (column.bytes_per_token(row) or 0.0 for column in self.columns if row not in column.lossy), default=0.0
        )


def compare(
    tokenizers: Mapping[str, Tokenizer],
    texts: Iterable[tuple[str, str]] = (),
    *,
    samples: Mapping[str, str] = SAMPLES,
) -> Comparison:
    """Every tokenizer on the `samples`, and on `texts`, (name, text) each, by script or language of code.

    The texts are read once, and one is in memory at a time. The speed is that of one thread, after a first pass.
    """
    if not tokenizers:
        raise InputError("no tokenizer was named")
    columns = [Column(name, tokenizer) for name, tokenizer in tokenizers.items()]
    excerpts: dict[str, str] = {}
    timed: dict[str, str] = {}
    for row, text in _rows(samples, texts):
        excerpts[row] = (excerpts.get(row, "") + text)[: max(EXCERPT, len(samples.get(row, "")))]
        timed[row] = (timed.get(row, "") + text)[:TIMED_CHARACTERS]
        for column in columns:
            _count(column, row, text)
    for column in columns:
        able = [row for row in excerpts if row in column.usages]
        column.lossy = {row for row in able if not _given_back(column.tokenizer, excerpts[row])}
        column.bytes_per_second = speed(column.tokenizer, [timed[row] for row in able])
    return Comparison(columns, excerpts)


def _count(column: Column, row: str, text: str) -> None:
    try:
        ids = column.tokenizer.encode_array(text, specials="all")
    except InputError:  # no text for this kind: it has no figure in this row
        column.refused.add(row)
        column.usages.pop(row, None)
        return
    if row not in column.refused:
        column.usages.setdefault(row, Usage()).add(text, ids)


def _given_back(tokenizer: Tokenizer, text: str) -> bool:
    return tokenizer.decode(tokenizer.encode(text, specials="all")) == text


def _rows(samples: Mapping[str, str], texts: Iterable[tuple[str, str]]) -> Iterable[tuple[str, str]]:
    yield from samples.items()
    for name, text in texts:
        for group, part in parts_by_group(name, text):
            yield f"given: {group}", part


def speed(tokenizer: Tokenizer, texts: Sequence[str], *, seconds: float = TIMED_SECONDS) -> float:
    """Bytes that are encoded in a second, by one thread, once a pass over the same texts has warmed it up."""
    n_bytes = sum(len(text.encode()) for text in texts)
    n_passes = -1
    start = time.perf_counter()
    while n_passes < 1 or time.perf_counter() - start < seconds:
        for text in texts:
            tokenizer.encode_array(text, specials="none")
        n_passes += 1
        if not n_passes:
            start = time.perf_counter()
    return n_bytes * n_passes / (time.perf_counter() - start)
