"""Real models in and out: the files of Hugging Face's libraries, of llama.cpp, and our own.

`open_model` tells what a path is by its content; `EXPORTS` has one writer a format. Nothing that could run code is
read: a pickle is refused and never loaded.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tessera.errors import FormatError, InputError, SettingError
from tessera.formats.pickles import is_pickle, pickle_error
from tessera.formats.source import Blocks, ModelSource
from tessera.model.settings import DecoderSettings
from tessera.tokenizers import Tokenizer

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["EXPORTS", "ModelSource", "export_model", "open_model"]

READERS = {
    "hf": ("tessera.formats.huggingface", "open_huggingface"),
    "gguf": ("tessera.formats.gguf.opening", "open_gguf"),
    "safetensors": ("tessera.formats.own", "open_own"),
}
"""Where the reader of each format is, imported when it is used: a file is of one format, and each has many tables."""
EXPORTS = {
    "hf": ("tessera.formats.huggingface_out", "export_huggingface"),
    "gguf": ("tessera.formats.gguf.export", "export_gguf"),
    "safetensors": ("tessera.formats.own", "export_own"),
}
"""Where the writer of each format is, imported when it is used, as PyTorch comes with it:
`export(settings, n_vocab, tensors, tokenizer, path, *, dtype)` writes the files and returns what to say of them."""


def open_model(path: str | Path) -> ModelSource:
    """The model at `path`: a folder with a config.json, a GGUF file, or a safetensors file that Tessera wrote
    (or the folder with it).

    Only headers are read. A file that is not what it claims to be is a `FormatError`; so is a pickle, whose loading
    would run whatever its author put in it.
    """
    format, place = _format_of(Path(path))
    open_it: Callable[[Path], ModelSource] = _imported(*READERS[format])
    return open_it(place)


def _format_of(path: Path) -> tuple[str, Path]:
    """Which of `READERS` is for what is there, and the file or folder that it takes."""
    if path.is_dir():
        own = path / "model.safetensors"
        return ("safetensors", own) if own.exists() and not (path / "config.json").exists() else ("hf", path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    start = _first_bytes(path)
    if start == b"GGUF":
        return "gguf", path
    if is_pickle(path, start):
        raise pickle_error(path)
    if path.suffix == ".safetensors":
        return "safetensors", path
    if path.name == "config.json":
        return "hf", path.parent
    raise FormatError(path, "neither a model's folder (with a config.json), nor a GGUF file, nor a .safetensors file")


def _imported(module: str, name: str) -> Any:
    return getattr(import_module(module), name)


def export_model(
    settings: DecoderSettings,
    n_vocab: int,
    tensors: "Mapping[str, Tensor]",
    tokenizer: Tokenizer,
    path: str | Path,
    *,
    to: str,
    dtype: str = "fp32",
    blocks: Blocks | None = None,
) -> list[str]:
    """Write a model for other programs, whole or not at all; returns lines to say about what was written.

    `to` is one of `EXPORTS`; what is at `path` already is never replaced, and folders above it are made. `dtype` is
    fp32, bf16 or fp16, for GGUF also q8_0, q4_0 or q4_1. What the format cannot hold exactly is a `SettingError` that
    says so. `blocks` gives matrices that are blocks of GGUF files already (`ModelSource.blocks`): into such a file they
    go byte for byte, whatever `dtype` says of the others.
    """
    if to not in EXPORTS:
        raise SettingError("to", to, f"one of {', '.join(EXPORTS)}")
    given = {"blocks": blocks} if to == "gguf" else {}
    export: Callable[..., list[str]] = _imported(*EXPORTS[to])
    return export(settings, n_vocab, tensors, tokenizer, Path(path), dtype=dtype, **given)


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(4)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
