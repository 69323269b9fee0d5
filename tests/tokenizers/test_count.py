import logging
import random
import sysconfig
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tessera.errors import DamagedError, InputError, SettingError, StorageError
from tessera.tokenizers import count
from tessera.tokenizers.compiled.word_table import WordTable
from tessera.tokenizers.count import count_files, count_words
from tessera.tokenizers.scan import PATTERNS, compile_pattern, split_pieces
from tessera.tokenizers.specials import Specials, ordinary_parts
from tessera.tokenizers.unicode_classes import UNICODE_VERSION
from tessera.tokenizers.word_counts import WordCounts, load_counts

SPECIALS = ("<|end|>", "<|end|>!", "<|end of text|>", "é é")
WORDS = r"\p{L}+|[^\p{L}]"  # a pattern that has no compiled scanner
letters = st.one_of(
    st.text(),
    st.text("aA é\n'sS1.漢\u3000\U0001f600"),
    st.text("\r\n \u3000.a"),
    st.lists(st.sampled_from(SPECIALS)).map("".join),
    st.just("a b c " * 9),
)
documents = st.lists(st.lists(letters, max_size=6).map("".join), max_size=4)


def plain_counts(texts: Iterable[str], pattern: str, specials: Specials = SPECIALS) -> dict[bytes, int]:
    counts: Counter[str] = Counter()
    for part in ordinary_parts(texts, specials):
        counts.update(split_pieces(compile_pattern(pattern), part))
    return {piece.encode(): number for piece, number in counts.items()}


def write(folder: Path, texts: Iterable[str]) -> list[Path]:
    paths = []
    for number, text in enumerate(texts):
        paths.append(folder / f"{number}.txt")
        paths[-1].write_bytes(text.encode())
    return paths


def stdlib_texts(n_files: int) -> list[str]:
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:n_files]
    return [path.read_text(encoding="utf-8") for path in paths]


@pytest.mark.parametrize("pattern", [*PATTERNS, WORDS])
@settings(max_examples=60, deadline=None)
@given(texts=documents)
def test_words_are_those_of_the_plain_splitter(pattern: str, texts: list[str]) -> None:
    """By the Unicode of `regex`, which is what the plain splitter cuts by."""
    counts = count_words(texts, pattern=pattern, specials=SPECIALS, unicode_version=UNICODE_VERSION)
    assert dict(counts.items()) == plain_counts(texts, pattern)


