"""Conversations made from Python's standard library: questions about its modules, classes and functions.

    "What does `json.dumps` do?"  ->  the first sentences of its docstring
    a preference                      its own summary, against another function's

So fine-tuning can be shown, and measured, on any machine that has Python, without a network. The answers are in the
library's sources, which a model may have been pretrained on. Therefore the split is by module: a held-out module is
left out of the text (`training_documents`) as well as of the conversations, and a question whose answer stands in any
training document too (a copy, a function under a second name) is not asked at all.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from tessera.data.docstrings import Described, Kind, describe
from tessera.data.documents import Document
from tessera.data.durable import DurableFile
from tessera.data.split import seeded_choice
from tessera.errors import InputError, SettingError
from tessera.store.files import make_folders

PHRASINGS: dict[Kind, tuple[str, ...]] = {
    "function": (
        "What does `{name}` do?",
        "What is `{name}` for?",
        "Explain `{name}`.",
        "Tell me what `{name}` does.",
        "What happens when I call `{name}`?",
    ),
    "property": ("What is `{name}`?", "What does `{name}` say?", "Explain `{name}`.", "What is `{name}` for?"),
    "class": (
        "What is the class `{name}`?",
        "What is `{name}` for?",
        "Explain `{name}`.",
        "When would I use the class `{name}`?",
    ),
    "module": (
        "What is the module `{name}`?",
        "What is `{name}` for?",
        "Explain the module `{name}`.",
        "What does the module `{name}` offer?",
    ),
}
FILES = {
    "train": "sft-train.jsonl",
    "held_out": "sft-held-out.jsonl",
    "train_pairs": "dpo-train.jsonl",
    "held_out_pairs": "dpo-held-out.jsonl",
}
"""What of `Questions` is written into which file."""

Record = dict[str, Any]


@dataclass(frozen=True)
class Questions:
    """Conversations and preferences, for training and held out; no held-out answer is in what is trained on."""

    train: list[Record]
    """`{"messages": [question, answer]}`"""
    held_out: list[Record]
    train_pairs: list[Record]
    """`{"prompt", "chosen", "rejected"}`"""
    held_out_pairs: list[Record]
    held_out_modules: tuple[str, ...]
    """The names of the documents that are not to be trained on."""
    n_modules: int
    """How many modules have something to ask about."""
    n_repeated: int
    """How many questions were left out, as the answer stands in a training document too."""
    unread: tuple[str, ...] = ()
    """The names of the documents that are not Python of this version; they are in no question."""

    def training_documents(self, documents: Iterable[Document]) -> Iterator[Document]:
        """The text that a model may be pretrained on, and its tokenizer made from: all but the held-out modules."""
        held_out = frozenset(self.held_out_modules)
        return (document for document in documents if document.name not in held_out)

    def write(self, folder: str | Path) -> dict[str, Path]:
        """Write FILES into `folder`, which is made if need be, each whole or not at all; where each of them is."""
        folder = Path(folder)
        make_folders(folder)
        paths = {part: folder / name for part, name in FILES.items()}
        for part, path in paths.items():
            write_json_lines(path, getattr(self, part))
        return paths

    def write_training_text(self, path: str | Path, documents: Iterable[Document]) -> int:
        """Write the training documents as a `.jsonl` that is a source of text; how many there are."""
        kept = list(self.training_documents(documents))
        write_json_lines(Path(path), [{"name": document.name, "text": document.text} for document in kept])
        return len(kept)

    def describe(self) -> str:
        """How many there are, in a sentence."""
        return (
            f"{len(self.train):,} questions on {self.n_modules - len(self.held_out_modules):,} modules to train on,"
            f" {len(self.held_out):,} on {len(self.held_out_modules):,} modules held out"
            f" ({self.n_repeated:,} more left out, as their answers are in the training text)"
        )


def make_questions(documents: Iterable[Document], *, seed: int, held_out: float = 0.1) -> Questions:
    """The questions on some modules, named by their paths from where they are imported (as `python-stdlib` does).

    Modules with about the share `held_out` of the questions are held out, by a choice that `seed` makes. How a
    question is put depends on `seed` and on what it is about, and on nothing else.
    """
    if not 0.0 < held_out <= 0.5:
        raise SettingError("held_out", held_out, "a share, greater than 0 and at most 0.5")
    documents = list(documents)
    found, unread = _described(documents)
    sizes = Counter(each.document for each in found)
    if len(sizes) < 2:
        raise InputError(f"{len(documents)} documents have {len(sizes)} modules with docstrings: two are needed")
    chosen = seeded_choice(np.array(list(sizes.values())), share=held_out, seed=seed)
    is_trained = {name: not is_held for name, is_held in zip(sizes, chosen, strict=True)}
    train = [each for each in found if is_trained[each.document]]
    asked = [each for each in found if not is_trained[each.document]]
    kept = _not_in(asked, [document for document in documents if is_trained.get(document.name, True)])
    if not kept:
        raise InputError("every held-out answer stands in the training text too: name more modules")
    return Questions(
        train=[_conversation(each, seed) for each in train],
        held_out=[_conversation(each, seed) for each in kept],
        train_pairs=_pairs(train, seed),
        held_out_pairs=_pairs(kept, seed),
        held_out_modules=tuple(name for name, trained in is_trained.items() if not trained),
        n_modules=len(sizes),
        n_repeated=len(asked) - len(kept),
        unread=unread,
    )


def write_json_lines(path: Path, records: Iterable[Record]) -> None:
    """A file of an object a line, which appears whole or not at all."""
    with DurableFile(path) as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False).encode("utf-8") + b"\n")


def _described(documents: Sequence[Document]) -> tuple[list[Described], tuple[str, ...]]:
    """What is described in the documents, and the names of those that cannot be parsed."""
    found: list[Described] = []
    unread: list[str] = []
    for document in documents:
        try:
            found += describe(document)
        except (SyntaxError, ValueError, RecursionError):
            unread.append(document.name)
    return found, tuple(unread)


def _not_in(asked: Sequence[Described], documents: Sequence[Document]) -> list[Described]:
    """Those whose answer is nowhere in the documents, however its lines are broken there and in whatever case."""
    text = "\0".join(_plain(document.text) for document in documents)
    repeated = {short for short in {each.summary for each in asked} if _plain(short).rstrip(".") in text}
    return [each for each in asked if each.summary not in repeated]


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _conversation(about: Described, seed: int) -> Record:
    return {
        "messages": [
            {"role": "user", "content": _question(about, seed)},
            {"role": "assistant", "content": about.summary},
        ]
    }


def _question(about: Described, seed: int) -> str:
    phrasings = PHRASINGS[about.kind]
    return phrasings[_draw(seed, "question", about.name) % len(phrasings)].format(name=about.name)


def _pairs(found: Sequence[Described], seed: int) -> list[Record]:
    """A pair for each: its own summary against another's.

    Each summary is chosen once and rejected once, so that none is better in itself: which one is, only the question
    says. With equal summaries next to each other, as far on as the longest row of equal ones stands a different one.
    """
    counts = Counter(each.summary for each in found)
    shift = max(counts.values())
    if len(found) < 2 * shift:
        raise InputError(f"{shift} of {len(found)} questions have the same answer: there is no other to reject")
    order = sorted(
        range(len(found)), key=lambda i: (_draw(seed, "pair", found[i].summary), found[i].summary, found[i].name)
    )
    rejected = {order[place]: order[(place + shift) % len(order)] for place in range(len(order))}
    return [
        {"prompt": _question(each, seed), "chosen": each.summary, "rejected": found[rejected[i]].summary}
        for i, each in enumerate(found)
    ]


def _draw(seed: int, purpose: str, name: str) -> int:
    """A number from 0 to 2**64 - 1 that is a function of these three."""
    return int.from_bytes(blake2b(f"{seed}:{purpose}:{name}".encode(), digest_size=8).digest(), "big")
