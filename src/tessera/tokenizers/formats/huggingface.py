"""Hugging Face's tokenizer.json (and tokenizer_config.json), both ways, for tokens made of bytes.

What changes ids is read, or refused with a reason. What does not change the ids of ordinary text (the post-processor,
which adds tokens such as a beginning; the decoder; the names of tokens and the chat template in tokenizer_config.json)
is kept and written again, and not applied. Truncation and padding are not read.

Files of the SentencePiece family (Unigram, or byte-pair encoding of characters) go to `huggingface_pieces`.
"""

import json
import reprlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from tessera.errors import InputError, SettingError
from tessera.tokenizers.contract import Tokenizer
from tessera.tokenizers.formats.added import Added, added_tokens, check_ids
from tessera.tokenizers.formats.byte_level import to_characters
from tessera.tokenizers.formats.gpt2 import CONFIG, make_bpe, read_vocabulary
from tessera.tokenizers.formats.merges import read_merges, write_merges
from tessera.tokenizers.formats.pretokenizers import has_byte_level, read_pattern, steps, write_pattern
from tessera.tokenizers.formats.source import Source, is_url, member
from tessera.tokenizers.regex_bpe import RegexBpe
from tessera.tokenizers.specials import END

FILE = "tokenizer.json"
# What is taken from tokenizer_config.json: names of tokens, and what chat programs need.
_KEPT = (
    "bos_token",
    "eos_token",
    "unk_token",
    "pad_token",
    "additional_special_tokens",
    "chat_template",
    "model_max_length",
)
_POST_PROCESSOR = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
_DECODER = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}


def read_huggingface(source: Source) -> Tokenizer:
    """The tokenizer that gives the ids of Hugging Face's `encode(text, add_special_tokens=False)`."""
    data = source.required_json()
    model = member(data, "model", dict, source.name)
    kind = model.get("type", "BPE" if "merges" in model else None)
    if kind == "BPE" and has_byte_level(data, source.name):
        return _read_byte_level(source, data, model)
    if kind not in ("BPE", "Unigram"):
        raise InputError(f"{source.name}: a model of type {reprlib.repr(kind)}; Tessera reads BPE and Unigram")
    from tessera.tokenizers.sentencepiece.huggingface_pieces import from_huggingface_pieces

    return from_huggingface_pieces(data, source.name)


def _read_byte_level(source: Source, data: Mapping[str, Any], model: Mapping[str, Any]) -> RegexBpe:
    name = source.name
    for setting in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(setting):
            raise InputError(
                f"{name}: {setting} = {reprlib.repr(model[setting])}, which Tessera does not do with bytes"
            )
    normalize = _read_normalizer(data.get("normalizer"), name)
    vocabulary = read_vocabulary(member(model, "vocab", dict, name), name)
    listed = member(data, "added_tokens", list, name, otherwise=[])
    added = added_tokens(listed, name, normalizes=normalize is not None)
    check_ids(added, vocabulary, name)
    pairs = [_pair(merge, name) for merge in member(model, "merges", list, name) if not _is_version(merge)]
    return make_bpe(
        vocabulary,
        read_merges(pairs, vocabulary, name),
        whole_pieces=member(model, "ignore_merges", bool, name, otherwise=False),
        pattern=read_pattern(data.get("pre_tokenizer"), name),
        specials=added.ids,
        normalize=normalize,
        huggingface=_extras(source, data, added),
        source=name,
    )


def _read_normalizer(data: Any, source: str) -> str | None:
    """One Unicode normal form. Of several, the last says whether characters are composed, and one K is enough."""
    forms = [reprlib.repr(step.get("type")).strip("'") for step in steps(data, source, inside="normalizers")]
    for form in forms:
        if form not in ("NFC", "NFD", "NFKC", "NFKD"):
            raise InputError(f"{source}: a normalizer of type {form!r}; with bytes Tessera has NFC, NFD, NFKC and NFKD")
    if not forms:
        return None
    return f"NF{'K' if any('K' in form for form in forms) else ''}{forms[-1][-1]}"


def _is_version(merge: Any) -> bool:
    return isinstance(merge, str) and merge.startswith("#version")


def _pair(merge: Any, source: str) -> tuple[str, str]:
    """A merge is "a b" or ["a", "b"]."""
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if isinstance(parts, list) and len(parts) == 2 and all(isinstance(part, str) and part for part in parts):
        return parts[0], parts[1]
    raise InputError(f"{source}: the merge {reprlib.repr(merge)} is not two tokens")


def _extras(source: Source, data: Mapping[str, Any], added: Added) -> dict[str, Any]:
    """What `write_huggingface` would not write by itself."""
    extras: dict[str, Any] = {"ordinary": added.ordinary}
    for part in ("post_processor", "decoder"):
        found = data.get(part)
        if isinstance(found, dict) and found.get("type") != "ByteLevel":
            extras[part] = found
    beside = None if is_url(source.name) else source.beside(CONFIG)
    if beside is not None:
        config, usual = beside.required_json(), _usual_config(added.ids)
        extras["config"] = {key: config[key] for key in _KEPT if key in config and config[key] != usual.get(key)}
    return {key: value for key, value in extras.items() if value}


def _usual_config(specials: Mapping[str, int]) -> dict[str, Any]:
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    return config | ({"eos_token": END} if END in specials else {})


def write_huggingface(tokenizer: RegexBpe) -> dict[str, bytes]:
    """tokenizer.json and tokenizer_config.json, the folder that transformers' AutoTokenizer loads."""
    vocabulary = {to_characters(token): id for token, id in tokenizer.ranks.items()}
    clash = sorted(vocabulary.keys() & tokenizer.specials.keys())
    if clash:
        raise SettingError("format", "huggingface", f"tessera: {clash[0]!r} is an ordinary and a special token")
    specials = sorted(tokenizer.specials.items(), key=lambda item: item[1])
    if [id for _, id in specials] != list(range(len(vocabulary), len(vocabulary) + len(specials))):
        vocabulary.update(specials)  # or the library would give them other ids
    extras = tokenizer.huggingface
    normalize = tokenizer.normalize
    data = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(name, id, name not in extras.get("ordinary", ())) for name, id in specials],
        "normalizer": None if normalize is None else {"type": normalize},
        "pre_tokenizer": write_pattern(tokenizer.pattern),
        "post_processor": extras.get("post_processor", _POST_PROCESSOR),
        "decoder": extras.get("decoder", _DECODER),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": tokenizer.whole_pieces,
            "vocab": dict(sorted(vocabulary.items(), key=lambda item: item[1])),
            "merges": write_merges(tokenizer.ranks, tokenizer.merges),
        },
    }
    return write_folder(data, tokenizer.specials, extras.get("config", {}))


def write_folder(
    data: Mapping[str, Any], specials: Mapping[str, int], config: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, bytes]:
    """The two files, of which the second is what transformers needs to load the first, and `config`."""
    return {FILE: _json(data), CONFIG: _json({**_usual_config(specials), **config})}


def _added(name: str, id: int, special: bool) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special}
    return {"id": id, "content": name, **flags}


def _json(data: Mapping[str, Any]) -> bytes:
    return (json.dumps(data, ensure_ascii=False, indent=2) + "\n").encode()
