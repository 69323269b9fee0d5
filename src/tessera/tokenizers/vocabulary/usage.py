"""How a vocabulary is used by a text: what each token is worth, and in which scripts and languages of code.

Fertility, tokens for each word, is the usual measure (Rust et al. 2021, "How Good is Your Tokenizer?"); bytes for each
token is the one that needs no idea of a word.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import PurePath

import numpy as np

from tessera.tokenizers.contract import Tokenizer
from tessera.tokenizers.vocabulary.writing import WITHOUT_SPACES, script_of

LANGUAGES: Mapping[str, str] = {
    ".c": "C",
    ".cpp": "C++",
    ".css": "CSS",
    ".go": "Go",
    ".h": "C",
    ".html": "HTML",
    ".java": "Java",
    ".js": "JavaScript",
    ".json": "JSON",
    ".md": "Markdown",
    ".py": "Python",
    ".rs": "Rust",
    ".sh": "shell",
    ".sql": "SQL",
    ".toml": "TOML",
    ".ts": "TypeScript",
    ".xml": "XML",
    ".yaml": "YAML",
    ".yml": "YAML",
}
"""What a file's suffix says about its text; every other text is told by its script."""


@dataclass
class Usage:
    """What encoding some texts came to. Special tokens spelled out in them are tokens, as they are in training."""

    n_bytes: int = 0
    n_characters: int = 0
    n_words: int = 0
    n_tokens: int = 0
    counts: Counter[int] = field(default_factory=Counter)
    """How often each id was written."""

    def add(self, text: str, ids: np.ndarray) -> None:
        self.n_bytes += len(text.encode())
        self.n_characters += len(text)
        self.n_words += len(text.split())
        self.n_tokens += len(ids)
        values, counts = np.unique(ids, return_counts=True)
        self.counts.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))

    @property
    def bytes_per_token(self) -> float:
        return self.n_bytes / max(self.n_tokens, 1)

    @property
    def tokens_per_word(self) -> float:
        """A word is what stands between white space, which not every script has."""
        return self.n_tokens / max(self.n_words, 1)

    @property
    def tokens_per_character(self) -> float:
        return self.n_tokens / max(self.n_characters, 1)

    def share(self, id: int | None) -> float:
        """The part of all tokens that this one is; 0 for None."""
        return self.counts[id] / max(self.n_tokens, 1) if id is not None else 0.0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.n_bytes + other.n_bytes,
            self.n_characters + other.n_characters,
            self.n_words + other.n_words,
            self.n_tokens + other.n_tokens,
            self.counts + other.counts,
        )


def count_usage(tokenizer: Tokenizer, texts: Iterable[str]) -> Usage:
    """The usage of `tokenizer` by `texts`, one text in memory at a time."""
    usage = Usage()
    for text in texts:
        usage.add(text, tokenizer.encode_array(text, specials="all"))
    return usage


def usage_by_group(tokenizer: Tokenizer, texts: Iterable[tuple[str, str]]) -> dict[str, Usage]:
    """The usage by each language of code or script, from (name, text); the group with the most bytes first.

    A text whose name ends like code is one group; another is cut where lines of one script give way to another's.
    """
    usages: dict[str, Usage] = {}
    for name, text in texts:
        for group, part in parts_by_group(name, text):
            usages.setdefault(group, Usage()).add(part, tokenizer.encode_array(part, specials="all"))
    return dict(sorted(usages.items(), key=lambda item: -item[1].n_bytes))


def parts_by_group(name: str, text: str) -> list[tuple[str, str]]:
    """The parts of a text with the group of each; joined, the parts are the text.

    >>> parts_by_group("a.txt", "one\\ntwo\\n一つ\\n")
    [('Latin', 'one\\ntwo\\n'), ('Japanese', '一つ\\n')]
    """
    suffix = PurePath(name.removesuffix(".gz")).suffix.lower()
    if suffix in LANGUAGES:
        return [(LANGUAGES[suffix], text)]
    if text.isascii():
        return [("Latin" if any(map(str.isalpha, text)) else "other", text)]
    lines: list[tuple[str, str]] = []
    for line in text.splitlines(keepends=True):
        script = script_of(line)
        if script is None:  # numbers and empty lines belong to what they stand in
            script = lines[-1][0] if lines else "other"
        lines.append((script, line))
    groups = groupby(lines, key=lambda line: line[0])
    return [(script, "".join(line for _, line in group)) for script, group in groups]


def has_words(group: str) -> bool:
    """Whether white space parts the words of this group."""
    return group not in WITHOUT_SPACES
