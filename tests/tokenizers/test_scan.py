import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from tessera.errors import SettingError
from tessera.tokenizers.scan import compile_pattern, split_pieces


@pytest.mark.parametrize(
    ("name", "text", "pieces"),
    [
        ("gpt2", "I'll go 12345 times!!\n\n  x", ["I", "'ll", " go", " 12345", " times", "!!", "\n\n ", " x"]),
        ("gpt4", "I'LL go 12345 times!!\n\n  x", ["I", "'LL", " go", " ", "123", "45", " times", "!!\n\n", " ", " x"]),
        ("gpt4", "ends \n ", ["ends", " \n "]),
        ("gpt4", "a \n b", ["a", " \n", " b"]),
        ("gpt2", "ends \n ", ["ends", " \n "]),
        (r"\s+|\S+", "one  two", ["one", "  ", "two"]),
    ],
)
def test_pieces(name: str, text: str, pieces: list[str]) -> None:
    assert split_pieces(compile_pattern(name), text) == pieces


@pytest.mark.parametrize("pattern", ["b", "a*", "(a)(b)?", r"(?<=a)b|a\Kb", "(?=a)", "x|", r"[^ab]+", r"(?m)^.|$"])
@given(text=st.text("abx \n", max_size=20))
def test_no_pattern_loses_text(pattern: str, text: str) -> None:
    pieces = split_pieces(compile_pattern(pattern), text)
    assert "".join(pieces) == text
    assert "" not in pieces


def test_groups_do_not_change_the_pieces() -> None:
    assert split_pieces(regex.compile("(a)(b)|c"), "abcab") == ["ab", "c", "ab"]


@pytest.mark.parametrize("pattern", ["(", "[", "", "(?r)a"])
def test_a_wrong_pattern_is_an_error(pattern: str) -> None:
    with pytest.raises(SettingError, match=r"tokenizer\.pattern = .*: expected gpt2, gpt4 or a regular expression"):
        compile_pattern(pattern)
