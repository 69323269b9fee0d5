"""The texts that benchmarks measure on: the shared data where it is, and what every Python installation has.

English: encyclopedia, web, stories, sums, plays. Mixed: the code of Python's standard library with its tests, Chinese
instructions, English. A training text adds the Python packages that are installed.
"""

import bz2
import json
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path


def shared() -> Path | None:
    """TESSERA_DATA, or `shared/data` beside the checkout; None where there is neither."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("TESSERA_DATA", beside))
    return folder if folder.is_dir() else None


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


def _read(path: Path) -> str:
    if path.suffix == ".jsonl":
        return "\n".join(text for line in path.open(encoding="utf-8") for text in _strings(json.loads(line)))
    if path.suffix == ".json":
        return "\n".join(_strings(json.loads(path.read_text(encoding="utf-8"))))
    if path.suffix == ".bz2":
        return bz2.decompress(path.read_bytes()).decode()
    return path.read_text(encoding="utf-8", errors="replace")


def _python(folder: Path) -> Iterator[str]:
    return (_read(path) for path in sorted(folder.rglob("*.py")) if path.stat().st_size < 400_000)


def _cut(texts: Iterator[str], n_bytes: int) -> str:
    """The beginning of the joined texts: `n_bytes`, or all there is."""
    found, size = [], 0
    for text in texts:
        found.append(text)
        size += len(text.encode())
        if size >= n_bytes:
            break
    return "\n".join(found).encode()[:n_bytes].decode(errors="ignore")


def _english() -> Iterator[str]:
    folder = shared()
    names = ["text/wikitext2-valid.txt", "text/c4_demo.jsonl", "text/tinyshakespeare.txt", "text/the_verdict.txt"]
    names += ["eval/gsm8k_train.jsonl", "eval/lambada_openai.jsonl", "eval/hellaswag_val_full.txt.bz2"]
    if folder is not None:
        yield from (_read(folder / name) for name in names)
    library = Path(sysconfig.get_paths()["stdlib"])
    yield _read(library / "pydoc_data" / "topics.py")
    yield from _python(library)


def english(n_bytes: int = 10_000_000) -> str:
    return _cut(_english(), n_bytes)


def _mixed() -> Iterator[str]:
    library, folder = Path(sysconfig.get_paths()["stdlib"]), shared()
    yield _cut(_python(library), 4_000_000)
    if folder is not None:
        yield _read(folder / "instruct" / "alpaca_zh_demo.json")
        yield english()[5_000_000:8_000_000]
    yield _cut(_python(library / "test"), 1_500_000)
    yield from _python(library / "encodings")
    yield from _python(library / "lib2to3")


def mixed(n_bytes: int = 10_000_000) -> str:
    return _cut(_mixed(), n_bytes)


def _training() -> Iterator[str]:
    yield english()
    yield mixed()
    yield from _python(Path(sysconfig.get_paths()["purelib"]))


def training(n_bytes: int) -> str:
    """For a trainer: English, mixed, then the code of the installed packages, as far as they go."""
    return _cut(_training(), n_bytes)
