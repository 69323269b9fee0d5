"""Text to ids and back.

A tokenizer is trained on texts or made from a vocabulary, and travels with the model as `tokenizer.json`.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tessera.config import Spec, check_spec
from tessera.errors import DamagedError, InputError
from tessera.tokenizers.bins import BinTokenizer
from tessera.tokenizers.bpe import NaiveBpe
from tessera.tokenizers.byte import ByteTokenizer
from tessera.tokenizers.char import CharTokenizer
from tessera.tokenizers.contract import Tokenizer, parse_state, read_state
from tessera.tokenizers.formats import FORMATS, export_tokenizer, import_tokenizer, load_vocabulary
from tessera.tokenizers.regex_bpe import RegexBpe
from tessera.tokenizers.sentencepiece.piece_bpe import PieceBpe
from tessera.tokenizers.sentencepiece.unigram import UnigramTokenizer
from tessera.tokenizers.symbols import SymbolTokenizer
from tessera.tokenizers.word import WordTokenizer

__all__ = [
    "FORMATS",
    "TOKENIZERS",
    "Tokenizer",
    "check_tokenizer",
    "export_tokenizer",
    "import_tokenizer",
    "load_tokenizer",
    "load_vocabulary",
    "tokenizer_from_json",
    "tokenizer_from_state",
    "train_tokenizer",
]

TOKENIZERS: dict[str, type[Tokenizer]] = {
    "char": CharTokenizer,
    "word": WordTokenizer,
    "byte": ByteTokenizer,
    "bpe": RegexBpe,
    "bpe-naive": NaiveBpe,
    "unigram": UnigramTokenizer,
    "bpe-pieces": PieceBpe,
    "symbols": SymbolTokenizer,
    "bins": BinTokenizer,
}


def check_tokenizer(spec: Spec | str | Mapping[str, Any], *, path: str = "tokenizer") -> Spec:
    """`spec` with its settings' types checked against the kind's `train`."""
    return check_spec({name: kind.train for name, kind in TOKENIZERS.items()}, spec, path, given=("texts", "progress"))


def train_tokenizer(spec: Spec | str | Mapping[str, Any], texts: Iterable[str]) -> Tokenizer:
    """The tokenizer that `spec` says, trained on `texts`.

    >>> train_tokenizer({"name": "bpe", "vocab_size": 258}, ["aaab aaab"]).encode("aaab")
    [256, 97, 98]
    """
    spec = check_tokenizer(spec)
    try:
        return TOKENIZERS[spec.name].train(texts, **spec.settings)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("numba", "llvmlite"):
            raise
        raise InputError(f"the tokenizer {spec.name} is trained by compiled loops: pip install numba") from None


def tokenizer_from_state(state: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer, of whatever kind, whose `state()` this is."""
    kind = state.get("kind")
    if kind not in TOKENIZERS:
        raise InputError(f"a tokenizer of kind {kind!r}; known are {', '.join(TOKENIZERS)}")
    return TOKENIZERS[kind].from_state(state)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer, of whatever kind, that `save` wrote to `path`."""
    state = read_state(path)
    try:
        return tokenizer_from_state(state)
    except InputError as error:
        raise DamagedError(path, str(error)) from None


def tokenizer_from_json(text: str, path: str | Path = "tokenizer.json") -> Tokenizer:
    """The tokenizer whose `to_json()` this is; `path` says in errors where it is from."""
    return tokenizer_from_state(parse_state(text, path))
