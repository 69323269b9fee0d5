"""One token a byte of UTF-8: nothing to train, nothing unknown, 256 ids and the special tokens."""

from collections.abc import Iterable, Mapping
from typing import Any, Self

from tessera.tokenizers.contract import Tokenizer
from tessera.tokenizers.specials import DEFAULT_SPECIALS, Specials


class ByteTokenizer(Tokenizer):
    """A byte's id is its value."""

    kind = "byte"

    def __init__(self, *, specials: Specials = DEFAULT_SPECIALS) -> None:
        super().__init__(tokens={byte: bytes([byte]) for byte in range(256)}, specials=specials)

    def encode_ordinary(self, text: str) -> list[int]:
        return list(text.encode())

    @classmethod
    def train(cls, texts: Iterable[str] = (), *, specials: Specials = DEFAULT_SPECIALS) -> Self:
        """The same for every text; `texts` is not read."""
        return cls(specials=specials)

    def settings(self) -> dict[str, Any]:
        return {"specials": self.specials}

    @classmethod
    def restore(cls, settings: Mapping[str, Any]) -> Self:
        return cls(specials=settings["specials"])
