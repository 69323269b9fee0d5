import sqlite3
import threading

import pytest

from tessera.errors import DamagedError, InputError, StorageError
from tessera.store import sqlite
from tessera.store.sqlite import Database

NOTE = "INSERT INTO info (key, value) VALUES (?, ?)"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.db"


@pytest.fixture
def database(path):
    database = Database.create(path)
    yield database
    database.close()


def keys(database):
    return [key for (key,) in database.query("SELECT key FROM info ORDER BY key")]


def test_it_is_durable_and_can_be_read_while_written(database):
    assert database.query("PRAGMA journal_mode") == [("wal",)]
    assert database.query("PRAGMA synchronous") == [(2,)]
    assert database.query("PRAGMA foreign_keys") == [(1,)]


def test_a_transaction_is_all_or_nothing(database):
    with pytest.raises(ZeroDivisionError), database.transaction() as connection:
        connection.execute(NOTE, ("a", "1"))
        with database.transaction() as same:
            same.execute(NOTE, ("b", "1"))
        raise ZeroDivisionError
    assert keys(database) == []


def test_rows_that_wait_are_written_before_anything_reads_and_after_a_failure(database, monkeypatch):
    monkeypatch.setattr(sqlite, "FLUSH_SECONDS", 1e9)
    database.append(NOTE, ("a", "1"))
    with pytest.raises(ZeroDivisionError), database.transaction():
        raise ZeroDivisionError
    assert keys(database) == ["a"]


def test_rows_are_written_in_batches(path, database, monkeypatch):
    monkeypatch.setattr(sqlite, "FLUSH_SECONDS", 1e9)
    monkeypatch.setattr(sqlite, "FLUSH_ROWS", 3)
    other = Database.open(path)
    seen = []
    for key in "abcd":
        database.append(NOTE, (key, "1"))
        seen.append(len(keys(other)))
    assert seen == [0, 0, 3, 3]
    database.append("INSERT INTO info VALUES ('e', '1')", ())
    database.close()
    assert keys(other) == list("abcde")
    other.close()


def test_a_row_is_not_kept_for_longer_than_a_second(path, database, monkeypatch):
    monkeypatch.setattr(sqlite, "FLUSH_SECONDS", 0.0)
    other = Database.open(path)
    database.append(NOTE, ("a", "1"))
    assert keys(other) == ["a"]
    other.close()


def test_readers_see_the_last_whole_state_while_a_transaction_is_written(path, database):
    other = Database.open(path)
    with database.transaction() as connection:
        connection.execute(NOTE, ("a", "1"))
        assert keys(other) == []
    assert keys(other) == ["a"]
    with other.snapshot() as view:
        before = view.execute("SELECT count(*) FROM info").fetchone()
        with database.transaction() as connection:
            connection.execute(NOTE, ("b", "1"))
        assert view.execute("SELECT count(*) FROM info").fetchone() == before == (1,)
    other.close()


def test_threads_may_share_it(database):
    def write(name):
        for number in range(20):
            with database.transaction() as connection:
                connection.execute(NOTE, (f"{name}{number}", "1"))

    threads = [threading.Thread(target=write, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys(database)) == 60


def test_a_full_disk_is_a_storage_error_and_undoes_the_transaction(path, database):
    pages = database.query("PRAGMA page_count")[0][0]
    database.query(f"PRAGMA max_page_count = {pages + 4}")
    with pytest.raises(StorageError, match=r"run\.db: No space left|run\.db: database or disk is full"):  # noqa: SIM117
        with database.transaction() as connection:
            connection.execute(NOTE, ("a", "1"))
            connection.execute(NOTE, ("b", "x" * 100_000))
    assert keys(database) == []
    database.query("PRAGMA max_page_count = 100000")
    with database.transaction() as connection:
        connection.execute(NOTE, ("a", "1"))
    assert keys(database) == ["a"]


def test_a_writer_that_waits_too_long_says_so(path, database, monkeypatch):
    monkeypatch.setattr(sqlite, "BUSY_SECONDS", 0.01)
    other = Database.open(path)
    with database.transaction(), pytest.raises(StorageError, match="locked"), other.transaction():
        pass
    other.close()


def test_closing_leaves_one_file(path, database):
    with database.transaction() as connection:
        connection.execute(NOTE, ("a", "1"))
    assert path.with_name("run.db-wal").exists()
    database.close()
    assert [entry.name for entry in path.parent.iterdir()] == ["run.db"]
    again = Database.open(path)
    assert keys(again) == ["a"]
    again.close()


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"", DamagedError, "empty"),
        (b"this is no database, and long enough to be looked at" * 40, DamagedError, "not a database"),
    ],
)
def test_a_file_that_is_no_run(path, content, error, message):
    path.write_bytes(content)
    with pytest.raises(error, match=message):
        Database.open(path)


def test_somebody_elses_database_is_left_alone(path):
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE t (x)")
    connection.commit()
    connection.close()
    before = path.read_bytes()
    with pytest.raises(InputError, match="not one of a run"):
        Database.open(path)
    assert path.read_bytes() == before


def test_a_broken_structure_is_found(path, database):
    with database.transaction() as connection:
        for number in range(3000):
            connection.execute(NOTE, (f"key {number}", "x" * 50))
    database.close()
    data = bytearray(path.read_bytes())
    data[len(data) // 2 :: 97] = bytes(len(data[len(data) // 2 :: 97]))
    path.write_bytes(data)
    damaged = Database.open(path)
    with pytest.raises(DamagedError, match=r"run\.db"):
        damaged.check()
    damaged.close()


def test_a_truncated_database_is_found(path, database):
    with database.transaction() as connection:
        connection.execute(NOTE, ("a", "x" * 50_000))
    database.close()
    path.write_bytes(path.read_bytes()[:-20_000])
    with pytest.raises(DamagedError, match=r"run\.db"):
        damaged = Database.open(path)
        damaged.check()


def test_on_a_disk_that_cannot_be_written_it_is_read(path, database, monkeypatch):
    with database.transaction() as connection:
        connection.execute(NOTE, ("a", "1"))
    database.close()
    monkeypatch.setattr(sqlite.os, "access", lambda path, mode: False)
    frozen = Database.open(path)
    assert keys(frozen) == ["a"]
    with pytest.raises(StorageError, match="readonly"), frozen.transaction() as connection:
        connection.execute(NOTE, ("b", "1"))
    frozen.close()
    assert [entry.name for entry in path.parent.iterdir()] == ["run.db"]


def test_the_stand_in_for_a_lost_database_is_empty_and_cannot_be_written(path):
    lost = Database.empty(path)
    assert lost.is_lost
    assert keys(lost) == []
    with pytest.raises(StorageError), lost.transaction() as connection:
        connection.execute(NOTE, ("a", "1"))
