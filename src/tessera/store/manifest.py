"""The manifest of a checkpoint: what its files were when they were written.

safetensors has no checksum, and most altered files load without a word; the manifest holds the size and the sha256 of
each file, and of itself. It is written last, so a folder that has one was complete.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from tessera.errors import DamagedError, InputError
from tessera.store.files import Written, read_bytes, to_json

NAME = "manifest.json"
FORMAT = 1


@dataclass(frozen=True)
class Manifest:
    """Which step of which run, and each file's size and sha256."""

    run: str
    step: int
    written: str
    files: dict[str, Written]

    def to_bytes(self) -> bytes:
        """Canonical JSON with its own sha256: there is exactly one right sequence of bytes, so any change shows."""
        content = {"format": FORMAT, **asdict(self)}
        digest = hashlib.sha256(to_json(content).encode()).hexdigest()
        return to_json({**content, "sha256": digest}).encode()


def read_manifest(folder: Path) -> Manifest:
    """The manifest in a checkpoint's folder, proved to be what was written."""
    path = folder / NAME
    data = read_bytes(path)
    try:
        content = json.loads(data)
        if isinstance(content["format"], int) and content["format"] > FORMAT:
            raise InputError(f"{path} was made by a newer Tessera (format {content['format']}): upgrade tessera-lm")
        files = {name: Written(**written) for name, written in content["files"].items()}
        manifest = Manifest(content["run"], content["step"], content["written"], files)
        whole = manifest.to_bytes() == data and all(Path(name).name == name for name in files)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise DamagedError(path, "it is not what was written")
    return manifest
