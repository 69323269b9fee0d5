"""Every compiled scanner against the `regex` package, which is what the patterns mean."""

import random
import sysconfig
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tokenizers.test_unicode_classes import code_points_that_differ

from tessera.native.memory import address_of
from tessera.tokenizers.compiled import scanners
from tessera.tokenizers.compiled.scanners import safe_cut, scan, settled, unicode_table_address
from tessera.tokenizers.scan import PATTERNS, RULES
from tessera.tokenizers.unicode_classes import code_point_classes

NAMES = list(PATTERNS)
COMPILED = {name: regex.compile(pattern) for name, pattern in PATTERNS.items()}

# What the rules tell apart, and what stands beside it in the same lead byte.
ALPHABET = [
    *"aabBsStTdDmMlLvVeErRkK''''    \t\n\n\r\x0b\x1c\x1f\x85\xa0.!/-#012345",
    *"\u017fKéÉßǅʰªºÀ\u00d7中文가あ、Ωωжж٣५²Ⅷ\u0301\u0345\u0903😀\u2019\u200d\ufe0f\u3000\u2028\u2009\U0001d400\U0001d41a\U0001d7d8\u0378\U000e0100",
]
HARD = [
    "",
    "a",
    " ",
    "'",
    "'s",
    "It'S 'll 'LL 'Re'vE'D''s ' s 's's I's's'sx I'lLx '\u017f x'\u017fx '\u017f",
    " 's\t's\n's\xa0's 's\u0301 x's\u0301y",
    "a  b   c\td\n\ne \n f\n \ng\r\n\r\n  h \t\n \t i  ",
    "\n \n  \n   x\n\n\n",
    "!\n\n x !\n/\n//y ! \n?\n  \n",
    "(a ((a (!a !\u0301a !!\u0301a \u0301A \u0301Ab 1\u0301a \u0301",
    "HelloWorld XMLHttp ABCdef ABC中文ABC中文ABCd 中Ab a中Ab 中ABC\u0301 ǅabc ʰABC aʰB",
    "1234567 12٣٤5 ²³¹ 1a2b3 1 2  3   4Ⅷ5",
    "\x1c\x1d\x1e\x1f\x85\x85a\xa0b\u3000中\u2028\u2029 \u200b\ufeff x",
    "👩‍👩‍👧 ☕️ e\u0301e\u0301 Z\u0351\u0352algo",
    "déjà-vu l\u2019été Привет, мир! 你好\uff0c世界。こんにちは 안녕하세요",
    "x" * 200 + " " * 200 + "\n" * 70 + "9" * 200 + "!" * 200 + "\u0301" * 99 + "X" * 200 + "'s" * 99,
    " ".join("x" * n for n in range(70)),
    "".join(" " * n + "x\n" for n in range(70)),
    "".join(f"x\n{' ' * n}\n{' ' * (61 - n)}x x" for n in range(60)),
]


def by_regex(name: str, text: str) -> list[int]:
    """The ends of the pieces in bytes."""
    pieces = COMPILED[name].findall(text)
    assert "".join(pieces) == text
    return np.cumsum([len(piece.encode("utf-8", "surrogatepass")) for piece in pieces], dtype=np.int64).tolist()


def by_scanner(name: str, text: str, room: int | None = None) -> list[int]:
    """The same by `scan`, with `room` for so many ends a call; what lies beyond the text must not matter."""
    data = text.encode()
    buffer = np.frombuffer(data + random.Random(len(data)).randbytes(64), np.uint8)
    ends = np.zeros((room or len(data) + 64) + 1, np.int64)
    ends[-1] = -1
    table, found, at = unicode_table_address(), [], 0
    while at < len(data):
        n = scan(RULES[name], table, address_of(buffer), at, len(data), address_of(ends), len(ends) - 1)
        found += ends[:n].tolist()
        at = found[-1]
    assert ends[-1] == -1, "written beyond the room"
    return found


def known(text: str) -> str:
    """`text` without the characters that the installed `regex` has from another version of Unicode."""
    differ = code_points_that_differ()
    return "".join(char for char in text if ord(char) not in differ) if differ else text


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", HARD)
def test_hard_strings(name: str, text: str) -> None:
    assert by_scanner(name, text) == by_regex(name, text)
    assert by_scanner(name, text + " tail" * 20) == by_regex(name, text + " tail" * 20)


