"""The split patterns as Hugging Face's library (Oniguruma) understands them, against `regex`."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.errors import InputError, SettingError
from tessera.tokenizers.formats.expressions import from_oniguruma, pattern_name, require_portable, to_oniguruma
from tessera.tokenizers.scan import PATTERNS, SPELLINGS, compile_pattern, split_pieces
from tokenizers import Regex, pre_tokenizers

# Code points that are newer than Python's own table are letters to one library and unknown to the other.
ASSIGNED = st.characters(exclude_categories=["Cs", "Cn"])
SOME = "aZ sStTlLvVrReEmMdD'' \t\n\r\x0b\x1c\x85\u00a0 12½٣५éßﬆ日\u0301\u2019\u017f😀.,;/-_"
TEXTS = st.text(st.sampled_from(SOME) | ASSIGNED, max_size=40)
OWN = [
    r"\p{L}+|[^\p{L}]",
    r" ?[a-z]{2,3}|\p{Nd}{1,3}|.",
    r"[^\S\n]+",
    r"(a|b)+",
    r"\d(?=\d\d)|-*+",
    r"\p{Han}|\p{^L}+",
]


@pytest.mark.parametrize("pattern", [*PATTERNS, *SPELLINGS, *OWN[:2], OWN[2], OWN[3]])
def test_an_exported_pattern_splits_as_ours(pattern: str) -> None:
    theirs = pre_tokenizers.Split(Regex(to_oniguruma(pattern)), "isolated")
    ours = compile_pattern(pattern)

    @settings(max_examples=300, deadline=None)
    @given(TEXTS)
    def same(text: str) -> None:
        assert [piece for piece, _ in theirs.pre_tokenize_str(text)] == list(split_pieces(ours, text))

    same()


def test_a_pattern_comes_back_from_its_export() -> None:
    for pattern in (*PATTERNS, *OWN[:4]):
        assert from_oniguruma(to_oniguruma(pattern), "x") == pattern
    for spelling, name in SPELLINGS.items():
        assert from_oniguruma(spelling, "x") == pattern_name(spelling) == name


@pytest.mark.parametrize(
    "expression",
    [
        PATTERNS["gpt4"],  # there \p{N}{1,3}+ is any number of digits
        r"\p{N}{1,3}+",
        r"a{2}?",
        r"\s+$",
        r"^a",
        r"\w+",
        r"\bx",
        r"(?i:st)",
        r"[a&&b]",
        r"[a--b]",
        r"[[:alpha:]]",
        r"(?<=a)b",
        r"(a)\1",
        r"\h",
        r"a{,3}",
        r"\p{Emoji}",
        "a\n",
    ],
)
def test_what_may_mean_something_else_is_refused(expression: str) -> None:
    with pytest.raises(InputError, match=r"x: the split pattern .* may mean something else here"):
        from_oniguruma(expression, "x")
    if expression not in PATTERNS.values():
        with pytest.raises(SettingError, match=r"expected tessera: .* may mean something else"):
            require_portable(expression, "huggingface")


@pytest.mark.slow
@pytest.mark.parametrize("expression", [r"\s", r"\d", r"\p{L}", r"\p{N}", r"\p{M}", r"\p{Lu}", r"\p{P}", r"\p{S}", "."])
def test_classes_hold_the_same_characters(expression: str) -> None:
    theirs = pre_tokenizers.Split(Regex(expression), "removed")
    ours = compile_pattern(expression)
    assigned = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) not in ("Cs", "Cn")]
    assert [c for c in assigned if bool(ours.match(c)) == bool(theirs.pre_tokenize_str(c))] == []
