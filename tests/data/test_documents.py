import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.config import Spec, check
from tessera.data.catalog import CORPORA, Corpus
from tessera.data.documents import READERS, SEPARATOR, read_documents, split_text
from tessera.data.settings import DataSettings
from tessera.errors import InputError, SettingError


def texts(*sources, **options):
    return [document.text for document in read_documents([str(source) for source in sources], **options)]


@given(parts=st.lists(st.text(alphabet="ab<|>eé"), min_size=1, max_size=6), size=st.integers(1, 20))
def test_separators_are_found_wherever_the_pieces_end(parts, size):
    if any(SEPARATOR in part for part in parts):
        return
    text = SEPARATOR.join(parts)
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    found = list(split_text(pieces))
    assert [part for _, part in found] == parts
    assert [number for number, _ in found] == ([0] if len(parts) == 1 else list(range(1, len(parts) + 1)))


def test_a_text_file_is_one_document_or_several(tmp_path):
    (tmp_path / "one.txt").write_text("\n a\r\nb\n\n", newline="")
    (tmp_path / "two.txt").write_text(f"a\n\nb\n{SEPARATOR}\nc\n{SEPARATOR}\n")
    (tmp_path / "code.py").write_text(f'END = "{SEPARATOR}"\n')
    assert texts(tmp_path / "one.txt") == ["\n a\r\nb\n\n"]
    assert texts(tmp_path / "two.txt") == ["a\n\nb", "c"]
    assert texts(tmp_path / "code.py") == [f'END = "{SEPARATOR}"\n']
    names = [document.name for document in read_documents([str(tmp_path / "two.txt")])]
    assert names == [f"{tmp_path}/two.txt#1", f"{tmp_path}/two.txt#2"]


@pytest.mark.parametrize("suffix", sorted(READERS))
def test_every_suffix_is_read_packed_and_unpacked(tmp_path, suffix):
    """Also across the border of a chunk, which falls inside a character here."""
    text = "é" * 600_000 + "\n" + "x\n" * 3
    content = json.dumps({"text": text}, ensure_ascii=False) if suffix == ".jsonl" else "\ufeff" + text
    (tmp_path / f"a{suffix}").write_text(content, encoding="utf-8")
    (tmp_path / f"b{suffix.upper()}.gz").write_bytes(gzip.compress(content.encode()))
    assert texts(tmp_path) == [text, text]


def test_a_folder_is_read_in_order_without_what_is_hidden_unknown_or_empty(tmp_path):
    for name in ("b.txt", "a/z.md", "a/b/c.py", ".git/x.txt", "a/.hidden.txt", "model.bin", "notes.log"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "a" / "__init__.py").write_text("")
    documents = list(read_documents([str(tmp_path)]))
    assert [document.text for document in documents] == ["a/b/c.py", "a/z.md", "b.txt"]
    assert documents[0].name == f"{tmp_path}/a/b/c.py"
    assert {document.source for document in documents} == {str(tmp_path)}
    assert texts(tmp_path / "notes.log") == ["notes.log"]
    assert texts(tmp_path / "*.log", tmp_path / "**/*.md") == ["notes.log", "a/z.md"]


def test_a_file_that_two_sources_lead_to_is_read_once(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").symlink_to(tmp_path / "a.txt")
    assert texts(tmp_path / "a.txt", tmp_path, tmp_path / "*.txt", tmp_path / "a.txt") == ["a"]


def test_documents_can_be_read_again(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    documents = read_documents([str(tmp_path)])
    assert list(documents) == list(documents)


def test_json_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one", "body": "1"}\n\n{"text": "two\\n", "body": "2"}\n{"text": "", "body": "3"}\n')
    documents = list(read_documents([str(path)]))
    assert [(document.name, document.text) for document in documents] == [(f"{path}:1", "one"), (f"{path}:3", "two\n")]
    assert texts(path, field="body") == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ("[1]", r"line 2: no field 'text' \(found: list\)"),
        ('{"body": "x", "id": 1}', r"line 2: no field 'text' \(found: body, id\)"),
        ('{"text": 3}', "line 2: 'text' is a int, not a string"),
        ('{"text": "\\ud800"}', "line 2: 'text' has half a character"),
        ("[" * 100_000, "line 2: not JSON"),
        ('{"text": ' + "9" * 5000 + "}", "line 2: not JSON"),
    ],
)
def test_a_bad_json_line_is_named(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "good"}\n' + line + "\n")
    with pytest.raises(InputError, match=message):
        texts(path)


