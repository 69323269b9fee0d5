"""Files, folders, globs and named corpora -> documents.

The idea: a source is resolved to a sorted list of files before anything is read, each file is streamed, and a file that
cannot be used is an error that names the place. So the same sources give the same documents in the same order, and
memory holds one document at a time. What a file means follows from its suffix, with or without `.gz` after it:

    .txt          one document, or several where `<|endoftext|>` stands between them
    .md .py       one document
    .jsonl        one document a line: the string in the field "text" (a setting)
"""

import codecs
import glob
import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from tessera.data.catalog import CORPORA
from tessera.data.download import Progress, download, file_name
from tessera.errors import InputError, SettingError

Errors = Literal["strict", "replace"]
Split = Literal["auto", "documents", "tail"]
SEPARATOR = "<|endoftext|>"
CHUNK = 1 << 20


def as_list(value: Any) -> Any:
    """A list, of one string too."""
    return [value] if isinstance(value, str) else value


@dataclass(frozen=True, slots=True)
class Document:
    """One text, where it stands, and the source that led to it."""

    name: str
    text: str
    source: str = ""


@dataclass(frozen=True)
class _File:
    """A file to read. One that was `named` by the user must hold text; in a folder an empty one is passed over."""

    path: Path
    name: str
    named: bool


class Documents:
    """The documents of some sources; each iteration reads them anew, in the same order.

    Made by `read_documents`. A corpus that has to be downloaded is, when it is first read.
    """

    def __init__(
        self,
        sources: Iterable[str],
        *,
        errors: Errors = "strict",
        field: str = "text",
        progress: Progress | None = None,
    ) -> None:
        if errors not in {"strict", "replace"}:
            raise SettingError("errors", errors, "'strict' or 'replace'")
        self.sources = tuple(dict.fromkeys(as_list(sources)))
        self.errors: Errors = errors
        self.field = field
        self.progress = progress
        if not self.sources:
            raise InputError("no source of text was named")
        self._files: dict[str, list[_File]] = {}
        seen: set[Path] = set()
        for source in self.sources:
            if source not in CORPORA:
                self._files[source] = [file for file in _find(source) if file.path.resolve() not in seen]
                seen.update(file.path.resolve() for file in self._files[source])

    def __iter__(self) -> Iterator[Document]:
        for source in self.sources:
            found = False
            for document in self._read(source):
                found = True
                yield replace(document, source=source)
            if not found and (source in CORPORA or self._files[source]):
                raise InputError(f"{source}: no text in it")

    def _read(self, source: str) -> Iterator[Document]:
        corpus = CORPORA.get(source)
        if corpus is None:
            files = self._files[source]
        elif corpus.local is not None:
            yield from (Document(name=name, text=text) for name, text in corpus.local())
            return
        else:
            folder = download(source, progress=self.progress)
            paths = [folder / file_name(remote.url) for remote in corpus.files]
            files = [_File(path=path, name=path.name, named=True) for path in paths]
        for file in files:
            yield from self._read_file(file)

    def _read_file(self, file: _File) -> Iterator[Document]:
        read = READERS.get(kind_of(file.path), _read_text)
        found = False
        with _opened(file.path) as stream:
            for document in read(stream, file.name, self):
                if document.text.strip():
                    found = True
                    yield document
        if file.named and not found:
            raise InputError(f"{file.path} is empty")


def read_documents(
    sources: Iterable[str],
    *,
    errors: Errors = "strict",
    field: str = "text",
    progress: Progress | None = None,
) -> Documents:
    """The documents of `sources`: files, folders (sorted, all the way down), globs, and the names in CORPORA.

    A source that does not exist, or that nothing matches, is an error now; what is wrong inside a file is an error when
    it is read. A file that two sources lead to is read once. Where a folder is called as a corpus, write `./name`.
    """
    return Documents(sources, errors=errors, field=field, progress=progress)


def kind_of(path: Path) -> str:
    """The suffix that tells how to read a file: `.txt` of both `a.txt` and `a.TXT.gz`."""
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def _find(source: str) -> list[_File]:
    path = Path(source).expanduser()
    if path.is_dir():
        files = _in_folder(path)
        if not files:
            raise InputError(
                f"{source}: no file in it that can be read ({' '.join(READERS)}, or one of these with .gz)"
            )
        return files
    if path.exists():
        if not path.is_file():
            raise InputError(f"{source}: not a file or a folder")
        return [_File(path=path, name=path.as_posix(), named=True)]
    if glob.has_magic(source):
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207
        found = [_in_folder(match) if match.is_dir() else [_glob_match(match)] for match in matches]
        if any(found):
            return list({file.path: file for files in found for file in files}.values())
        raise InputError(f"{source}: no file matches")
    raise InputError(_missing(source))