# What a block of 64 bytes could misjudge if it ended within.
SNIPPETS = [
    *[
        "x'll",
        "X'Sy",
        "'re",
        "x's'll",
        "x'\u017f",
        "1234567",
        "1x23",
        "\U0001f600x",
        "x\U0001d400\U0001d41ay",
        "12x345",
        "12\u0663",
        "  x",
        " \n  \n  x",
        "!\n\n/\nx",
        "\t!a",
        "!!a",
    ],
    *["a  1", "aBc", "\u4e2dAb", "\u4e2dAB", "e\u0301", "!\u0301a", "\u3000 x", "\xe9\u4e2d\U0001f600\U0001f600x"],
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("snippet", SNIPPETS)
def test_at_every_place_of_a_block(name: str, snippet: str) -> None:
    for place in range(70):
        for before in ("ab " * 24, "x" * 72, "!" * 72):
            text = before[:place] + snippet
            assert by_scanner(name, text) == by_regex(name, text)
            assert by_scanner(name, text + " tail" * 14) == by_regex(name, text + " tail" * 14)


@pytest.mark.parametrize("name", NAMES)
@given(st.text(st.sampled_from(ALPHABET), max_size=200), st.sampled_from([None, 1, 63, 64, 65, 100]))
@settings(max_examples=400, deadline=None)
def test_strings_that_hit_the_rules(name: str, text: str, room: int | None) -> None:
    assert by_scanner(name, known(text), room) == by_regex(name, known(text))


@pytest.mark.parametrize("name", NAMES)
@given(st.data())
@settings(max_examples=200, deadline=None)
def test_runs_of_few_kinds(name: str, data: st.DataObject) -> None:
    few = data.draw(st.lists(st.sampled_from(ALPHABET), min_size=2, max_size=6))
    runs = data.draw(st.lists(st.tuples(st.sampled_from(few), st.sampled_from([1, 1, 1, 2, 3, 62, 63, 64, 65, 130]))))
    text = known("".join(char * n for char, n in runs))
    assert by_scanner(name, text) == by_regex(name, text)


@pytest.mark.parametrize("name", NAMES)
@given(st.text(max_size=100))
@settings(max_examples=200, deadline=None)
def test_all_planes(name: str, text: str) -> None:
    assert by_scanner(name, known(text)) == by_regex(name, known(text))


CONTEXTS = ["a{}b 1{}2 '{}x\n{}  {}", "x'{} A{}A '{}s {}{}!{}\n", " 'l{}q '{}l{}. {}1\t{}a"]


def in_context(context: str, code_points: Iterator[int]) -> str:
    return "".join(context.replace("{}", char) for char in known("".join(map(chr, code_points))))


@pytest.mark.parametrize("name", NAMES)
def test_where_the_class_changes(name: str) -> None:
    edges = np.flatnonzero(np.diff(code_point_classes())) + 1
    near = sorted(set(edges.tolist()) | set((edges - 1).tolist()) - set(range(0xD800, 0xE000)))
    text = in_context(CONTEXTS[0], (code for code in near if not 0xD800 <= code < 0xE000))
    assert by_scanner(name, text) == by_regex(name, text)


@pytest.mark.slow
@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("name", NAMES)
def test_every_code_point(name: str, context: str) -> None:
    for plane in range(0, 0x110000, 0x10000):
        text = in_context(context, (code for code in range(plane, plane + 0x10000) if not 0xD800 <= code < 0xE000))
        assert by_scanner(name, text) == by_regex(name, text)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_many_random_strings(name: str) -> None:
    rng = random.Random(7)
    for _ in range(20_000):
        few = rng.sample(ALPHABET, rng.randrange(2, 14)) if rng.random() < 0.7 else ALPHABET
        text = known("".join(rng.choices(few, k=rng.randrange(1, 300))))
        assert by_scanner(name, text) == by_regex(name, text), repr(text)


def python_sources(most: int) -> Iterator[str]:
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py"))[:most]:
        if "site-packages" not in path.parts:
            yield path.read_bytes().decode(errors="replace")


@pytest.mark.parametrize("name", NAMES)
def test_python_sources(name: str) -> None:
    for text in python_sources(40):
        assert by_scanner(name, text) == by_regex(name, text)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_all_of_the_standard_library(name: str) -> None:
    for text in python_sources(100_000):
        assert by_scanner(name, known(text)) == by_regex(name, known(text))


@pytest.mark.parametrize("file", ["text/wikitext2-valid.txt", "instruct/alpaca_zh_demo.json", "text/c4_demo.jsonl"])
@pytest.mark.parametrize("name", NAMES)
def test_real_text(name: str, file: str, shared_data: Path) -> None:
    text = (shared_data / file).read_bytes().decode()
    if "\\u" in text:
        text = text.encode("ascii").decode("unicode_escape").encode("utf-16", "surrogatepass").decode("utf-16")
    assert by_scanner(name, text) == by_regex(name, text)


def in_chunks(name: str, text: str, size: int) -> list[int]:
    """The ends, found in a window of `size` bytes that grows only while no piece in it is settled."""
    data = text.encode()
    buffer = np.frombuffer(data + bytes(64), np.uint8)
    ends = np.zeros(len(data) + 64, np.int64)
    table, address, room, found, at, width = unicode_table_address(), address_of(buffer), len(ends), [], 0, size
    while at < len(data):
        stop = min(at + width, len(data))
        while stop < len(data) and data[stop] & 0xC0 == 0x80:
            stop += 1
        n = scan(RULES[name], table, address, at, stop, address_of(ends), room)
        if stop < len(data):
            n = settled(table, address, at, address_of(ends), n, stop)
        found += ends[:n].tolist()
        width = size if n else 2 * width
        at = found[-1] if found else 0
    return found


@pytest.mark.parametrize("name", NAMES)
@given(st.text(st.sampled_from(ALPHABET), max_size=200), st.integers(1, 90))
@settings(max_examples=400, deadline=None)
def test_chunks_give_the_pieces_of_the_whole(name: str, text: str, size: int) -> None:
    assert in_chunks(name, text, size) == by_scanner(name, text)


LOOK_FAR = [
    "b \u4e2dAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAa \u4e2dAAAAAAAAAAAAAAAAAAAA A\u0301BBBBBBBBBBBBBBBBBBBBB",
    "b\n                              \n x!\n\n\n\n\n\n\n/\n\n\n\n\n\n\n/ y",
    "b  \n        1  \n        x  \t\t\t\t\t\t\t\t\t\t2",
    "x'llx'LLx're x'\u017f y'\u017f z's's's'll'll'v'e'r",
    "1234567890123456789012345 !!!!!!!!!!!!!!!!!!!!!!!!a",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", LOOK_FAR)
def test_chunks_of_any_size_where_a_pattern_looks_far(name: str, text: str) -> None:
    whole = by_regex(name, text)
    for size in range(1, len(text.encode()) + 1):
        assert in_chunks(name, text, size) == whole


@pytest.mark.parametrize("name", NAMES)
def test_most_of_a_chunk_is_settled(name: str) -> None:
    text = ("The quick brown fox's 12 jumps, 你好世界。\n    over Ünlü ДОМ it!\n" * 100).encode()
    buffer, ends = np.frombuffer(text + bytes(64), np.uint8), np.zeros(len(text) + 64, np.int64)
    for stop in range(400, 500):
        if text[stop] & 0xC0 != 0x80:
            arguments = (unicode_table_address(), address_of(buffer))
            n = scan(RULES[name], *arguments, 0, stop, address_of(ends), len(ends))
            k = settled(*arguments, 0, address_of(ends), n, stop)
            assert ends[k - 1] > stop - 40


@pytest.mark.parametrize("name", NAMES)
@given(st.text(st.sampled_from([*"aZ    '1\n", "é", "中"]), max_size=100), st.integers(0, 50))
@settings(deadline=None)
def test_a_cut_between_letters_changes_no_piece(name: str, text: str, at: int) -> None:
    data = text.encode()
    buffer = np.frombuffer(data + bytes(64), np.uint8)
    cut = safe_cut(address_of(buffer), min(at, len(data)), len(data))
    places = regex.compile(rb"(?<=[A-Za-z]) (?=[A-Za-z])").finditer(data)
    assert cut == next((match.start() for match in places if match.start() > at), len(data))
    left, right = data[:cut].decode(), data[cut:].decode()
    assert by_scanner(name, left) + [cut + end for end in by_scanner(name, right)] == by_scanner(name, text)


def test_threads_that_come_first_get_one_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address of an array that was dropped would be read after it was freed."""
    scanners._unicode_table.cache_clear()
    classes = scanners.code_point_classes

    def slowly(version: str) -> np.ndarray:
        time.sleep(0.05)
        return classes(version)

    monkeypatch.setattr(scanners, "code_point_classes", slowly)
    with ThreadPoolExecutor(4) as pool:
        addresses = set(pool.map(lambda _: unicode_table_address(), range(8)))
    assert addresses == {unicode_table_address()}