def test_half_a_character_in_json_can_be_replaced(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a\\ud800b \\ud83d\\ude00"}\n')
    assert texts(path, errors="replace") == ["a\ufffdb \U0001f600"]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("place", [0, 5, (1 << 20) - 1, 1 << 20, (1 << 20) + 9])
def test_invalid_utf8_names_the_byte_and_can_be_replaced(tmp_path, place, packed):
    data = b"a" * place + b"\xff" + b"b" * 10
    path = tmp_path / ("a.txt.gz" if packed else "a.txt")
    path.write_bytes(gzip.compress(data) if packed else data)
    with pytest.raises(InputError, match=f'a.txt.*: not UTF-8 at byte {place} .errors="replace"'):
        texts(path)
    assert texts(path, errors="replace") == ["a" * place + "\ufffd" + "b" * 10]


def test_a_character_cut_by_the_end_of_the_file_is_invalid(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("aé".encode()[:-1])
    with pytest.raises(InputError, match="not UTF-8 at byte 1"):
        texts(path)


def test_invalid_utf8_in_json_lines_names_line_and_byte(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n')
    with pytest.raises(InputError, match="line 2: not UTF-8 at byte 24"):
        texts(path)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.weights"])
@pytest.mark.parametrize("data", [b"\x7fELF\0\0", "text".encode("utf-16")])
def test_a_binary_file_is_refused(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=f"{name} looks binary"):
        texts(tmp_path / name)


@pytest.mark.parametrize("content", ["", " \n\n", SEPARATOR + "\n"])
def test_an_empty_file_is_refused(tmp_path, content):
    (tmp_path / "a.txt").write_text(content)
    with pytest.raises(InputError, match=r"a\.txt is empty"):
        texts(tmp_path / "a.txt")
    with pytest.raises(InputError, match="no text in it"):
        texts(tmp_path)


def test_a_broken_gzip_file_is_refused(tmp_path):
    whole = gzip.compress(b"text " * 1000)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    for bad in (whole[:-9], bytes(flipped), b"text"):
        (tmp_path / "a.txt.gz").write_bytes(bad)
        with pytest.raises(InputError, match=r"a\.txt\.gz: not a whole gzip file"):
            texts(tmp_path / "a.txt.gz")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nothing.txt", r"nothing\.txt: no such file, folder or named corpus \(corpora: python-stdlib, "),
        ("tiny-shakespear", "did you mean 'tiny-shakespeare'"),
        ("none/*.txt", r"none/\*\.txt: no file matches"),
        ("https://example.com/a.txt", "downloaded first"),
        ("/dev/null", "not a file or a folder"),
    ],
)
def test_a_source_that_is_not_there_is_refused_before_anything_is_read(source, message):
    with pytest.raises(InputError, match=message):
        read_documents([source])


def test_a_folder_without_text_is_refused(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"\0")
    with pytest.raises(InputError, match="no file in it that can be read"):
        read_documents([str(tmp_path)])
    with pytest.raises(InputError, match="no source"):
        read_documents([])


def test_a_named_corpus_goes_before_a_folder_of_that_name(tmp_path, monkeypatch):
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "a.txt").write_text("folder")
    corpus = Corpus(about="", licence="", local=lambda: iter([("x", "corpus")]))
    monkeypatch.setitem(CORPORA, "words", corpus)
    monkeypatch.chdir(tmp_path)
    assert texts("words") == ["corpus"]
    assert texts("./words") == ["folder"]


def test_settings_are_checked():
    settings = check(DataSettings, {"source": "a.txt", "batches": {"name": "epoch", "stride": 4}})
    assert settings.source == ["a.txt"]
    assert settings.batches == Spec("epoch", {"stride": 4})
    assert check(DataSettings, settings.model_dump(mode="json")) == settings
    for wrong in ({"source": []}, {"validation": 0.5}, {"split": "half"}, {"errors": "ignore"}):
        with pytest.raises(SettingError, match=next(iter(wrong))):
            check(DataSettings, {"source": ["a"], **wrong})
    with pytest.raises(SettingError, match="did you mean 'epoch'"):
        check(DataSettings, {"source": ["a"], "batches": "epoc"})
    with pytest.raises(SettingError, match="errors = 'ignore'"):
        read_documents(["python-stdlib"], errors="ignore")