def _glob_match(path: Path) -> _File:
    return _File(path=path, name=path.as_posix(), named=False)


def _in_folder(folder: Path) -> list[_File]:
    return [_File(path=path, name=path.as_posix(), named=False) for path in _walk(folder)]


def _walk(folder: Path) -> list[Path]:
    """The files below `folder` with a suffix that is known, sorted by path; hidden ones and hidden folders left out."""
    paths = []
    for above, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths += [Path(above) / name for name in names if not name.startswith(".") and kind_of(Path(name)) in READERS]
    return sorted((path for path in paths if path.is_file()), key=lambda path: path.as_posix())


def _missing(source: str) -> str:
    if source.startswith(("http://", "https://")):
        return f"{source}: a URL is downloaded first (tessera data download), then named by its file"
    close = get_close_matches(source, CORPORA, n=1, cutoff=0.6)
    guess = f"; did you mean {close[0]!r}?" if close else ""
    return f"{source}: no such file, folder or named corpus{guess} (corpora: {', '.join(CORPORA)})"


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The file's bytes, unpacked where it is a .gz."""
    try:
        with gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb") as stream:
            yield cast(BinaryIO, stream)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: not a whole gzip file ({error})") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None


def _decode(stream: BinaryIO, name: str, errors: Errors) -> Iterator[str]:
    """The stream as text, a piece at a time; a byte order mark at its start is dropped."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors)
    done = 0
    while True:
        chunk = stream.read(CHUNK)
        if done == 0:
            _check_not_binary(chunk, name)
        before = done - len(decoder.getstate()[0])
        try:
            piece = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            raise InputError(_not_utf8(name, before + error.start)) from None
        yield piece.removeprefix("\ufeff") if done == 0 else piece
        done += len(chunk)
        if not chunk:
            return


def _check_not_binary(data: bytes, name: str) -> None:
    if b"\0" in data:
        raise InputError(f"{name} looks binary: it has NUL bytes (UTF-16 text must be converted to UTF-8)")


def _not_utf8(name: str, offset: int) -> str:
    return f'{name}: not UTF-8 at byte {offset} (errors="replace" puts U+FFFD there)'


def split_text(pieces: Iterable[str]) -> Iterator[tuple[int, str]]:
    """(number, text) of the texts between SEPARATORs; number 0 is the whole, untouched, where there is none.

    Line ends next to a separator belong to it and are dropped.
    """
    held: list[str] = []
    number, tail = 0, ""
    keep = len(SEPARATOR) - 1  # a separator may lie across two pieces
    for piece in pieces:
        *whole, last = (tail + piece).split(SEPARATOR)
        for text in whole:
            number += 1
            yield number, "".join([*held, text]).strip("\r\n")
            held = []
        held.append(last[:-keep])
        tail = last[-keep:]
    text = "".join([*held, tail])
    yield (number + 1, text.strip("\r\n")) if number else (0, text)


def _read_text(stream: BinaryIO, name: str, options: Documents) -> Iterator[Document]:
    for number, text in split_text(_decode(stream, name, options.errors)):
        yield Document(name=f"{name}#{number}" if number else name, text=text)


def _read_whole(stream: BinaryIO, name: str, options: Documents) -> Iterator[Document]:
    yield Document(name=name, text="".join(_decode(stream, name, options.errors)))


def _read_json_lines(stream: BinaryIO, name: str, options: Documents) -> Iterator[Document]:
    offset = 0
    for number, line in enumerate(stream, start=1):
        _check_not_binary(line, name)
        try:
            content = line.decode("utf-8-sig" if number == 1 else "utf-8", options.errors)
        except UnicodeDecodeError as error:
            raise InputError(_not_utf8(f"{name}, line {number}", offset + error.start)) from None
        offset += len(line)
        if content.strip():
            yield Document(name=f"{name}:{number}", text=_field(content, f"{name}, line {number}", options))


def _field(line: str, where: str, options: Documents) -> str:
    """The text in one JSON line; half of a surrogate pair, which JSON can write and UTF-8 cannot, counts as invalid."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON ({error})") from None
    if not isinstance(row, dict) or options.field not in row:
        fields = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        raise InputError(f"{where}: no field {options.field!r} (found: {fields})")
    text = row[options.field]
    if not isinstance(text, str):
        raise InputError(f"{where}: {options.field!r} is a {type(text).__name__}, not a string")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        if options.errors == "strict":
            raise InputError(f'{where}: {options.field!r} has half a character (errors="replace" mends it)') from None
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


READERS: dict[str, Callable[[BinaryIO, str, Documents], Iterator[Document]]] = {
    ".txt": _read_text,
    ".md": _read_whole,
    ".py": _read_whole,
    ".jsonl": _read_json_lines,
}
