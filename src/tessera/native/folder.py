"""Where this machine keeps what it has made of other files: compiled code, packed weights, vocabularies."""

import hashlib
import os
import sys
from pathlib import Path


def cache_folder() -> Path:
    """Where machine code is kept: `$TESSERA_CACHE`, else the user's cache folder by the habits of the system. Beside it
    lies the rest."""
    if chosen := os.environ.get("TESSERA_CACHE"):
        return _expanded(chosen) / "compiled"
    if sys.platform == "darwin":
        base = _expanded("~/Library/Caches")
    else:
        base = _expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return base / "tessera" / "compiled"


def _expanded(path: str) -> Path:
    """With `~` written out. Who has no home has a folder that cannot be, as saving there will say."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(os.devnull) / path


def name_of_made(path: Path, what: str, version: int) -> str | None:
    """A name for what is made of the files at `path` as they are now; None if they cannot be told apart. Up to its
    first dash it is the same whatever the files hold and whoever makes it."""
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    digest = hashlib.sha256()
    try:
        for file in files:
            found = file.stat()
            digest.update(f"{file.resolve()}\0{found.st_size}\0{found.st_mtime_ns}\0".encode())
    except OSError:
        return None
    name = hashlib.sha256(f"{path.resolve()}\0{what}".encode()).hexdigest()[:16]
    return f"{name}-{version}-{digest.hexdigest()[:16]}"
