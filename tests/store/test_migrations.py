import sqlite3
from pathlib import Path

import pytest

from tessera.errors import InputError
from tessera.store import migrations
from tessera.store.migrations import MIGRATIONS, migrate


@pytest.fixture
def connection():
    return sqlite3.connect(":memory:", isolation_level=None)


def tables(connection):
    return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def test_a_new_database_goes_through_all_steps(connection):
    migrate(connection, Path("run.db"))
    assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
    assert {"settings", "vocabulary", "info", "metrics", "samples", "evaluations", "checkpoints", "lineage"} <= tables(
        connection
    )
    migrate(connection, Path("run.db"))  # nothing to do


def test_a_step_that_is_added_later_keeps_what_is_there(connection, monkeypatch):
    migrate(connection, Path("run.db"))
    connection.execute("INSERT INTO metrics VALUES ('loss', 1, 0.5)")
    later = [*MIGRATIONS, lambda c: c.execute("ALTER TABLE metrics ADD COLUMN unit TEXT")]
    monkeypatch.setattr(migrations, "MIGRATIONS", later)
    migrate(connection, Path("run.db"))
    assert connection.execute("SELECT * FROM metrics").fetchall() == [("loss", 1, 0.5, None)]
    assert connection.execute("PRAGMA user_version").fetchone() == (len(later),)


def test_a_step_that_fails_leaves_the_version_before_it(connection, monkeypatch):
    def broken(connection):
        connection.execute("CREATE TABLE half (x)")
        connection.execute("nonsense")

    monkeypatch.setattr(migrations, "MIGRATIONS", [*MIGRATIONS, broken])
    with pytest.raises(sqlite3.OperationalError):
        migrate(connection, Path("run.db"))
    assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
    assert "half" not in tables(connection)


def test_a_database_of_a_newer_version_is_left_alone(connection):
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 3}")
    with pytest.raises(InputError, match=r"run\.db was made by a newer Tessera .* upgrade"):
        migrate(connection, Path("run.db"))
    assert not tables(connection)
