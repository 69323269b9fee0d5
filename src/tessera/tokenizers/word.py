"""One token a word: the words that occur most often, and `<unk>` for every other.

Text is lower-cased and loses its punctuation, so `decode` gives the words back and not the text.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Self

import regex

from tessera.errors import InputError, SettingError
from tessera.tokenizers.contract import Tokenizer
from tessera.tokenizers.specials import DEFAULT_SPECIALS, Specials, check_text, n_ordinary, ordinary_parts

PAD, UNKNOWN = "<pad>", "<unk>"


def split_words(text: str) -> list[str]:
    """The words of `text`: punctuation parts them, but an apostrophe inside a word only vanishes.

    >>> split_words("Don't panic -- it's a well-known 'fact'!")
    ['dont', 'panic', 'its', 'a', 'well', 'known', 'fact']
    """
    joined = regex.sub(r"(?<=\w)['\u2019](?=\w)", "", text.lower())
    words: list[str] = regex.findall(r"[\w--_]+", joined, flags=regex.VERSION1)
    return words


class WordTokenizer(Tokenizer):
    """Ids: `<pad>` 0, `<unk>` 1, the `words` in their order, then the special tokens. Decoding joins with spaces."""

    kind = "word"
    separator = b" "
    unknown = UNKNOWN.encode()

    def __init__(self, *, words: list[str], specials: Specials = DEFAULT_SPECIALS) -> None:
        table = [PAD, UNKNOWN, *words]
        for word in words:
            check_text(word)
            if not word or not isinstance(word, str):
                raise SettingError("tokenizer.words", word, "a word that is not empty")
        if len(set(table)) < len(table):
            twice = next(word for word, count in Counter(table).items() if count > 1)
            raise SettingError("tokenizer.words", twice, f"each word only once, and no {PAD} or {UNKNOWN}")
        self.words = list(words)
        self._ids = {word: id for id, word in enumerate(table)}
        super().__init__(tokens={id: word.encode() for id, word in enumerate(table)}, specials=specials)

    @property
    def pad_id(self) -> int:
        return self._ids[PAD]

    @property
    def unk_id(self) -> int:
        return self._ids[UNKNOWN]

    def encode_ordinary(self, text: str) -> list[int]:
        ids, unknown = self._ids, self.unk_id
        return [ids.get(word, unknown) for word in split_words(text)]

    @classmethod
    def train(
        cls, texts: Iterable[str], *, vocab_size: int | None = None, specials: Specials = DEFAULT_SPECIALS
    ) -> Self:
        """The most frequent words, of equals the alphabetically first.

        `vocab_size` counts everything: `<pad>`, `<unk>`, the words and the special tokens. None keeps every word.
        """
        counts: Counter[str] = Counter()
        for part in ordinary_parts(texts, specials):
            counts.update(split_words(part))
        if not counts:
            raise InputError("there is no word in the text to make a vocabulary of")
        words = sorted(counts, key=lambda word: (-counts[word], word))
        if vocab_size is not None:
            n_words = n_ordinary(vocab_size, specials) - 2
            fixed = vocab_size - n_words
            if not 0 < n_words <= len(words):
                allowed = f"{fixed + 1} to {fixed + len(words)}: the text has {len(words)} different words"
                raise SettingError("tokenizer.vocab_size", vocab_size, allowed)
            words = words[:n_words]
        return cls(words=words, specials=specials)

    def settings(self) -> dict[str, Any]:
        return {"words": self.words, "specials": self.specials}

    @classmethod
    def restore(cls, settings: Mapping[str, Any]) -> Self:
        return cls(words=settings["words"], specials=settings["specials"])
