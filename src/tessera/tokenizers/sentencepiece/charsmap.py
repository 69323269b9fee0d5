"""The table of replacements inside a SentencePiece model: from characters, alone or in a row, to what stands for them.

The format: the size of a trie as 32 bits, the trie, then the replacements, each ended by a zero byte. The trie is a
double array (Aoe 1989, "An Efficient Digital Search Algorithm by Using a Double-Array Structure") of 32-bit units as
darts-clone packs them: the node of a prefix at p and a byte c lead to p ^ offset ^ c, if the unit there has the label
c; a node that ends a key has its value in the unit at p ^ offset, which has bit 31 set.
"""

import re
from collections.abc import Collection
from functools import cached_property

import numpy as np
import regex

from tessera.errors import InputError

_LEAF = 1 << 31


def parse_charsmap(content: bytes) -> tuple[np.ndarray, bytes]:
    """(the units of the trie, the replacements); an `InputError` for a table that is not whole."""
    size = int.from_bytes(content[:4], "little")
    if len(content) <= 4 or size % 4 or not 0 < size < len(content) - 4:
        raise InputError(f"the table of characters is damaged: {size} bytes of trie in {len(content)}")
    units = np.frombuffer(content, "<u4", size // 4, offset=4).astype(np.int64)
    values = content[4 + size :]
    places = units[units >= _LEAF] & (_LEAF - 1)
    try:
        values.decode()
    except UnicodeDecodeError:
        raise InputError("the table of characters is damaged: its replacements are not UTF-8 text") from None
    inside = values[-1] == 0 and not (places >= len(values)).any()
    if not inside or (np.frombuffer(values, np.uint8)[places] & 0xC0 == 0x80).any():
        raise InputError("the table of characters is damaged: an entry leads to no replacement")
    return units, values


class Charsmap:
    """The table, and the two rules by which it is applied. What is in `keep` stays as it is."""

    def __init__(self, content: bytes, *, keep: Collection[str] = ()) -> None:
        nothing: tuple[np.ndarray, bytes] = np.zeros(0, np.int64), b""
        self._units, self._values = parse_charsmap(content) if content else nothing
        self._places = np.frombuffer(self._values, np.uint8)
        self._keep = sorted(keep, key=lambda symbol: (-len(symbol), symbol))

    @property
    def widens_spaces(self) -> bool:
        """Whether something is replaced by several spaces in a row."""
        return b"  " in self._values

    def by_longest_key(self, text: str) -> str:
        """SentencePiece's rule: from left to right, the longest key is replaced."""
        if not self._values or not text:
            return text
        from tessera.tokenizers.sentencepiece.charsmap_loop import replace_longest

        content = np.frombuffer(text.encode(), np.uint8)
        kept = self._kept(content)
        out = np.empty(2 * len(content) + 64, np.uint8)
        state = np.zeros(2, np.int64)
        while not replace_longest(self._units, self._places, content, kept, state, out):
            if state[0] < 0:
                raise InputError("the table of characters is damaged: its trie leads out of itself")
            out = np.concatenate([out, np.empty_like(out)])
        return out[: state[1]].tobytes().decode()

    def _kept(self, content: np.ndarray) -> np.ndarray:
        """For every byte of the text the length of the symbol to keep that begins there, or 0; empty without any."""
        if not self._keep:
            return np.zeros(0, np.int64)
        lengths = np.zeros(len(content), np.int64)
        for found in self._keep_pattern.finditer(content.tobytes()):
            lengths[found.start()] = len(found[1])
        return lengths

    @cached_property
    def _keep_pattern(self) -> re.Pattern[bytes]:
        return re.compile(f"(?=({'|'.join(map(re.escape, self._keep))}))".encode())

    def by_graphemes(self, text: str) -> str:
        """Hugging Face's rule: a grapheme of less than six bytes becomes what the shortest key at its beginning does;
        where there is none, each of its characters is looked at alone."""
        if not self._values:
            return text
        found: dict[str, str] = {}
        out: list[str] = []
        for grapheme in regex.findall(r"\X", text):
            new = found.get(grapheme)
            if new is None:
                new = found[grapheme] = self._grapheme(grapheme)
            out.append(new)
        return "".join(out)

    def _grapheme(self, grapheme: str) -> str:
        whole = self._shortest_key(grapheme) if len(grapheme.encode()) < 6 else None
        if whole is not None:
            return whole
        return "".join(new if (new := self._shortest_key(each)) is not None else each for each in grapheme)

    def _shortest_key(self, text: str) -> str | None:
        from tessera.tokenizers.sentencepiece.charsmap_loop import keys_at

        content = np.frombuffer(text.encode(), np.uint8)
        end, place = np.zeros(1, np.int64), np.zeros(1, np.int64)
        n = keys_at(self._units, content, 0, len(content), end, place)
        if n < 0:
            raise InputError("the table of characters is damaged: its trie leads out of itself")
        return self._values[place[0] : self._values.index(b"\0", place[0])].decode() if n else None
