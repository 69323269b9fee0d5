"""GPT-2's two files: `vocab.json` (a token's text to its id) and `merges.txt` (a merge a line, in their order).

The split pattern is GPT-2's unless the setting `pattern` says another. The special tokens are those that transformers
takes: `<|endoftext|>` where the vocabulary has it, and what `added_tokens.json` or `tokenizer_config.json` add.
"""

import json
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from tessera.errors import FormatError, InputError, SettingError
from tessera.tokenizers.formats.added import added_tokens
from tessera.tokenizers.formats.byte_level import all_to_bytes, to_characters
from tessera.tokenizers.formats.expressions import pattern_name
from tessera.tokenizers.formats.merges import are_recovered, read_merges, simplest_rule, write_merges
from tessera.tokenizers.formats.source import Source, member
from tessera.tokenizers.regex_bpe import RegexBpe
from tessera.tokenizers.specials import END, MAX_ID, Specials

VOCABULARY, MERGES, ADDED, CONFIG = "vocab.json", "merges.txt", "added_tokens.json", "tokenizer_config.json"
# The classes of transformers that take vocab.json + merges.txt with GPT-2's pattern; others have one of their own.
_CLASSES = ("GPT2Tokenizer", "GPT2TokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend")

# The bytes without which a vocabulary is not whole: printable ASCII, line breaks, and all but the first of a character.
_NEEDED = (*b"\t\n", *range(0x20, 0x7F), *range(0x80, 0xC0))


def read_gpt2(source: Source, *, pattern: str | None = None, specials: Specials | None = None) -> RegexBpe:
    """`source` is the vocab.json; its merges.txt lies beside it."""
    vocabulary = read_vocabulary(source.required_json(), source.name)
    merges_file = _merges_beside(source)
    if pattern is None:
        pattern = _pattern(source)
    names = _specials(source, vocabulary) if specials is None else _with_ids(specials, vocabulary)
    merges = read_merges(_pairs(merges_file), vocabulary, merges_file.name)
    return make_bpe(vocabulary, merges, whole_pieces=False, pattern=pattern, specials=names, source=source.name)


def read_vocabulary(data: Mapping[str, Any], source: str) -> dict[str, int]:
    """The entries, each with an id of its own."""
    for token, id in data.items():
        if type(id) is not int or not 0 <= id <= MAX_ID:
            raise FormatError(source, f"token {token!r} has the id {reprlib.repr(id)}")
    return dict(data)


def make_bpe(
    vocabulary: Mapping[str, int],
    merges: Sequence[tuple[int, int]],
    *,
    whole_pieces: bool,
    specials: Specials,
    source: str,
    **settings: Any,
) -> RegexBpe:
    """The tokenizer of a vocabulary that is written in characters, by ranks alone where those say the same.

    An entry that is a special token is not an ordinary one as well: ordinary text is cut at it before anything is
    merged, so neither it nor a merge that needs it would be met.
    """
    own = {token: id for token, id in vocabulary.items() if token not in specials} if specials else vocabulary
    ranks = dict(zip(all_to_bytes(list(own), source), own.values(), strict=True))
    settings["drops_bytes"] = all(bytes([byte]) in ranks for byte in _NEEDED)
    if are_recovered(ranks, merges):
        try:
            return RegexBpe(ranks=ranks, specials=specials, **settings)
        except (InputError, SettingError) as error:
            raise FormatError(source, str(error)) from None
    ordinary = set(ranks.values())
    joined = {id: token for token, id in ranks.items()}
    kept = [
        (first, second)
        for first, second in merges
        if first in ordinary and second in ordinary and joined[first] + joined[second] in ranks
    ]
    try:
        made = RegexBpe(ranks=ranks, merges=kept, whole_pieces=whole_pieces, specials=specials, **settings)
    except (InputError, SettingError) as error:
        raise FormatError(source, str(error)) from None
    rule, whole_pieces = simplest_rule(ranks, kept, whole_pieces)
    if rule is not None:
        return made
    return RegexBpe(ranks=ranks, whole_pieces=whole_pieces, specials=specials, **settings)


