"""Files of objects -> records, each with the place it stands at.

Conversations, preferences and prompts come as objects with a few fields. What they mean is said elsewhere; here they
are read, whatever the file, and each keeps the name of its file and its line, so that every later complaint can say
where to look:

    .jsonl          an object a line
    .json           one list of objects
    .parquet        a table: an object a row (needs pyarrow; the place is the row)

The first two also with `.gz` after it.
"""

import glob
import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tessera.data.documents import kind_of
from tessera.errors import FormatError, InputError

KINDS = (".jsonl", ".json", ".parquet")
_DECODER = json.JSONDecoder()
_SPACE = " \t\r\n"


@dataclass(frozen=True)
class Record:
    """One object of a file. `where` is "FILE:LINE"."""

    content: Mapping[str, Any]
    where: str


def read_records(sources: str | Path | Sequence[str | Path]) -> list[Record]:
    """The records of files or globs, in order; an `InputError` names the file and line of what cannot be used."""
    sources = [sources] if isinstance(sources, str | Path) else list(sources)
    paths = [path for source in sources for path in _found(str(source))]
    records = [record for path in dict.fromkeys(paths) for record in _read(path)]
    if not records:
        raise InputError(f"{', '.join(map(str, sources))}: no record in it")
    return records


def _found(source: str) -> list[Path]:
    if Path(source).is_file():
        return [Path(source)]
    matches = [Path(match) for match in sorted(glob.glob(source, recursive=True))]  # noqa: PTH207
    files = [path for path in matches if path.is_file() and kind_of(path) in KINDS]
    if not files:
        raise InputError(f"{source}: no such file (expected one that ends in {', '.join(KINDS)}, or a glob of these)")
    return files


def _read(path: Path) -> Iterator[Record]:
    kind = kind_of(path)
    if kind not in KINDS:
        raise InputError(f"{path}: records are in a file that ends in {', '.join(KINDS)}")
    if kind == ".parquet":
        return _table(path)
    text = _text(path)
    return _lines(path, text) if kind == ".jsonl" else _list(path, text)


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.name.lower().endswith(".gz") else data).decode("utf-8-sig")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: not a whole gzip file ({error})") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None


def _lines(path: Path, text: str) -> Iterator[Record]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                content = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path}:{number}: not JSON ({error})") from None
            yield _record(content, f"{path}:{number}")


def _list(path: Path, text: str) -> Iterator[Record]:
    """The objects of one list, taken one by one, as only so it is known on which line each begins."""
    place = _past_space(text, 0)
    if not text.startswith("[", place):
        hint = " (a file of one object a line ends in .jsonl)" if text.startswith("{", place) else ""
        raise InputError(f"{path}:1: expected a list of objects, [{{...}}, ...]{hint}")
    place, line, counted = _past_space(text, place + 1), 1, 0
    while not text.startswith("]", place):
        line, counted = line + text.count("\n", counted, place), place
        try:
            content, place = _DECODER.raw_decode(text, place)
        except RecursionError as error:
            raise InputError(f"{path}:{line}: not JSON ({error})") from None
        except ValueError as error:
            at = getattr(error, "lineno", line)
            raise InputError(f"{path}:{at}: not JSON ({error})") from None
        yield _record(content, f"{path}:{line}")
        place = _past_space(text, place)
        if text.startswith(",", place):
            place = _past_space(text, place + 1)
        elif not text.startswith("]", place):
            at = 1 + text.count("\n", 0, place)
            raise InputError(f"{path}:{at}: not JSON (expected , or ] after an object)")
    if text[place + 1 :].strip():
        raise InputError(f"{path}:{1 + text.count(chr(10), 0, place)}: something follows the end of the list")


def _past_space(text: str, place: int) -> int:
    while place < len(text) and text[place] in _SPACE:
        place += 1
    return place


def _table(path: Path) -> Iterator[Record]:
    try:
        import pyarrow.parquet  # heavy, and only this kind of file needs it
    except ModuleNotFoundError:
        raise InputError(f"{path}: a .parquet file needs the package pyarrow: pip install pyarrow") from None
    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise FormatError(path, f"not a Parquet table ({error})") from None
    for number, row in enumerate(rows, start=1):
        yield _record({name: value for name, value in row.items() if value is not None}, f"{path}:{number}")


def _record(content: Any, where: str) -> Record:
    if not isinstance(content, dict):
        raise InputError(f"{where}: expected an object, found {type(content).__name__}")
    return Record(content, where)
