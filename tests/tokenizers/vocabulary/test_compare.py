"""Usage, scripts, segments and the comparison: counted by hand, and a page that holds nothing but text."""

import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.errors import InputError
from tessera.tokenizers.bins import BinTokenizer
from tessera.tokenizers.byte import ByteTokenizer
from tessera.tokenizers.char import CharTokenizer
from tessera.tokenizers.contract import Tokenizer
from tessera.tokenizers.regex_bpe import RegexBpe
from tessera.tokenizers.vocabulary.compare import compare, speed
from tessera.tokenizers.vocabulary.compare_html import comparison_html
from tessera.tokenizers.vocabulary.samples import LANGUAGE_SAMPLES, SAMPLES
from tessera.tokenizers.vocabulary.segments import N_COLORS, segments, shown_bytes, visible
from tessera.tokenizers.vocabulary.usage import LANGUAGES, Usage, count_usage, has_words, parts_by_group, usage_by_group
from tessera.tokenizers.vocabulary.writing import script_of
from tessera.tokenizers.word import WordTokenizer

SCRIPTS = {
    "English": "Latin",
    "German": "Latin",
    "Spanish": "Latin",
    "Russian": "Cyrillic",
    "Arabic": "Arabic",
    "Hindi": "Devanagari",
    "Chinese": "Chinese",
    "Japanese": "Japanese",
    "Korean": "Korean",
}
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@pytest.fixture(scope="module")
def bpe() -> RegexBpe:
    return RegexBpe.train(LANGUAGE_SAMPLES.values(), vocab_size=600)


def test_usage_counted_by_hand() -> None:
    usage = count_usage(ByteTokenizer(), ["to be", "é<|endoftext|>"])
    assert (usage.n_bytes, usage.n_characters, usage.n_words, usage.n_tokens) == (20, 19, 3, 8)
    assert usage.counts == {116: 1, 111: 1, 32: 1, 98: 1, 101: 1, 0xC3: 1, 0xA9: 1, 256: 1}
    assert usage.bytes_per_token == 20 / 8
    assert usage.tokens_per_word == 8 / 3
    assert usage.tokens_per_character == 8 / 19
    assert usage.share(256) == 1 / 8
    assert usage.share(None) == 0


def test_usages_add_up(bpe: RegexBpe) -> None:
    texts = list(SAMPLES.values())
    assert count_usage(bpe, texts[:4]) + count_usage(bpe, texts[4:]) == count_usage(bpe, texts)
    assert Usage().bytes_per_token == Usage().share(1) == 0


@pytest.mark.parametrize(("language", "script"), SCRIPTS.items())
def test_the_script_of_each_language(language: str, script: str) -> None:
    assert script_of(LANGUAGE_SAMPLES[language]) == script


@pytest.mark.parametrize(
    ("sample", "script"),
    [
        ("", None),
        ("12 + 30 = 42 🙂 — …", None),
        ("漢字", "Chinese"),
        ("漢字かな交じり", "Japanese"),
        ("ｱｲｳ", "Japanese"),
        ("ﬁ Å", "Latin"),
        ("Ελληνικά", "Greek"),
        ("עברית", "Hebrew"),
        ("ภาษาไทย", "Thai"),
        ("ქართული", "Georgian"),
        ("தமிழ்", "Tamil"),
        ("𐍈𐌰", "other"),
    ],
)
def test_the_script_of_a_text(sample: str, script: str | None) -> None:
    assert script_of(sample) == script


def test_only_some_scripts_have_words() -> None:
    assert has_words("Latin")
    assert not has_words("Thai")


def test_texts_are_grouped_by_suffix_or_by_lines_of_a_script() -> None:
    assert parts_by_group("a/b.py", "# жди\n") == [("Python", "# жди\n")]
    assert parts_by_group("a.PY.gz", "x = 1\n") == [("Python", "x = 1\n")]
    assert parts_by_group("a.txt", "1\n") == [("other", "1\n")]
    mixed = "one\n12\n\nжди\nиди\n3\nfour"
    assert parts_by_group("a.txt", mixed) == [
        ("Latin", "one\n12\n\n"),
        ("Cyrillic", "жди\nиди\n3\n"),
        ("Latin", "four"),
    ]
    assert {parts_by_group("x" + suffix, "é")[0][0] for suffix in LANGUAGES} == set(LANGUAGES.values())


@settings(max_examples=100, deadline=None)
@given(text=text)
def test_the_parts_are_the_text(text: str) -> None:
    assert "".join(part for _, part in parts_by_group("a.txt", text)) == text


def test_usage_by_group() -> None:
    groups = usage_by_group(ByteTokenizer(), [("a.txt", "one\nжди\n"), ("b.json", "{}"), ("c.txt", "two")])
    assert {name: usage.n_bytes for name, usage in groups.items()} == {"Latin": 7, "Cyrillic": 7, "JSON": 2}


def test_segments_are_whole_characters_and_name_their_tokens() -> None:
    found = segments(ByteTokenizer(), "aé🙂".encode())
    assert [segment.text for segment in found] == ["a", "é", "🙂"]
    assert [len(segment.pieces) for segment in found] == [1, 2, 4]
    assert [piece.id for segment in found for piece in segment.pieces] == list("aé🙂".encode())
    assert found[1].pieces[0].content == b"\xc3"


