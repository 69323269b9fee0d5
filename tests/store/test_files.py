import errno
import hashlib
import json
import math
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.errors import DamagedError, StorageError
from tessera.store.files import (
    Written,
    check_written,
    make_folders,
    read_json,
    read_text,
    to_json,
    to_readable_json,
    write_bytes_atomic,
    write_new,
)


def test_write_new_gives_size_and_sha256_of_what_is_on_the_disk(tmp_path):
    written = write_new(tmp_path / "a", [b"one", bytearray(b""), memoryview(b"two")])
    assert (tmp_path / "a").read_bytes() == b"onetwo"
    assert written == Written(6, hashlib.sha256(b"onetwo").hexdigest())


def test_write_new_refuses_to_overwrite(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(StorageError, match="File exists"):
        write_new(tmp_path / "a", [b"new"])
    assert (tmp_path / "a").read_bytes() == b"old"


def test_a_system_that_takes_half_at_a_time_still_gets_everything(tmp_path, disk):
    disk.order("write:*@0+=short")
    write_new(tmp_path / "a", [b"hello"])
    assert (tmp_path / "a").read_bytes() == b"hello"
    assert len([line for line in disk.log if line.startswith("write")]) > 2


def test_an_atomic_write_is_flushed_before_it_gets_its_name_and_the_name_after(tmp_path, disk):
    write_bytes_atomic(tmp_path / "a", b"x")
    operations = [line.split()[0] for line in disk.log]
    assert operations == ["open", "write", "fsync", "rename", "open", "fsync"]
    assert disk.log[-1] == f"fsync {tmp_path.name}"


@pytest.mark.parametrize("what", ["ENOSPC", "EIO", "EROFS", "half+ENOSPC"])
@pytest.mark.parametrize("at", range(12))
def test_a_refused_write_leaves_the_old_content_or_the_whole_new_one(tmp_path, disk, what, at):
    path = tmp_path / "a"
    path.write_bytes(b"the old content")
    disk.order(f"*@{at}={what}")
    with pytest.raises(StorageError, match=os.strerror(getattr(errno, what.removeprefix("half+")))):
        write_bytes_atomic(path, b"the new one")
    named = at >= 7  # renamed: whatever is refused later
    assert path.read_bytes() == (b"the new one" if named else b"the old content")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_make_folders(tmp_path, disk):
    make_folders(tmp_path / "a" / "b")
    assert disk.log == ["mkdir a", f"open {tmp_path.name}", f"fsync {tmp_path.name}", "mkdir b", "open a", "fsync a"]
    make_folders(tmp_path / "a" / "b")
    assert len(disk.log) == 6
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        make_folders(tmp_path / "file" / "below")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(), below, max_size=3),
)


@given(json_values)
def test_json_gives_back_what_was_written(value):
    for text in (to_json(value), to_readable_json(value)):
        assert json.loads(text.encode("utf-8")) == value


def test_json_of_a_file_name_that_is_not_utf8():
    value = {"source": os.fsdecode(b"caf\xe9.txt")}
    assert json.loads(to_json(value).encode("utf-8")) == value


def test_json_keeps_nan_and_infinity():
    assert math.isnan(json.loads(to_json(math.nan)))
    assert json.loads(to_json(-math.inf)) == -math.inf


@pytest.mark.parametrize("value", [{0: 1}, {"a": [{1: 2}]}, ({"x": {None: 1}},)])
def test_json_would_change_a_key_that_is_not_a_string(value):
    with pytest.raises(TypeError, match="string keys only"):
        to_json(value)


def test_canonical_json_does_not_depend_on_the_order():
    assert to_json({"b": 1, "a": [1, 2]}) == to_json({"a": [1, 2], "b": 1}) == '{"a":[1,2],"b":1}'


def test_what_cannot_be_read_is_damaged(tmp_path):
    path = tmp_path / "a.json"
    with pytest.raises(DamagedError, match="missing"):
        read_json(path)
    path.write_bytes(b'{"a": ')
    with pytest.raises(DamagedError, match="not JSON"):
        read_json(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DamagedError, match="not text"):
        read_text(path)


def test_check_written(tmp_path):
    path = tmp_path / "a"
    written = write_new(path, [b"hello"])
    check_written(path, written)
    path.write_bytes(b"hellO")
    check_written(path, written, digest=False)
    with pytest.raises(DamagedError, match="sha256"):
        check_written(path, written)
    path.write_bytes(b"hell")
    with pytest.raises(DamagedError, match="4 bytes where 5"):
        check_written(path, written, digest=False)
    path.unlink()
    with pytest.raises(DamagedError, match="missing"):
        check_written(path, written)
