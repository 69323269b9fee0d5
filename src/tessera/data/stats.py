"""Counts of a collection of documents: what a person wants to know before training on it."""

from collections.abc import Iterable
from dataclasses import dataclass

from tessera.data.documents import Document
from tessera.data.encode import encoded
from tessera.tokenizers.contract import Tokenizer


@dataclass
class Counts:
    """Sizes of what was added. `n_tokens` is 0 until somebody encodes; it includes the end tokens."""

    n_documents: int = 0
    n_bytes: int = 0
    n_characters: int = 0
    n_lines: int = 0
    n_tokens: int = 0
    longest: str = ""
    longest_bytes: int = 0

    def add(self, document: Document, n_bytes: int) -> None:
        self.n_documents += 1
        self.n_bytes += n_bytes
        self.n_characters += len(document.text)
        self.n_lines += document.text.count("\n") + (not document.text.endswith("\n"))
        if n_bytes > self.longest_bytes:
            self.longest, self.longest_bytes = document.name, n_bytes

    @property
    def bytes_per_document(self) -> float:
        return self.n_bytes / max(self.n_documents, 1)

    @property
    def bytes_per_token(self) -> float | None:
        """How many bytes of text a token stands for on average; None where nothing was encoded."""
        return self.n_bytes / self.n_tokens if self.n_tokens else None


def count(documents: Iterable[Document], tokenizer: Tokenizer | None = None) -> Counts:
    """The counts of `documents`, with those of their tokens where there is a tokenizer."""
    counts = Counts()
    for document in documents:
        counts.add(document, len(document.text.encode("utf-8")))
        if tokenizer is not None:
            counts.n_tokens += len(encoded([document], tokenizer)[0]) + (tokenizer.end_id is not None)
    return counts
