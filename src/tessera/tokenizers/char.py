"""One token a character: the alphabet of a corpus, in the order of its code points.

The smallest vocabulary that there is (65 for Shakespeare), and the longest sequences.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Self

from tessera.errors import InputError, SettingError
from tessera.tokenizers.contract import Tokenizer
from tessera.tokenizers.specials import DEFAULT_SPECIALS, Specials, check_text, ordinary_parts


class CharTokenizer(Tokenizer):
    """Ids: the characters of `alphabet` in its order, then `<unk>`, then the special tokens.

    A character outside the alphabet becomes `<unk>`, which decodes to U+FFFD.
    """

    kind = "char"

    def __init__(self, *, alphabet: str, specials: Specials = DEFAULT_SPECIALS) -> None:
        check_text(alphabet)
        self.alphabet = alphabet
        self._ids = {character: id for id, character in enumerate(alphabet)}
        if not alphabet or len(self._ids) < len(alphabet):
            raise SettingError("tokenizer.alphabet", alphabet, "at least one character, each only once")
        characters = {id: character.encode() for character, id in self._ids.items()}
        super().__init__(tokens=characters | {len(alphabet): self.unknown}, specials=specials)

    @property
    def unk_id(self) -> int:
        return len(self.alphabet)

    def encode_ordinary(self, text: str) -> list[int]:
        ids, unknown = self._ids, self.unk_id
        return [ids.get(character, unknown) for character in text]

    @classmethod
    def train(cls, texts: Iterable[str], *, specials: Specials = DEFAULT_SPECIALS) -> Self:
        """The characters that occur in `texts`."""
        characters: set[str] = set()
        for part in ordinary_parts(texts, specials):
            characters.update(part)
        if not characters:
            raise InputError("there is no text to take an alphabet from")
        return cls(alphabet="".join(sorted(characters)), specials=specials)

    def settings(self) -> dict[str, Any]:
        return {"alphabet": self.alphabet, "specials": self.specials}

    @classmethod
    def restore(cls, settings: Mapping[str, Any]) -> Self:
        return cls(alphabet=settings["alphabet"], specials=settings["specials"])
