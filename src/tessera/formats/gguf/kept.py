"""The vocabulary of a GGUF file, kept for the next time: to find out its rule takes many times as long as to open it.

A file in the user's cache folder has a line with a checksum, and a line of JSON: the state of the tokenizer,
and what is to be said of it. It is known by the place, the size and the time of the GGUF file; one that is not whole is
made anew.
"""

import json
import logging
import os
import zlib
from contextlib import suppress
from pathlib import Path

from tessera.errors import TesseraError
from tessera.formats.gguf.reader import GgufFile
from tessera.formats.gguf.vocabulary import BEGIN, Vocabulary, read_vocabulary
from tessera.native.folder import cache_folder, name_of_made
from tessera.tokenizers import tokenizer_from_state

log = logging.getLogger(__name__)
VERSION = 1
"""Of how vocabularies are read: what was kept by another version is made anew."""
WORTH = 10_000
"""Tokens from which on a vocabulary is kept: smaller ones are soon read."""
LISTS = (f"{BEGIN}tokens", f"{BEGIN}merges")
"""What need not be read where a vocabulary is kept."""


def place_of(path: Path) -> Path | None:
    """Where the vocabulary of the file at `path`, as it is now, is kept; None if it cannot be told from others."""
    name = name_of_made(path, "vocabulary", VERSION)
    return None if name is None else cache_folder().parent / "vocabularies" / name


def kept_vocabulary(place: Path | None) -> Vocabulary | None:
    """What is kept there, if it is whole."""
    if place is None:
        return None
    try:
        checksum, _, content = place.read_bytes().partition(b"\n")
        if int(checksum) != zlib.crc32(content):
            raise ValueError("its checksum is another")
        said = json.loads(content)
        return Vocabulary(tokenizer_from_state(said["tokenizer"]), said["notes"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, TesseraError) as error:
        log.warning("%s is damaged: the vocabulary is read anew (%s)", place, error)
        return None


def read_and_keep(file: GgufFile, n_vocab: int, place: Path | None) -> Vocabulary:
    """The vocabulary of a file, kept at `place` where it is large; that it cannot be kept is no error."""
    found = read_vocabulary(file, n_vocab)
    if place is None or found.tokenizer is None or n_vocab < WORTH:
        return found
    content = json.dumps({"tokenizer": found.tokenizer.state(), "notes": found.notes}).encode()
    part = place.with_name(f"{place.name}.{os.getpid()}.part")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(b"%d\n" % zlib.crc32(content) + content)
        part.replace(place)
        for old in place.parent.glob(f"{place.name.partition('-')[0]}-*"):
            if old != place and old.suffix != ".part":
                old.unlink(missing_ok=True)
    except OSError as error:
        log.info("the vocabulary is not kept (%s)", error)
        with suppress(OSError):
            part.unlink(missing_ok=True)
    return found