def _merges_beside(source: Source) -> Source:
    """merges.txt beside vocab.json, gpt2_merges.txt beside gpt2_vocab.json, vocab.bpe beside encoder.json."""
    own = source.file_name
    for name in (own.replace("vocab", "merges").replace(".json", ".txt"), MERGES, "vocab.bpe"):
        found = None if name == own else source.beside(name)
        if found is not None:
            return found
    raise InputError(f"{source.name}: a vocabulary without its merges; put {MERGES} beside it")


def _pairs(source: Source) -> list[tuple[str, str]]:
    try:
        lines = source.content.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise FormatError(source.name, f"not UTF-8 text (byte {error.start})") from None
    pairs = []
    for number, line in enumerate(lines, start=1):
        line = line.removesuffix("\r")
        if not line or line.startswith("#version"):
            continue
        first, _, second = line.partition(" ")
        if not first or not second or " " in second:
            raise FormatError(source.name, f"line {number}: {line[:60]!r} is not two tokens with a space between")
        pairs.append((first, second))
    return pairs


def _pattern(source: Source) -> str:
    """GPT-2's, unless the folder says that another class reads these files."""
    config = source.beside(CONFIG)
    name = None if config is None else config.required_json().get("tokenizer_class")
    if name is not None and name not in _CLASSES:
        raise SettingError("tokenizer.pattern", None, f"a split pattern: {name} does not split text as GPT-2 does")
    return "gpt2"


def _specials(source: Source, vocabulary: Mapping[str, int]) -> dict[str, int]:
    found = {END: vocabulary[END]} if END in vocabulary else {}
    added = source.beside(ADDED)
    if added is not None:
        found |= read_vocabulary(added.required_json(), added.name)
    config = source.beside(CONFIG)
    if config is not None:
        by_id = member(config.required_json(), "added_tokens_decoder", dict, config.name, otherwise={})
        listed = [{**member(by_id, id, dict, config.name), "id": int(id)} for id in by_id if id.isdecimal()]
        found |= added_tokens(listed, config.name, normalizes=False).ids
    return found


def _with_ids(specials: Specials, vocabulary: Mapping[str, int]) -> dict[str, int | None]:
    """The special tokens asked for; one without an id has the id of the entry that it is."""
    if isinstance(specials, str):
        raise SettingError("tokenizer.specials", specials, "a list of special tokens, or {token = id}")
    wanted = specials if isinstance(specials, Mapping) else dict.fromkeys(specials)
    return {name: vocabulary.get(name) if id is None else id for name, id in wanted.items()}


def write_gpt2(tokenizer: RegexBpe) -> dict[str, bytes]:
    """`vocab.json` and `merges.txt`, and `added_tokens.json` where there are other special tokens."""
    expected = "tessera or huggingface: these files cannot hold "
    if pattern_name(tokenizer.pattern) != "gpt2":
        raise SettingError("format", "gpt2", expected + f"the split pattern {tokenizer.pattern!r}, only GPT-2's")
    if tokenizer.normalize is not None:
        raise SettingError("format", "gpt2", expected + f"that text is brought to {tokenizer.normalize} first")
    whole_pieces = tokenizer.whole_pieces
    if whole_pieces and simplest_rule(tokenizer.ranks, tokenizer.merges, False) != (None, True):
        raise SettingError("format", "gpt2", expected + "tokens that no merge makes and that are taken as whole pieces")
    vocabulary = {to_characters(token): id for token, id in tokenizer.ranks.items()}
    clash = sorted(vocabulary.keys() & tokenizer.specials.keys())
    if clash:
        raise SettingError("format", "gpt2", f"tessera: {clash[0]!r} is an ordinary and a special token")
    specials = dict(tokenizer.specials)
    if END in specials:
        vocabulary[END] = specials.pop(END)
    merges = "".join(f"{merge}\n" for merge in write_merges(tokenizer.ranks, tokenizer.merges))
    files = {VOCABULARY: _json(vocabulary), MERGES: f"#version: 0.2\n{merges}".encode()}
    return files | ({ADDED: _json(specials)} if specials else {})


def _json(data: Mapping[str, Any]) -> bytes:
    return (json.dumps(data, ensure_ascii=False) + "\n").encode()