@pytest.mark.parametrize("pattern", [*PATTERNS, WORDS])
@settings(max_examples=60, deadline=None)
@given(texts=documents, block=st.integers(1, 64))
@example(
    texts=["00\r\u3000\U0001eebc0000000000000000"], block=1
)  # a run of white space at a cut is not one at the end of a text
def test_blocks_of_a_file_are_cut_between_pieces(
    pattern: str, texts: list[str], block: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    paths = write(tmp_path_factory.mktemp("texts"), texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(count, "BLOCK", block)
        words = count_files(paths, pattern=pattern, specials=SPECIALS, unicode_version=UNICODE_VERSION)
    assert dict(words.items()) == plain_counts(texts, pattern)


@pytest.mark.parametrize("threads", [1, 3])
def test_real_files_on_threads(threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = stdlib_texts(40)
    paths = write(tmp_path, texts)
    monkeypatch.setattr(count, "BLOCK", 10_000)
    monkeypatch.setattr(count, "FLUSH", 1000)
    expected = plain_counts(texts, "gpt4", ())
    assert dict(count_files(paths, specials=(), threads=threads).items()) == expected
    assert dict(count_words(texts, specials=(), threads=threads).items()) == expected


def test_pieces_of_every_length() -> None:
    """Up to 15 bytes a piece is its own key; longer ones differ in one byte, wherever it is."""
    source = random.Random(0)
    pieces = {bytes(source.randrange(97, 123) for _ in range(length)) for length in range(1, 90) for _ in range(4)}
    pieces |= {piece[:place] + b"{" + piece[place + 1 :] for piece in list(pieces) for place in range(len(piece))}
    known = {piece: number for number, piece in enumerate(sorted(pieces), start=1)}
    table = WordTable()
    for _ in range(2):
        words = WordCounts.of(known)
        table.add(words.content, words.ends, words.counts)
    assert dict(WordCounts(*table.words()).items()) == {piece: 2 * number for piece, number in known.items()}
    assert len(table) == len(known)


def test_an_invalid_byte_is_named_with_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(count, "BLOCK", 100)
    path = tmp_path / "latin.txt"
    path.write_bytes(b"some text " * 40 + b"caf\xe9 " + b"some text " * 40)
    with pytest.raises(InputError, match=r"latin\.txt: byte 403 \(0xe9\) is not UTF-8"):
        count_files([path])
    path.write_bytes("some caf\u00e9".encode()[:-1])
    with pytest.raises(InputError, match=r"latin\.txt: byte 8 \(0xc3\) is not UTF-8"):
        count_files([path])
    with pytest.raises(InputError, match="lone surrogate"):
        count_words(["\ud800"])
    with pytest.raises(InputError, match=r"absent\.txt: no such file"):
        count_files([tmp_path / "absent.txt"])


class KilledError(Exception):
    pass


@pytest.mark.parametrize("threads", [1, 2])
def test_a_count_that_was_killed_goes_on(threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(count, "BLOCK", 5000)
    paths = write(tmp_path, stdlib_texts(6))
    expected = dict(count_files(paths).items())
    partial = tmp_path / "counts"
    kills = [3, 20, 21, 50, None]
    while kills:
        calls = 0

        def progress(done: int, of: int, after: int | None = kills.pop(0)) -> None:
            nonlocal calls
            calls += 1
            if calls == after:
                raise KilledError

        try:
            words = count_files(paths, partial=partial, save_seconds=0.0, threads=threads, progress=progress)
        except KilledError:
            continue
    assert dict(words.items()) == expected
    assert (
        dict(count_files(paths, partial=partial, progress=lambda *_: pytest.fail("counted again")).items()) == expected
    )


def test_partial_counts_of_something_else_are_refused(tmp_path: Path) -> None:
    paths = write(tmp_path, ["one two three"])
    partial = tmp_path / "counts"
    count_files(paths, partial=partial)
    with pytest.raises(InputError, match="counts other files, or other pieces"):
        count_files(paths, partial=partial, pattern="gpt2")
    with pytest.raises(StorageError, match="cannot write"):
        count_files(
            paths, partial=tmp_path / "absent" / "counts", progress=lambda *_: pytest.fail("work was done first")
        )
    paths[0].write_text("one two four")
    with pytest.raises(InputError, match="counts other files, or other pieces"):
        count_files(paths, partial=partial)


@settings(max_examples=40, deadline=None)
@given(pieces=st.dictionaries(st.binary(min_size=1, max_size=40), st.integers(1, 2**40)))
def test_saved_counts_are_loaded(pieces: dict[bytes, int], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("counts") / "counts"
    WordCounts.of(pieces).save(path, {"from": "é"})
    words, about = load_counts(path)
    assert (dict(words.items()), about, len(words), words.n_dropped) == (pieces, {"from": "é"}, len(pieces), 0)


def test_damaged_counts_are_told(tmp_path: Path) -> None:
    path = tmp_path / "counts"
    WordCounts.of({b"one": 1, b"two": 2}).save(path)
    content = path.read_bytes()
    for damaged in (
        content[:-1],
        content[:20],
        b"",
        content + b"x",
        content[:-1] + b"x",
        content.replace(b": 2", b": 1"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(DamagedError, match="counts is damaged"):
            load_counts(path)
    path.write_bytes(content.replace(b'"version": 1', b'"version": 2'))
    with pytest.raises(InputError, match="expected 'tessera word counts', version 1"):
        load_counts(path)


def test_the_rarest_words_are_dropped_where_there_are_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(count, "BLOCK", 2000)
    text = "".join(f" often common{'abcdefghij'[n % 10]} {n:x}q" for n in range(5000))
    with caplog.at_level(logging.WARNING):
        words = count_files(write(tmp_path, [text]), max_words=1024, specials=())
    counts = dict(words.items())
    assert "more than 1024 different pieces" in caplog.text
    assert len(words) <= 1024
    assert counts[b" often"] == 5000
    assert counts[b" commona"] == 500
    assert sum(counts.values()) + words.n_dropped == sum(plain_counts([text], "gpt4").values())


def test_wrong_settings_are_named(tmp_path: Path) -> None:
    for setting, value in {"threads": 0, "max_words": 5, "pattern": "("}.items():
        with pytest.raises(SettingError, match=setting):
            count_words([], **{setting: value})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="counted 0 times"):
        WordCounts.of({b"a": 0})


def test_no_texts_have_no_words() -> None:
    words = count_words(iter(()))
    assert (len(words), dict(words.items()), words.counts.dtype) == (0, {}, np.int64)
