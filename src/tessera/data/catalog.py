"""The corpora that have a name: what each is, where it comes from, and the one that is already on every machine.

`python-stdlib` is the source text of Python's own standard library: real, permissively licensed, some 10 MB, and
present wherever Tessera runs, so a first model needs no network.
"""

import os
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tessera.errors import InputError

LEFT_OUT_FOLDERS = frozenset(
    {
        "__pycache__",
        "dist-packages",
        "encodings",
        "idle_test",
        "pydoc_data",
        "site-packages",
        "test",
        "tests",
    }
)
TABLE_MARKS = frozenset("'\",:()[]{}\\")
TABLE_SHARE = 0.12
TABLE_MIN_LENGTH = 4096


@dataclass(frozen=True)
class Remote:
    """A file on the web. `sha256` is None where nobody has published it: the first download then records it."""

    url: str
    sha256: str | None = None


@dataclass(frozen=True)
class Corpus:
    """A named collection of text.

    Either `files` to download, or text that every machine has: `local` yields (name, text), `folder` is where it lies.
    """

    about: str
    licence: str
    files: tuple[Remote, ...] = ()
    local: Callable[[], Iterator[tuple[str, str]]] | None = None
    folder: Callable[[], Path] | None = None


def cache_folder() -> Path:
    """Where downloads are kept: $TESSERA_CACHE, else ~/.cache/tessera/corpora."""
    chosen = os.environ.get("TESSERA_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "tessera" / "corpora"


def is_table(text: str) -> bool:
    """Whether a module is a table of literals rather than a program.

    More than TABLE_SHARE of a table's characters are quotes, commas, colons and brackets: in Python 3.11's library the
    tables (html/entities, stringprep, the build configuration, ...) have 0.14 to 0.25 and the programs at most 0.09.
    Short modules are kept whatever they hold: they are noise in neither direction.
    """
    return len(text) >= TABLE_MIN_LENGTH and sum(text.count(mark) for mark in TABLE_MARKS) > TABLE_SHARE * len(text)


def standard_library_folder() -> Path:
    """Where the running Python keeps its standard library."""
    return Path(sysconfig.get_path("stdlib"))


def standard_library() -> Iterator[tuple[str, str]]:
    """(relative path, text) of each module of Python's standard library, sorted by path.

    Left out: tests, installed packages, the character tables of `encodings`, generated documentation, other tables
    (`is_table`), empty files, and files that are not UTF-8.
    """
    root = standard_library_folder()
    found = False
    for name, path in sorted((path.relative_to(root).as_posix(), path) for path in root.rglob("*.py")):
        if LEFT_OUT_FOLDERS.intersection(name.split("/")[:-1]):
            continue
        try:
            text = path.read_bytes().decode("utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        if text.strip() and not is_table(text):
            found = True
            yield name, text
    if not found:
        raise InputError(f"python-stdlib: {root} has no readable .py files; name a text file instead")


CORPORA: dict[str, Corpus] = {
    "python-stdlib": Corpus(
        about="the source of Python's standard library, as installed here (about 10 MB; no download)",
        licence="PSF-2.0",
        local=standard_library,
        folder=standard_library_folder,
    ),
    "tiny-shakespeare": Corpus(
        about="1.1 MB of Shakespeare's plays",
        licence="public domain",
        files=(
            Remote(
                url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
                sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
            ),
        ),
    ),
    "tinystories": Corpus(
        about="short stories in a small child's words, written by GPT-4 (about 2 GB)",
        licence="CDLA-Sharing-1.0",
        files=(
            Remote(
                url="https://huggingface.co/datasets/roneneldan/TinyStories/resolve/main/TinyStoriesV2-GPT4-train.txt"
            ),
        ),
    ),
    "openwebtext-sample": Corpus(
        about="a sample of OpenWebText: pages that Reddit linked to (several GB, compressed)",
        licence="CC0-1.0 (the pages keep their own)",
        files=(
            Remote(url="https://huggingface.co/datasets/stanford-cs336/owt-sample/resolve/main/owt_train.txt.gz"),
            Remote(url="https://huggingface.co/datasets/stanford-cs336/owt-sample/resolve/main/owt_valid.txt.gz"),
        ),
    ),
}
