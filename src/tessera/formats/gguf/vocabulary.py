"""The vocabulary of a GGUF file as a tokenizer of ours.

Three models of llama.cpp's: "gpt2", byte-pair encoding of bytes by a list of merges; "llama", byte-pair encoding of
characters by scores, with bytes to fall back on; "t5", SentencePiece's unigram. Every token has a type. What a text
becomes in the model's hands (the token in front, the ends of an answer, the chat template) travels as the framing.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tessera.errors import FormatError, InputError, SettingError
from tessera.formats.gguf.pre_tokenizers import BEGINS, PATTERNS
from tessera.formats.gguf.reader import GgufFile
from tessera.formats.gguf.values import as_plain
from tessera.tokenizers import Tokenizer
from tessera.tokenizers.formats.gpt2 import make_bpe
from tessera.tokenizers.formats.merges import read_merges
from tessera.tokenizers.framing import Framing
from tessera.tokenizers.sentencepiece.normalizer import MARK, Normalizer
from tessera.tokenizers.sentencepiece.piece_bpe import PieceBpe
from tessera.tokenizers.sentencepiece.piece_tokenizer import Piece, marked
from tessera.tokenizers.sentencepiece.unigram import UNKNOWN_PENALTY, UnigramTokenizer

BEGIN = "tokenizer.ggml."
TEMPLATE = "tokenizer.chat_template"
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
ROLES = {NORMAL: "normal", UNKNOWN: "unknown", USER: "user", UNUSED: "unused", BYTE: "byte"}
_SPLIT_OFF = (CONTROL, USER, UNKNOWN)  # what is no token of bytes
# What files leave out: the ids of the begin, the end and the unknown token where the model is "llama".
_USUAL = {"llama": {"bos": 1, "eos": 2, "unknown": 0}, "t5": {"eos": 1, "unknown": 2, "padding": 0}}
# Ends of a turn that llama.cpp knows by their names where the file does not say.
_TURN_ENDS = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>")


@dataclass(frozen=True)
class Vocabulary:
    """The tokenizer, None where the file has none, and what to say."""

    tokenizer: Tokenizer | None
    notes: list[str] = field(default_factory=list)


def read_vocabulary(file: GgufFile, n_vocab: int) -> Vocabulary:
    """The tokenizer of a model with `n_vocab` tokens; a `FormatError` where its ids would not be llama.cpp's."""
    model = file.metadata.get(f"{BEGIN}model")
    if model in (None, "none", "no_vocab"):
        return Vocabulary(None, ["the file has no vocabulary, so there is no tokenizer"])
    if model not in ("gpt2", "llama", "t5"):
        raise FormatError(file.path, f"{BEGIN}model = {as_plain(model)!r}: expected 'gpt2', 'llama' or 't5'")
    table = _Table(file, model, n_vocab)
    try:
        tokenizer = table.byte_level() if model == "gpt2" else table.pieces(unigram=model == "t5")
        framed = tokenizer.with_framing(table.framing())
    except FormatError:
        raise
    except (InputError, SettingError) as error:
        raise FormatError(file.path, f"its vocabulary is not sound: {error}") from None
    return Vocabulary(framed, table.notes)


