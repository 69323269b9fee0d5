"""A folder of shards, as `tessera.data.prepare` leaves it: opened, checked, and read."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from tessera.data.division import Part
from tessera.data.shards import Shard
from tessera.data.stats import Counts
from tessera.errors import DamagedError, InputError
from tessera.store.files import read_bytes, read_json

META_VERSION = 1
PARTS = ("train", "validation")


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
    parts: tuple[Part, ...] = ()
    """The sources of a mixture, in the order in which they stand in the shards."""
    part_counts: dict[str, dict[str, Counts]] = field(default_factory=dict)
    """Of each source's train and validation, by its name."""
    documents_sha256: str = ""
    """Of `documents.jsonl`; empty where the folder was made before there was one."""
    asked: dict[str, Any] = field(default_factory=dict)
    """The share that was to be held out, and the seed of the choice."""

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
            for _ in prepared.documents():
                pass
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
                parts=tuple(Part(**part["asked"]) for part in meta.get("mixture", [])),
                part_counts={
                    part["asked"]["name"]: {half: Counts(**part["counts"][half]) for half in PARTS}
                    for part in meta.get("mixture", [])
                },
                documents_sha256=meta.get("documents_sha256", ""),
                asked={name: meta[name] for name in ("validation", "seed") if name in meta},
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

    def part_shards(self, half: Literal["train", "validation"]) -> dict[str, Shard]:
        """Each source of a mixture by its name: its stretch of the shard."""
        whole = self.train if half == "train" else self.validation
        found, begin = {}, 0
        for part in self.parts:
            end = begin + self.part_counts[part.name][half].n_tokens
            found[part.name] = replace(whole, tokens=whole.tokens[begin:end], sha256="")
            begin = end
        return found

    def manifest(self) -> dict[str, Any]:
        """What is in the shards, in short and JSON-able: what a run notes of its text."""
        if self.parts:
            sources = [
                {**asdict(part), **{half: _sizes(self.part_counts[part.name][half]) for half in PARTS}}
                for part in self.parts
            ]
        else:
            text = {"name": "text", "source": list(self.sources), "split": self.split}
            sources = [{**text, **{half: _sizes(self.counts[half]) for half in PARTS}}]
        return {**self.asked, "sha256": self.sha256, "documents_sha256": self.documents_sha256, "sources": sources}

    def documents(self) -> Iterator[dict[str, Any]]:
        """What each document was, in the order in which they stand in the shards: name, source, half, bytes, tokens,
        sha256. Checked at the end."""
        path = self.folder / "documents.jsonl"
        if not self.documents_sha256:
            raise InputError(f"{self.folder} was prepared before its documents were noted; prepare the data again")
        digest = hashlib.sha256()
        try:
            with path.open("rb") as file:
                for line in file:
                    digest.update(line)
                    yield json.loads(line)
        except (OSError, ValueError) as error:
            raise DamagedError(path, f"it cannot be read ({error})") from None
        if digest.hexdigest() != self.documents_sha256:
            raise DamagedError(path, "its sha256 is not that of what was written")


def _sizes(counts: Counts) -> dict[str, int]:
    return {"documents": counts.n_documents, "bytes": counts.n_bytes, "tokens": counts.n_tokens}