def test_bytes_that_make_no_character_are_spelled() -> None:
    found = segments(ByteTokenizer(), [0xFF, 0x61, 0xE2, 0x82])
    assert [segment.text for segment in found] == ["\\xff", "a", "\\xe2\\x82"]
    assert "".join(segment.text for segment in segments(ByteTokenizer(), [0xE2, 0x61])) == "\\xe2a"


@settings(max_examples=100, deadline=None)
@given(text=text)
def test_segments_are_the_text(bpe: RegexBpe, text: str) -> None:
    ids = bpe.encode(text, specials="none")
    found = segments(bpe, ids)
    assert "".join(segment.text for segment in found) == text
    pieces = [piece for segment in found for piece in segment.pieces]
    assert [piece.id for piece in pieces] == ids
    assert all(before.color != after.color for before, after in pairwise(pieces))
    assert all(0 <= piece.color < N_COLORS for piece in pieces)


def test_what_would_move_the_cursor_is_shown_as_a_sign() -> None:
    assert visible("a\n\t\r\x00\x1b[1m\x7f\x85\u202e\u2028") == "a⏎⇥␍␀␛[1m␡<U+0085><U+202E><U+2028>"
    assert visible("é 🙂 👩\u200d👧") == "é 🙂 👩\u200d👧"
    assert shown_bytes(b"a\xff\n") == "a\\xff⏎"


def test_the_comparison_counts_each_text(bpe: RegexBpe) -> None:
    comparison = compare(
        {"bpe": bpe, "byte": ByteTokenizer()}, [("a.txt", "one\n"), ("b.py", "x\n"), ("c.txt", "two\n")]
    )
    assert comparison.rows == [*SAMPLES, "given: Latin", "given: Python"]
    first, second = comparison.columns
    for row in SAMPLES:
        assert first.usages[row] == count_usage(bpe, [SAMPLES[row]])
        assert second.bytes_per_token(row) == 1.0
        assert comparison.best(row) == first.bytes_per_token(row) > 1
        assert comparison.excerpts[row] == SAMPLES[row]
    assert first.usages["given: Latin"] == count_usage(bpe, ["one\n", "two\n"])
    assert comparison.excerpts["given: Latin"] == "one\ntwo\n"
    assert first.lossy == second.lossy == set()
    assert first.bytes_per_second > 0


def test_what_loses_the_text_is_not_the_best() -> None:
    words = WordTokenizer.train(["one two"])
    comparison = compare({"word": words, "byte": ByteTokenizer()}, samples={"a": "One, two!", "b": "one two"})
    assert comparison.columns[0].lossy == {"a"}
    assert comparison.best("a") == 1.0
    assert comparison.best("b") == 3.5
    assert compare({"word": words}, samples={"a": "One"}).best("a") == 0.0


def test_what_cannot_be_encoded_has_no_figure() -> None:
    bins = BinTokenizer.train(["1 2 3 4 5"], n_bins=4)
    comparison = compare({"bins": bins, "byte": ByteTokenizer()}, samples={"words": "one two", "numbers": "1 2 3"})
    assert comparison.columns[0].bytes_per_token("words") is None
    assert comparison.columns[0].usages["numbers"].n_tokens == 3
    assert comparison.columns[0].refused == {"words"}
    assert comparison.best("words") == 1.0
    assert comparison_html(comparison).count("<section>") == 3


def test_a_comparison_needs_a_tokenizer() -> None:
    with pytest.raises(InputError, match="no tokenizer"):
        compare({})


def test_speed_is_of_a_finite_text() -> None:
    assert speed(ByteTokenizer(), ["some text", "another"], seconds=0.01) > 1000
    assert speed(ByteTokenizer(), [], seconds=0.01) == 0


class Reader(HTMLParser):
    """What a browser would make of the page: the tags, the text of the pieces, what is fetched."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.tips: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag != "meta":
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "onclick"):
                self.fetched.append(str(value))
            if name == "data-t":
                self.tips.append(str(value))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


HOSTILE = "<script>alert('x')</script> & \"quoted\" <b>\x1b]0;title\x07 \u202e"


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), CharTokenizer.train(["abc<"]), WordTokenizer.train(["a b"])])
def test_the_page_is_whole_and_nothing_in_it_is_run_or_fetched(tokenizer: Tokenizer) -> None:
    page = comparison_html(
        compare({HOSTILE: tokenizer, "bytes": ByteTokenizer()}, samples={HOSTILE: HOSTILE, "b": "é"})
    )
    read = Reader(page)
    assert read.open == []
    assert not {"script", "b!", "img", "link", "iframe"} & set(read.tags)
    assert read.fetched == []
    assert "url(" not in page
    assert "@import" not in page
    assert visible(HOSTILE) in read.text
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", page)


def test_the_page_shows_ids_and_bytes(bpe: RegexBpe) -> None:
    sample = "The night 🙂"
    page = comparison_html(compare({"bpe": bpe}, samples={"sample": sample}))
    read = Reader(page)
    for id in bpe.encode(sample):
        assert any(re.search(rf"^id {id}  ", tip, re.MULTILINE) for tip in read.tips)
    assert any("f0" in tip and "9f" in tip for tip in read.tips)
    assert "prefers-color-scheme: dark" in page
    assert f"{bpe.n_vocab:,}" in read.text
