"""Tessera: plain text to a language model that answers.

The public names below are imported when they are first used: `import tessera` and `tessera --help` load no torch.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "LM": "tessera.lm",
    "Recipe": "tessera.recipe",
    "Run": "tessera.store.run",
    "Spec": "tessera.config",
    "build": "tessera.config",
    "Decoder": "tessera.model.decoder",
    "Engine": "tessera.generate.engine",
    "Sampling": "tessera.generate.sampling",
    "Tokenizer": "tessera.tokenizers.contract",
    "load_tokenizer": "tessera.tokenizers",
    "TesseraError": "tessera.errors",
}

__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tessera' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