class _Table:
    """The tokens of a file with their types, and the ids that have a purpose."""

    def __init__(self, file: GgufFile, model: str, n_vocab: int) -> None:
        self.path, self.model, self._metadata = file.path, model, file.metadata
        self.notes: list[str] = []
        self.tokens: list[str] = self._array("tokens", n_vocab, list)
        self.types: list[int] = self._array("token_type", n_vocab, np.ndarray, [NORMAL] * n_vocab)
        if unknown := {*self.types} - {CONTROL, *ROLES}:
            place = next(place for place, kind in enumerate(self.types) if kind in unknown)
            raise FormatError(self.path, f"token {place} is of type {self.types[place]}: expected 1 to 6")
        purposes = ("bos", "eos", "eot", "eom", "unknown", "padding")
        self.ids = {name: found for name in purposes if (found := self._id(name)) is not None}
        for purpose in ("bos", "eos", "eot", "eom"):
            said = self._entry(f"{purpose}_token_id") is not None and purpose in self.ids
            if said and self.types[self.ids[purpose]] in (NORMAL, USER):
                self.types[self.ids[purpose]] = CONTROL
        self.specials = self._unique(_SPLIT_OFF if model == "gpt2" else (CONTROL,))

    def _entry(self, name: str) -> Any:
        return self._metadata.get(f"{BEGIN}{name}")

    def _array(self, name: str, length: int, kind: Any, usual: list[Any] | None = None) -> list[Any]:
        found: Any = self._entry(name)
        if found is None and usual is not None:
            return usual
        if isinstance(found, kind) and len(found) == length:
            if isinstance(found, np.ndarray):
                return found.tolist()
            if _all_text(found):
                return list(found)
        raise FormatError(self.path, f"{BEGIN}{name} is {as_plain(found)!r}: expected an array of {length}")

    def _id(self, purpose: str) -> int | None:
        found = self._entry(f"{purpose}_token_id")
        found = _USUAL.get(self.model, {}).get(purpose) if found is None else found
        if type(found) is not int or found < 0:
            return None
        return found if found < len(self.tokens) else None  # as llama.cpp, which takes no notice of such an id

    def _flag(self, name: str, usual: bool) -> bool:
        found = self._entry(name)
        if found is not None and type(found) is not bool:
            raise FormatError(self.path, f"{BEGIN}{name} = {as_plain(found)!r}: expected true or false")
        return usual if found is None else found

    def _unique(self, kinds: tuple[int, ...]) -> dict[str, int]:
        """The tokens of these types by name."""
        ids = [id for id, kind in enumerate(self.types) if kind in kinds]
        found = dict(zip(map(self.tokens.__getitem__, ids), ids, strict=True))
        if len(found) < len(ids):
            id = next(id for id in ids if found[self.tokens[id]] != id)
            text = self.tokens[id]
            raise FormatError(self.path, f"the tokens {id} and {found[text]} are both {text!r}")
        return found

    def byte_level(self) -> Tokenizer:
        pre = self._entry("pre")
        if not isinstance(pre, str) or pre not in PATTERNS:
            known = ", ".join(sorted(PATTERNS))
            raise FormatError(self.path, f"{BEGIN}pre = {as_plain(pre)!r}: expected a split pattern of {known}")
        pattern, whole_pieces = PATTERNS[pre]
        ordinary = self._unique((NORMAL,))
        merges = self._entry("merges")
        if not isinstance(merges, list) or not _all_text(merges):
            raise FormatError(self.path, f"{BEGIN}merges is {as_plain(merges)!r}: expected an array of pairs of tokens")
        pairs = [merge.split(" ") for merge in merges]
        if not all(len(pair) == 2 and pair[0] and pair[1] for pair in pairs):
            pairs = [self._pair(merge) for merge in merges]
        source = str(self.path)
        return make_bpe(
            ordinary,
            read_merges(pairs, self._unique((NORMAL, *_SPLIT_OFF)), source),
            whole_pieces=whole_pieces,
            pattern=pattern,
            specials=self.specials,
            source=source,
        )

    def _pair(self, merge: str) -> list[str]:
        """One in which a token has a space, too."""
        first, space, second = merge[1:].partition(" ")
        if not space or not second:
            raise FormatError(self.path, f"the merge {merge!r} is not two tokens with a space between")
        return [merge[0] + first, second]

    def pieces(self, *, unigram: bool) -> Tokenizer:
        n_vocab = len(self.tokens)
        scores = self._array("scores", n_vocab, np.ndarray, [0.0] * n_vocab if not unigram else None)
        pieces = {
            id: Piece(_text(self.tokens[id], kind), float(scores[id]), ROLES[kind])
            for id, kind in enumerate(self.types)
            if kind != CONTROL and not (kind == UNUSED and self.tokens[id].startswith("[PAD"))
        }
        names = {setting: self._name(purpose) for setting, purpose in _NAMED.items()}
        settings: dict[str, Any] = {"pieces": pieces, "specials": self.specials, **names}
        settings["normalizer"] = self._normalizer(pieces, unigram=unigram)
        if not unigram:
            return PieceBpe(**settings)
        least = min((piece.score for piece in pieces.values() if piece.role == "normal"), default=0.0)
        return UnigramTokenizer(**settings, unknown_score=least - UNKNOWN_PENALTY)

    def _name(self, purpose: str) -> str | None:
        id = self.ids.get(purpose)
        return None if id is None or self.types[id] != CONTROL else self.tokens[id]

    def _normalizer(self, pieces: Mapping[int, Piece], *, unigram: bool) -> Normalizer:
        found = self._entry("precompiled_charsmap")
        if found is not None and (not unigram or not isinstance(found, np.ndarray) or found.dtype.itemsize != 1):
            raise FormatError(self.path, f"{BEGIN}precompiled_charsmap is not what a unigram model has")
        charsmap = b"" if found is None else found.tobytes()
        step = {
            "charsmap": base64.b64encode(charsmap).decode(),
            "remove_extra_whitespaces": self._flag("remove_extra_whitespaces", False),
            "add_dummy_prefix": self._flag("add_space_prefix", True),
        }
        keep = [marked(piece.text) for piece in pieces.values() if piece.role == "user"]
        return Normalizer(steps=[("sentencepiece", step)], marks_are_spaces=True, keep=keep)

    def framing(self) -> Framing:
        usual = self.model == "llama" or self._entry("pre") in BEGINS
        bos = self._name("bos")
        begin = bos if self._flag("add_bos_token", usual) else None
        ends = [name for purpose in ("eos", "eot", "eom") if (name := self._name(purpose)) is not None]
        if "eot" not in self.ids:
            ends += [name for name in _TURN_ENDS if name in self.specials]
        if self._flag("add_eos_token", False):
            self.notes.append("its add_eos_token is not followed: an end token stands behind no prompt")
        template = self._metadata.get(TEMPLATE)
        if template is not None and not isinstance(template, str):
            raise FormatError(self.path, f"{TEMPLATE} is {as_plain(template)!r}: expected a text")
        return Framing(
            begin=begin,
            ends=tuple(dict.fromkeys(ends)),
            template=template,
            bos_token=bos if begin is None and template is not None else None,
            plain=tuple(name for name, id in self.specials.items() if self.types[id] == USER),
        )


_NAMED = {"begin": "bos", "end": "eos", "pad": "padding"}


def _all_text(values: list[Any]) -> bool:
    return {*map(type, values)} <= {str}


def _text(token: str, kind: int) -> str:
    return token if kind in (BYTE, UNKNOWN) else token.replace(MARK, " ")
