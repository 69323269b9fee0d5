"""Files of objects: the same records from each kind of file, each with its line, and errors that name theirs."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.data import records
from tessera.data.records import read_records
from tessera.errors import FormatError, InputError

CONTENTS: list[dict[str, Any]] = [{"a": "one \u2028 two"}, {"a": "\u65e5\U0001f642", "b": [{"c": 1}]}, {"a": "]},{"}]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('ab"]},{[\n', max_size=3), inner, max_size=3),
    max_leaves=8,
)


def write(path: Path, text: str) -> Path:
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.json.gz", "A.JSONL"])
def test_each_kind_of_file_gives_the_same(tmp_path: Path, name: str) -> None:
    in_lines = "jsonl" in name.lower()
    text = "\n".join(json.dumps(each, ensure_ascii=False) for each in CONTENTS) if in_lines else json.dumps(CONTENTS)
    path = write(tmp_path / name, ("" if in_lines else "\ufeff") + text)
    found = read_records(path)
    assert [each.content for each in found] == CONTENTS
    assert [each.where for each in found] == [f"{path}:{n if in_lines else 1}" for n in (1, 2, 3)]


def test_a_table(tmp_path: Path) -> None:
    table = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    rows = [{"messages": [{"role": "user", "content": "a"}]}, {"messages": None, "text": "b"}]
    parquet.write_table(
        table.Table.from_pylist(
            rows,
            table.schema(
                [
                    ("messages", table.list_(table.struct([("role", table.string()), ("content", table.string())]))),
                    ("text", table.string()),
                ]
            ),
        ),
        path,
    )
    found = read_records(path)
    assert [each.content for each in found] == [rows[0], {"text": "b"}]
    assert [each.where for each in found] == [f"{path}:1", f"{path}:2"]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(FormatError, match=r"a\.parquet: not a Parquet table"):
        read_records(path)


@settings(max_examples=60, deadline=None)
@given(
    contents=st.lists(st.dictionaries(st.text("ab\n{", max_size=3), JSON, max_size=3), min_size=1, max_size=5),
    indent=st.sampled_from([None, 0, 4]),
)
def test_the_line_is_that_on_which_an_object_begins(
    tmp_path_factory: pytest.TempPathFactory, contents: list[Any], indent: int | None
) -> None:
    path = tmp_path_factory.mktemp("list") / "a.json"
    texts = [json.dumps(each, indent=indent) for each in contents]
    path.write_text("[\n" + " ,\n".join(texts) + "\n]\n")
    found = read_records(path)
    assert [each.content for each in found] == contents
    expected, line = [], 2
    for text in texts:
        expected.append(f"{path}:{line}")
        line += text.count("\n") + 1
    assert [each.where for each in found] == expected


def test_several_files_and_globs_in_order_each_once(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl"):
        write(tmp_path / name, json.dumps({"from": name}) + "\n\n")
    (tmp_path / "c.txt").write_text("no record")
    found = read_records([tmp_path / "b.jsonl", str(tmp_path / "*")])
    assert [each.content["from"] for each in found] == ["b.jsonl", "a.jsonl"]


BAD = [
    ("a.jsonl", '{"a": 1}\n\n{"a": \n', r"a\.jsonl:3: not JSON"),
    ("a.jsonl", '{"a": 1}\n[1]\n', r"a\.jsonl:2: expected an object, found list"),
    ("a.jsonl", "{}\n" + "[" * 200_000, r"a\.jsonl:2: not JSON"),
    ("a.jsonl", "\n \n", "no record in it"),
    ("a.json", "[]", "no record in it"),
    ("a.json", '{"a": 1}\n{"a": 2}', r"a\.json:1: expected a list of objects.*ends in \.jsonl"),
    ("a.json", "", r"a\.json:1: expected a list of objects"),
    ("a.json", '[\n{"a": 1},\n\n{"a": }\n]', r"a\.json:4: not JSON"),
    ("a.json", '[\n{"a": 1}\n{"a": 2}]', r"a\.json:3: not JSON \(expected , or \]"),
    ("a.json", '[\n{"a": 1},\n7]', r"a\.json:3: expected an object, found int"),
    ("a.json", '[{"a": 1}]\n[]', r"a\.json:1: something follows"),
    ("a.json", '[{"a": 1},\n', r"a\.json:2: not JSON"),
    ("a.json", '[\n{"a": ' + "9" * 9999 + "}]", r"a\.json:2: not JSON"),
    ("a.json", "[\n" + "[" * 200_000, r"a\.json:2: not JSON"),
    ("a.txt", "{}", r"a\.txt: records are in a file that ends in \.jsonl"),
]


@pytest.mark.parametrize(("name", "text", "message"), BAD, ids=str)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_records(write(tmp_path / name, text))


def test_bytes_that_are_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(InputError, match=r"a\.jsonl: not UTF-8 at byte 7"):
        read_records(path)
    packed = tmp_path / "a.jsonl.gz"
    for data in (gzip.compress(b"{}" * 99)[:-9], b"plain"):
        packed.write_bytes(data)
        with pytest.raises(InputError, match="not a whole gzip file"):
            read_records(packed)
    for nothing in (tmp_path / "none.jsonl", tmp_path / "*.parquet"):
        with pytest.raises(InputError, match="no such file"):
            read_records(nothing)

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(records.Path, "read_bytes", refuse)
    with pytest.raises(InputError, match=r"a\.jsonl: cannot be read \(Permission denied\)"):
        read_records(path)
