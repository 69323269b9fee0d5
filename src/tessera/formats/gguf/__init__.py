"""GGUF, the file format of llama.cpp, in (`opening.py`, which needs no PyTorch) and out (`export.py`)."""

from tessera.formats.gguf.opening import open_gguf

__all__ = ["open_gguf"]
