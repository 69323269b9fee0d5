"""One token a symbol, for sequences that are no language: notes, moves of a game, amino acids, events in a log.

The text is symbols with a separator between them: any run of white space (the default), a text of one's own such as
"," or " | ", or nothing at all, where each character is a symbol (a protein, "MKVLAA"). Symbols are taken as they are:
nothing is lower-cased or stripped, and `decode` gives back what was written, up to the white space that a run had.

From Python the text can be left out: `from_sequences`, `encode_symbols` and `decode_symbols` take and give lists.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Literal, Self, get_args

from tessera.errors import InputError, SettingError
from tessera.tokenizers.contract import StreamDecoder, Tokenizer, Unknown
from tessera.tokenizers.specials import DEFAULT_SPECIALS, Specials, check_text, n_ordinary, ordinary_parts
from tessera.tokenizers.word import PAD, UNKNOWN

NEWLINE = "\n"
LINE_END = re.compile(r"\r\n|\n|\r")

Newline = Literal["separator", "symbol"]
OnUnknown = Literal["unk", "error"]


def split_symbols(text: str, separator: str | None = None, newline: Newline = "separator") -> list[str]:
    """The symbols of `text`. A line end parts two symbols as a separator does; as a "symbol" it is one itself.

    With a separator of one's own, an empty place between two of them is an `InputError`; one at either end of a line
    is passed over.

    >>> split_symbols("C4 E4\\nG4")
    ['C4', 'E4', 'G4']
    >>> split_symbols("e4,e5\\nd4", ",", "symbol")
    ['e4', 'e5', '\\n', 'd4']
    """
    if separator is None and newline == "separator":
        return text.split()
    lines = (_split_line(line, separator) for line in LINE_END.split(text))
    if newline == "separator":
        return list(chain.from_iterable(lines))
    symbols = next(lines)
    for line in lines:
        symbols += [NEWLINE, *line]
    return symbols


def _split_line(line: str, separator: str | None) -> list[str]:
    if separator is None:
        return line.split()
    if not separator:
        return list(line)
    symbols = line.split(separator)
    inner = symbols[(not symbols[0]) : len(symbols) - (not symbols[-1])]
    if "" in inner:
        place = len(separator.join(symbols[: symbols.index("", 1)]))
        raise InputError(
            f"no symbol between two separators {separator!r} at character {place} of the line {line!r:.80}"
        )
    return inner


class SymbolTokenizer(Tokenizer):
    """Ids: `<pad>` 0, `<unk>` 1, the line end 2 where it is a symbol, the `symbols` in their order, the special tokens.

    `decode` puts the separator (a space where it is any white space) between two symbols, but none beside a line end.
    A symbol outside the vocabulary becomes `<unk>`, or with `on_unknown="error"` an `InputError` that names it; so do
    `<unk>` and `<pad>` where they are spelled out.
    """

    kind = "symbols"
    unknown = UNKNOWN.encode()

    def __init__(
        self,
        *,
        symbols: Sequence[str],
        separator: str | None = None,
        newline: Newline = "separator",
        on_unknown: OnUnknown = "unk",
        specials: Specials = DEFAULT_SPECIALS,
    ) -> None:
        check_choice("newline", newline, Newline)
        check_choice("on_unknown", on_unknown, OnUnknown)
        if separator is not None and LINE_END.search(separator):
            raise SettingError("tokenizer.separator", separator, "a text without a line end: see tokenizer.newline")
        self.symbols = list(symbols)
        self.split_at = separator
        self.newline: Newline = newline
        self.on_unknown: OnUnknown = on_unknown
        self.separator = (" " if separator is None else separator).encode()
        table = [PAD, UNKNOWN, *([NEWLINE] if newline == "symbol" else []), *self.symbols]
        super().__init__(tokens={id: symbol.encode() for id, symbol in enumerate(table)}, specials=specials)
        self._check_symbols()
        self._ids = {symbol: id for id, symbol in enumerate(table)}
        self._known = {symbol: id for symbol, id in self._ids.items() if symbol not in (PAD, UNKNOWN)}

    def _check_symbols(self) -> None:
        """Each symbol must come back from the text that it stands in, and be there once."""
        for symbol, count in Counter([*self.symbols, PAD, UNKNOWN]).items():
            check_text(symbol)
            if count > 1:
                raise SettingError("tokenizer.symbols", symbol, f"each symbol only once, and no {PAD} or {UNKNOWN}")
        for symbol in self.symbols:
            if any(name in symbol for name in self.specials):
                raise SettingError("tokenizer.symbols", symbol, "a symbol that holds no special token")
            if LINE_END.search(symbol) or split_symbols(symbol, self.split_at) != [symbol]:
                expected = "one symbol: not empty, without a line end and without the separator"
                raise SettingError("tokenizer.symbols", symbol, expected)

    @property
    def pad_id(self) -> int:
        return 0

    @property
    def unk_id(self) -> int:
        return 1

    def encode_ordinary(self, text: str) -> list[int]:
        return self.encode_symbols(split_symbols(text, self.split_at, self.newline))

    def encode_symbols(self, symbols: Sequence[str]) -> list[int]:
        """The id of each symbol; where line ends are symbols, "\\n" is one."""
        known, unk_id = self._known, self.unk_id
        ids = [known.get(symbol, unk_id) for symbol in symbols]
        if self.on_unknown == "error" and unk_id in ids:
            place = ids.index(unk_id)
            raise InputError(f"symbol {place} of the sequence, {symbols[place]!r}, is not in the vocabulary")
        return ids

    def decode_symbols(self, ids: Iterable[int]) -> list[str]:
        """The symbol of each id; `<unk>`, `<pad>` and special tokens under their names."""
        return [self.token_bytes(id).decode() for id in ids]

    def settled(self, text: str) -> int:
        """Up to the last place where a symbol certainly begins, whatever follows."""
        line = max(text.rfind("\n") + 1, text.rfind("\r", 0, -1) + 1)  # the line end after a last "\r" may go on
        if self.split_at == "":
            return len(text) - text.endswith("\r")
        if self.split_at is None:
            spaces = re.search(r"\s\S*\Z", text)
            return spaces.start() if spaces and text[spaces.start()] not in "\r\n" else line
        *before, last = text[line:].split(self.split_at)
        if len(last) < len(self.split_at) and len(before) > 1:  # it may be the beginning of a separator
            last = self.split_at.join([before[-1], last]) if before[-1] else text[line:]
        return len(text) - len(last) if len(last) >= len(self.split_at) else line

    def decode_bytes(self, ids: Iterable[int], *, unknown: Unknown = "raise") -> bytes:
        token_bytes = self._lookup(unknown)
        return b"".join(chain.from_iterable(self._written(map(token_bytes, ids))))

    def _written(self, tokens: Iterable[bytes]) -> Iterator[tuple[bytes, bytes]]:
        """Each token with what is written before it."""
        before = b""
        for number, token in enumerate(tokens):
            yield (self.between(before, token) if number else b""), token
            before = token

    def between(self, before: bytes, after: bytes) -> bytes:
        """What parts two tokens: the separator, but beside a line end nothing."""
        return b"" if NEWLINE.encode() in (before, after) else self.separator

    def stream(self, *, unknown: Unknown = "raise") -> StreamDecoder:
        return _SymbolStream(self, self._lookup(unknown))

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        *,
        separator: str | None = None,
        newline: Newline = "separator",
        min_count: int = 1,
        vocab_size: int | None = None,
        on_unknown: OnUnknown = "unk",
        specials: Specials = DEFAULT_SPECIALS,
    ) -> Self:
        """The symbols of `texts` that occur `min_count` times or more, the most frequent first, of equals in the
        order of their characters.

        At most `vocab_size` tokens, in which `<pad>`, `<unk>`, a line end and the special tokens count; None keeps all.
        """
        return cls.from_sequences(
            (split_symbols(part, separator, newline) for part in ordinary_parts(texts, specials)),
            separator=separator,
            newline=newline,
            min_count=min_count,
            vocab_size=vocab_size,
            on_unknown=on_unknown,
            specials=specials,
        )

    @classmethod
    def from_sequences(
        cls,
        sequences: Iterable[Iterable[str]],
        *,
        separator: str | None = None,
        newline: Newline = "separator",
        min_count: int = 1,
        vocab_size: int | None = None,
        on_unknown: OnUnknown = "unk",
        specials: Specials = DEFAULT_SPECIALS,
    ) -> Self:
        """The same from sequences of symbols, such as lists."""
        if min_count < 1:
            raise SettingError("tokenizer.min_count", min_count, "a whole number from 1")
        counts: Counter[str] = Counter()
        for sequence in sequences:
            counts.update(sequence)
        fixed = {PAD, UNKNOWN, *([NEWLINE] if newline == "symbol" else [])}
        frequent = (symbol for symbol, count in counts.items() if count >= min_count and symbol not in fixed)
        symbols = sorted(frequent, key=lambda symbol: (-counts[symbol], symbol))
        if not symbols:
            raise InputError(f"there is no symbol in the text that occurs {min_count} times or more")
        if vocab_size is not None:
            room = n_ordinary(vocab_size, specials) - len(fixed)
            if room < 1:
                least = vocab_size - room + 1
                raise SettingError(
                    "tokenizer.vocab_size", vocab_size, f"{least} or more: one symbol beside the markers"
                )
            symbols = symbols[:room]
        return cls(symbols=symbols, separator=separator, newline=newline, on_unknown=on_unknown, specials=specials)

    def settings(self) -> dict[str, Any]:
        return {
            "symbols": self.symbols,
            "separator": self.split_at,
            "newline": self.newline,
            "on_unknown": self.on_unknown,
            "specials": self.specials,
        }

    @classmethod
    def restore(cls, settings: Mapping[str, Any]) -> Self:
        names = ("symbols", "separator", "newline", "on_unknown", "specials")
        return cls(**{name: settings[name] for name in names})


class _SymbolStream(StreamDecoder):
    """One symbol at a time, with nothing beside a line end."""

    def __init__(self, tokenizer: SymbolTokenizer, token_bytes: Callable[[int], bytes]) -> None:
        super().__init__(tokenizer, token_bytes)
        self._between = tokenizer.between
        self._before = b""

    def push(self, id: int) -> str:
        token = self._token_bytes(id)
        self._separator = self._between(self._before, token)
        self._before = token
        return super().push(id)


def check_choice(name: str, value: str, choices: Any) -> None:
    """`value` must be one of the texts that the Literal `choices` lists."""
    if value not in get_args(choices):
        raise SettingError(f"tokenizer.{name}", value, " or ".join(map(repr, get_args(choices))))
