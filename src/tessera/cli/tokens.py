"""What the `tessera tokenizer` commands share: tokenizers by name, texts as they are read, tokens in color."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.text import Text

from tessera.cli.console import size
from tessera.errors import InputError

if TYPE_CHECKING:
    from tessera.data.documents import Document
    from tessera.tokenizers.contract import Tokenizer
    from tessera.tokenizers.vocabulary.segments import Segment

TOKENIZER_HELP = "A tokenizer.json, a run, a tokenizer file of another library, or byte."
SOURCES_HELP = "Files, folders, globs or named corpora."
SUFFIXES = frozenset({".json", ".model", ".tiktoken"})
OWN_FILE = "tokenizer.json"
UNTRAINED = "byte"
_COLORS = (153, 223, 157, 218, 229, 183, 159, 217)  # light backgrounds of the 256 colors
_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Opened:
    """A tokenizer, what to call it, and the format that its file has."""

    name: str
    tokenizer: "Tokenizer"
    format: str


def open_tokenizer(source: str) -> Opened:
    """What `source` names: a file, a folder or a run with a tokenizer in it, or the kind that needs no text."""
    from tessera.tokenizers import TOKENIZERS, tokenizer_from_json
    from tessera.tokenizers.formats import import_tokenizer
    from tessera.tokenizers.formats.detect import detect
    from tessera.tokenizers.formats.source import Source, is_url

    path = Path(source).expanduser()
    if source == UNTRAINED and not path.exists():
        return Opened(source, TOKENIZERS[source].train([]), "none")
    if not is_url(source) and not path.exists():
        raise InputError(f"{source}: no such file or run, and the one kind that needs no training is {UNTRAINED}")
    if database := _database(path):
        from tessera.store.run import Run

        with Run.open(database) as run:
            return Opened(database.resolve().parent.name, tokenizer_from_json(run.tokenizer_json, database), "tessera")
    format = detect(Source.open(source if is_url(source) else path))
    return Opened(_name(path), import_tokenizer(source if is_url(source) else path, format=format), format)


def _database(path: Path) -> Path | None:
    """The run.db that `path` is or that stands for the whole run."""
    inside = path / "run.db"
    if inside.is_file() and not (path / OWN_FILE).is_file():
        return inside
    return path if path.name == "run.db" else None


def is_tokenizer(source: str) -> bool:
    """Whether an argument names a tokenizer rather than text: by its suffix, by what its folder holds, or a kind."""
    from tessera.tokenizers.formats.source import FOLDER_FILES

    path = Path(source).expanduser()
    if path.is_dir():
        return any((path / name).is_file() for name in (*FOLDER_FILES, "run.db")) or any(path.glob("*.tiktoken"))
    return path.suffix.lower() in SUFFIXES or path.name == "run.db" or (source == UNTRAINED and not path.exists())


def _name(path: Path) -> str:
    """`gpt2/tokenizer.json` is known as gpt2, `my.json` as my."""
    from tessera.tokenizers.formats.source import FOLDER_FILES

    return path.resolve().parent.name if path.name in FOLDER_FILES else path.name if path.is_dir() else path.stem


def open_all(sources: Sequence[str]) -> dict[str, Opened]:
    """Each tokenizer under its name, or under the whole path where two would share one."""
    opened = [open_tokenizer(source) for source in sources]
    names = [each.name for each in opened]
    return {
        (each.name if names.count(each.name) == 1 else source): each
        for source, each in zip(sources, opened, strict=True)
    }


def refuse_existing(paths: Iterable[Path], *, force: bool) -> None:
    """Nothing is overwritten unasked, and that is said before any work is done."""
    for path in paths:
        if path.is_dir():
            raise InputError(f"{path} is a folder: name the file to write")
        if path.exists() and not force:
            raise InputError(f"{path} is there already: --force overwrites it")


class Activity:
    """What a terminal shows while texts are read and counted: the bytes so far, then a bar. Elsewhere nothing."""

    def __init__(self, out: Console) -> None:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[done]}"),
        )
        self._bar = Progress(*columns, console=out, transient=True, disable=out.quiet or not out.is_terminal)
        self._task: TaskID | None = None
        self._read: TaskID | None = None

    def __enter__(self) -> "Activity":
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def read(self, documents: Iterable["Document"], what: str) -> Iterator[tuple[str, str]]:
        """The documents as (name, text)."""
        task = self._bar.add_task(what, total=None, done="")
        n_bytes = 0
        for document in documents:
            yield document.name, document.text
            n_bytes += len(document.text.encode())
            self._bar.update(task, done=size(n_bytes))
        self._bar.update(task, total=n_bytes, completed=n_bytes)

    def reading(self, done: int, total: int) -> None:
        """`done` of `total` bytes."""
        if self._read is None:
            self._read = self._bar.add_task("read", total=total, done="")
        self._bar.update(self._read, completed=done, done=f"{size(done)} of {size(total)}")

    def count(self, done: int, total: int) -> None:
        """`done` of `total` merges."""
        if self._task is None:
            self._task = self._bar.add_task("merges", total=total, done="")
        self._bar.update(self._task, completed=done, done=f"{done:,} of {total:,}")


def colored(found: Iterable["Segment"], separator: str = "") -> Text:
    """Each token on a color of its own; a character that n tokens make is underlined, with a small n after it."""
    from tessera.tokenizers.vocabulary.segments import visible

    text = Text()
    for number, segment in enumerate(found):
        if number and separator:
            text.append(separator)
        style = f"black on color({_COLORS[segment.pieces[0].color]})"
        n_pieces = len(segment.pieces)
        mark = str(n_pieces).translate(_SUPERSCRIPTS) if n_pieces > 1 else ""
        text.append(visible(segment.text) + mark, style=f"underline {style}" if mark else style)
        text.append("\n" * segment.text.count("\n"))
    return text


def barred(found: Iterable["Segment"]) -> str:
    """The same where there is no color: a bar between the tokens."""
    from tessera.tokenizers.vocabulary.segments import visible

    return "|".join(
        visible(segment.text) + (str(len(segment.pieces)).translate(_SUPERSCRIPTS) if len(segment.pieces) > 1 else "")
        for segment in found
    )
