"""What becomes of a text before its pieces are looked for: a few steps, as SentencePiece and Hugging Face name them.

The pieces of this family begin at spaces: `▁the` (U+2581 for the space) is the word with the space before it, and a
space put before the whole text (the dummy prefix) makes the first word like all others. Here a space is kept as a
space; U+2581 is only what files write for it. Where `marks_are_spaces`, a U+2581 in a text is a space as well, as it
is for SentencePiece; otherwise it is a character like any other and comes back unchanged.
"""

import base64
import binascii
import re
import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self

import regex

from tessera.errors import InputError, SettingError
from tessera.tokenizers.sentencepiece.charsmap import Charsmap
from tessera.tokenizers.specials import check_text

MARK = "\u2581"
FORMS = ("NFC", "NFD", "NFKC", "NFKD")
LEADING, TRAILING = r"\A +", f"[ {MARK}]+(?![\\s\\S])"
PATTERNS = (" {2,}", " +", r"\s+", LEADING, TRAILING)  # the same for every engine of regular expressions
SCHEMES = ("always", "first", "never")

Step = Callable[[str], str]


def sentencepiece_step(
    keep: Collection[str],
    *,
    charsmap: str = "",
    remove_extra_whitespaces: bool = False,
    add_dummy_prefix: bool = True,
    escape_whitespaces: bool = True,
) -> Step:
    """SentencePiece's whole normalizer: the table of characters, then single spaces only, then the space in front."""
    table = Charsmap(_from_base64(charsmap), keep=keep)
    if remove_extra_whitespaces and table.widens_spaces:
        raise InputError("the table of characters makes several spaces of one character, and they are to be removed")
    trailing = " " + MARK if escape_whitespaces else " "

    def step(text: str) -> str:
        normalized = table.by_longest_key(text)
        if remove_extra_whitespaces:
            normalized = re.sub(" +", " ", normalized).lstrip(" ").rstrip(trailing)
            return " " + normalized if add_dummy_prefix and normalized else normalized
        return " " + normalized if add_dummy_prefix and text else normalized

    return step


def _from_base64(content: str) -> bytes:
    try:
        return base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError):
        raise InputError("the table of characters is not base64") from None


def _charsmap_step(keep: Collection[str], *, charsmap: str) -> Step:
    return Charsmap(_from_base64(charsmap), keep=keep).by_graphemes


def _unicode_step(keep: Collection[str], *, form: str) -> Step:
    if form not in FORMS:
        raise SettingError("tokenizer.normalizer.form", form, ", ".join(FORMS))
    return lambda text: unicodedata.normalize(form, text)  # type: ignore[arg-type]


def _prepend_step(keep: Collection[str], *, text: str) -> Step:
    return lambda rest: text + rest if rest else rest


def _replace_step(keep: Collection[str], *, old: str, new: str) -> Step:
    return lambda text: text.replace(old, new)


def _replace_pattern_step(keep: Collection[str], *, pattern: str, new: str) -> Step:
    if pattern not in PATTERNS:
        raise SettingError("tokenizer.normalizer.pattern", pattern, ", ".join(map(repr, PATTERNS)))
    compiled = regex.compile(pattern)
    return lambda text: compiled.sub(lambda found: new, text)


def _strip_step(keep: Collection[str], *, left: bool, right: bool) -> Step:
    begin, end = regex.compile(r"\A\p{White_Space}+"), regex.compile(r"\p{White_Space}+\Z")

    def step(text: str) -> str:
        text = begin.sub("", text) if left else text
        return end.sub("", text) if right else text

    return step


STEPS: dict[str, Callable[..., Step]] = {
    "sentencepiece": sentencepiece_step,
    "charsmap": _charsmap_step,
    "unicode": _unicode_step,
    "prepend": _prepend_step,
    "replace": _replace_step,
    "replace_pattern": _replace_pattern_step,
    "strip": _strip_step,
}


@dataclass(frozen=True)
class Normalizer:
    """The steps in their order, each a name of `STEPS` and its settings; then how the text is cut for the model.

    words: whether it is cut at white space, which is lost, first.
    metaspace: Hugging Face's: a space before the text unless it begins with one: "always", "first" (not where the text
        goes on after a special token) or "never".
    split: whether it is cut before every space.
    """

    steps: Sequence[tuple[str, Mapping[str, Any]]] = ()
    words: bool = False
    metaspace: str = "never"
    split: bool = False
    marks_are_spaces: bool = True
    keep: Sequence[str] = ()
    _functions: list[Step] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.metaspace not in SCHEMES:
            raise SettingError("tokenizer.normalizer.metaspace", self.metaspace, ", ".join(SCHEMES))
        for name, given in self.steps:
            if name not in STEPS:
                raise SettingError.unknown("tokenizer.normalizer.steps", name, STEPS)
            for value in filter(lambda value: isinstance(value, str), given.values()):
                check_text(value)
        object.__setattr__(self, "_functions", [STEPS[name](self.keep, **given) for name, given in self.steps])

    @classmethod
    def plain(cls, *, dummy_prefix: bool = True) -> Self:
        """Every text comes back as it was: nothing is replaced but, with `dummy_prefix`, a space is put in front."""
        return cls(steps=[("sentencepiece", {"add_dummy_prefix": dummy_prefix})], marks_are_spaces=False)

    @property
    def adds_prefix(self) -> str:
        """Whether a space is put before a text, "always" or only where it is the "first" of several parts."""
        for name, given in self.steps:
            if name == "prepend" and given["text"] in (" ", MARK):
                return "always"
            if name == "sentencepiece" and given.get("add_dummy_prefix", True):
                return "always"
        return self.metaspace

    @property
    def only_adds_prefix(self) -> bool:
        """Whether every text stays as it is, but for the space in front."""
        if [name for name, _ in self.steps] != ["sentencepiece"] or self.words or self.split:
            return False
        given = self.steps[0][1]
        return self.metaspace == "never" and not (given.get("charsmap") or given.get("remove_extra_whitespaces"))

    def parts(self, text: str, *, first: bool = True) -> list[str]:
        """The normalized text, cut into the parts that the model sees one at a time."""
        for step in self._functions:
            text = step(text)
        if not self.marks_are_spaces:
            return [text] if text else []
        whole = regex.findall(r"\P{White_Space}+", text) if self.words else [text]
        starts = bool(whole) and text.startswith(whole[0])
        parts: list[str] = []
        for place, part in enumerate(whole):
            part = part.replace(MARK, " ")
            scheme = self.metaspace
            if (scheme == "always" or (scheme == "first" and first and starts and not place)) and part[:1] != " ":
                part = " " + part if part else part
            parts += re.findall(" [^ ]*|[^ ]+", part) if self.split else [part]
        return [part for part in parts if part]

    def settings(self) -> dict[str, Any]:
        """What `restore` makes the normalizer from again, as JSON can hold it."""
        found = {each.name: getattr(self, each.name) for each in fields(self) if each.init}
        return found | {"steps": [[name, dict(given)] for name, given in self.steps], "keep": list(self.keep)}

    @classmethod
    def restore(cls, settings: Mapping[str, Any]) -> Self:
        steps = [(name, given) for name, given in settings["steps"]]
        return cls(**{**settings, "steps": steps})
