"""Whole vocabularies that others made: the ids are those of tiktoken and of Hugging Face's tokenizers, on real text and
on random Unicode.
"""

import sysconfig
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenizers
from tessera.errors import InputError
from tessera.tokenizers import RegexBpe, import_tokenizer
from tessera.tokenizers.scan import PATTERNS

FILES = {
    "gpt2": "gpt2_vocab.json",
    "cl100k": "cl100k_base.tiktoken",
    "o200k": "o200k_base.tiktoken",
    "qwen3": "qwen3/tokenizer.json",
}
LIKELY = st.sampled_from(
    "aZ019 \t\n\r'sStTlLvVeErRdDmM.,!-_"
    "\u00a0\u017f\u212a\u01c5\u02b0\u0301\u0660\u0968\u0e51\u2028\u3000\u3042\u65e5\uff11"
    "\U0001f642\U0001f468\u200d\U0001f1e9\ufe0f\u0600\u05d0\u1c8a\U00010400\U0001e922\x00\x1c\x85\ufeff\ufffd"
)
RUNS = st.sampled_from(
    ["    ", "\n\n\n", " \n \n", "\r\n\r\n", "it's", "WE'LL", "I'M", "d'ya", "12345", "\u0665" * 4, "e\u0301" * 3]
)
ANYTHING = st.characters(exclude_categories=["Cs"])
strings = st.lists(LIKELY | ANYTHING | RUNS, max_size=24).map("".join)


@cache
def loaded(path: Path) -> tuple[RegexBpe, Callable[[str], list[int]]]:
    """Our tokenizer and the reference's encoder."""
    ours = import_tokenizer(path)
    assert isinstance(ours, RegexBpe)
    if path.parent.name == "qwen3":
        peer: Any = tokenizers.Tokenizer.from_file(str(path))
        return ours, lambda text: peer.encode(text, add_special_tokens=False).ids
    pattern = PATTERNS[ours.pattern]
    encoding = tiktoken.Encoding("peer", pat_str=pattern, mergeable_ranks=ours.ranks, special_tokens=ours.specials)
    return ours, encoding.encode_ordinary


@pytest.fixture(params=FILES)
def pair(request: pytest.FixtureRequest, shared_data: Path) -> tuple[RegexBpe, Callable[[str], list[int]]]:
    path = shared_data / "tokenizers" / FILES[request.param]
    if not path.exists():
        pytest.skip(f"{path.name} is not in the shared data")
    return loaded(path)


def real_texts(folder: Path) -> Iterator[str]:
    for path in sorted([*folder.glob("text/*"), *folder.glob("instruct/*")]):
        yield path.read_text(encoding="utf-8")


def check(pair: tuple[RegexBpe, Callable[[str], list[int]]], text: str) -> None:
    ours, theirs = pair
    ids = ours.encode_array(text, specials="none").tolist()
    assert ids == theirs(text)
    if ours.normalize is None:
        assert ours.decode(ids) == text


def test_real_text(pair: tuple[RegexBpe, Callable[[str], list[int]]], shared_data: Path) -> None:
    """A piece of each file; the slow test takes them whole."""
    for text in real_texts(shared_data):
        check(pair, text[:60_000])


@pytest.mark.slow
def test_all_real_text(pair: tuple[RegexBpe, Callable[[str], list[int]]], shared_data: Path) -> None:
    library = Path(sysconfig.get_paths()["stdlib"])
    for text in real_texts(shared_data):
        check(pair, text)
    for path in sorted(library.rglob("*.py")):
        if "site-packages" not in path.parts:
            check(pair, path.read_bytes().decode("utf-8", "replace"))


@settings(max_examples=300, deadline=None)
@given(text=strings)
def test_random_unicode(shared_data: Path, text: str) -> None:
    for file in FILES.values():
        if (shared_data / "tokenizers" / file).exists():
            check(loaded(shared_data / "tokenizers" / file), text)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None)
@given(texts=st.lists(strings, min_size=20, max_size=20))
def test_200_000_random_strings(shared_data: Path, texts: list[str]) -> None:
    for file in FILES.values():
        if (shared_data / "tokenizers" / file).exists():
            for text in texts:
                check(loaded(shared_data / "tokenizers" / file), text)


@pytest.mark.slow
def test_every_character(pair: tuple[RegexBpe, Callable[[str], list[int]]]) -> None:
    """Each code point between letters, digits, spaces and signs; also what the reference's Unicode does not know."""
    for start in range(0, 0x110000, 256):
        found = [chr(code) for code in range(start, start + 256) if not 0xD800 <= code < 0xE000]
        check(pair, "".join(f"a{c}a {c} 1{c}1 {c}{c}\n'{c}.{c}  {c}A{c}b\n" for c in found))


def test_a_surrogate_is_an_error(pair: tuple[RegexBpe, Callable[[str], list[int]]]) -> None:
    with pytest.raises(InputError, match="character 1 of the text is a lone surrogate"):
        pair[0].encode("a\ud83d")
