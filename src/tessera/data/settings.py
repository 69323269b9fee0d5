"""The settings of the text: where it is from, what is held out, and how it is cut into batches."""

import glob
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt, field_validator, model_validator

from tessera.config import Settings, Spec, check_spec
from tessera.data.batches import BATCHES
from tessera.data.catalog import CORPORA
from tessera.data.documents import Errors, Split, as_list
from tessera.errors import SettingError

Sources = Annotated[list[str], BeforeValidator(as_list)]
_NO_NAME = re.compile(r"[^A-Za-z0-9._-]+")


class SourceSettings(Settings):
    """One source of a mixture."""

    name: str = Field(default="", pattern=r"^[A-Za-z0-9._-]+$")
    """What it is called; made of the first source unless given."""
    source: Sources = Field(min_length=1)
    """Files, folders, globs and named corpora, in this order."""
    weight: PositiveFloat
    """Its share of the rows, in proportion to the other weights."""
    epochs: PositiveInt | None = None
    """So many times it is read at the most; then the others share its weight."""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, content: Any) -> Any:
        if not isinstance(content, Mapping) or content.get("name") or not content.get("source"):
            return content
        return {**content, "name": name_of(as_list(content["source"])[0])}


def name_of(source: str) -> str:
    """A short name for a source: `books` of both `texts/books/*.txt` and `books.txt.gz`.

    >>> name_of("texts/books/*.txt"), name_of("books.txt.gz"), name_of("python-stdlib")
    ('books', 'books', 'python-stdlib')
    """
    if source in CORPORA:
        return source
    parts = [part for part in Path(source).parts if not glob.has_magic(part)] or ["text"]
    return _NO_NAME.sub("-", parts[-1].partition(".")[0]).strip("-") or "text"


class ExampleSettings(Settings):
    """How conversations, preferences and tasks are read, for the objectives that learn from these."""

    template: str | None = None
    """chatml, llama2, llama3, alpaca, none (a prompt and what follows it, as plain text) or a Jinja file; else the
    model's own."""
    shape: Literal["auto", "messages", "sharegpt", "alpaca", "prompt"] = "auto"
    """How a conversation is written; auto sees it by its fields."""
    learn: Literal["all", "last"] = "all"
    """All that the assistant says, or its last turn."""
    max_tokens: PositiveInt | None = None
    """The most tokens of an example; the model's context if not given."""
    too_long: Literal["error", "cut", "skip"] = "error"
    unlearned: Literal["error", "skip"] = "error"
    """An example in which nothing is learned: an error, or left out and counted."""
    arrange: Literal["alone", "packed"] = "alone"
    """A conversation a row, padded; or several to a row, which do not see each other."""
    held_out: PositiveInt | None = None
    """So many examples are held out; else the share data.validation."""
    validation: Sources = Field(default_factory=list)
    """Files whose examples are held out, and then none of data.source."""
    epochs: PositiveFloat | None = None
    """How often all examples are learned from: gives train.steps."""


class DataSettings(Settings):
    """What to learn from, what to hold out, and how it is cut into batches."""

    source: Sources = Field(default_factory=list)
    """Files, folders, globs and named corpora, in this order."""
    mixture: list[SourceSettings] = Field(default_factory=list)
    """In place of `source`: several, each with its weight."""
    validation: float = Field(default=0.1, gt=0, lt=0.5)
    """The share of the bytes that is held out, of each source of a mixture."""
    split: Split = "auto"
    """Hold out a seeded choice of whole documents, or the tail; auto: the tail only of a single document."""
    errors: Errors = "strict"
    """Invalid UTF-8: an error, or replaced by U+FFFD."""
    field: str = "text"
    """The field of a .jsonl line that holds the text."""
    batches: Spec = Spec("random")
    """How rows are drawn: an entry of BATCHES."""
    separate: bool = False
    """Whether the documents in a window do not see each other, as if each stood alone. Packed ones never do."""

    examples: ExampleSettings = ExampleSettings()
    """For the objectives that learn from conversations, preferences or tasks."""

    @property
    def keeps_apart(self) -> bool:
        """Whether documents do not see each other."""
        return self.separate or self.batches.name == "packed"

    @field_validator("batches")
    @classmethod
    def _batches(cls, spec: Spec) -> Spec:
        return check_spec(
            BATCHES, spec, "data.batches", given=("shard", "context", "batch_size", "seed", "separate_at")
        )

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.source and self.mixture:
            raise SettingError("data.source", self.source, "none beside data.mixture: a text is named in one of them")
        if not self.source and not self.mixture:
            raise SettingError("data.source", self.source, "files, folders, globs or named corpora (or a data.mixture)")
        names = [source.name for source in self.mixture]
        for number, name in enumerate(names):
            if name in names[:number]:
                raise SettingError(f"data.mixture.{number}.name", name, "a name that no other source has")
        return self
