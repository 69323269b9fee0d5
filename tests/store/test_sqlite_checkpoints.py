"""One file: one transaction a save, and a sha256 for every tensor."""

import errno
import os
import shutil
import sqlite3

import pytest
import torch

from tessera.errors import DamagedError, StorageError
from tessera.store import sqlite_checkpoints
from tessera.store.run import Run


@pytest.fixture
def run(make_run):
    with make_run("sqlite") as run:
        yield run


def test_the_file_alone_is_the_run(run, tmp_path, state, is_state):
    run.checkpoints.write(1, *state(1))
    copy = tmp_path / "elsewhere.db"
    shutil.copy(run.path / "run.db", copy)  # while it is open for training
    run.close()
    assert [entry.name for entry in run.path.iterdir()] == ["run.db"]
    for path in (copy, run.path / "run.db", run.path):
        with Run.open(path) as again:
            assert is_state(again.checkpoints.read())
            assert again.recipe == run.recipe
            assert again.tokenizer_json.startswith('{"sha256"')
            assert [id for id, _ in again.vocabulary()] == [0, 1, 5]


def test_large_tensors_are_stored_in_parts(run, monkeypatch):
    monkeypatch.setattr(sqlite_checkpoints, "PART_BYTES", 7)
    tensor = torch.randn(5)
    run.checkpoints.write(1, {"model.x": tensor, "model.empty": torch.zeros(0)}, {})
    parts = run.checkpoints.index.database.query("SELECT length(data) FROM tensor_parts ORDER BY part")
    assert [size for (size,) in parts] == [7, 7, 6]
    assert torch.equal(run.checkpoints.read().tensors["model.x"], tensor)


def alter(run, statement):
    """Change the database behind the run's back, as a failing disk would."""
    connection = sqlite3.connect(run.path / "run.db")
    assert connection.execute(statement).rowcount > 0
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("UPDATE tensor_parts SET data = zeroblob(length(data)) WHERE step = 2 AND name LIKE '%head%'", "head.weight"),
        ("UPDATE tensor_parts SET data = substr(data, 2) WHERE step = 2 AND name = 'rng.torch'", "rng.torch"),
        ("DELETE FROM tensor_parts WHERE step = 2 AND name = 'rng.torch'", "0 bytes where 9"),
        ("DELETE FROM tensors WHERE step = 2 AND name = 'rng.torch'", "list of tensors"),
        ("UPDATE tensors SET dtype = 'I32' WHERE step = 2 AND dtype = 'F32'", "list of tensors"),
        ("UPDATE checkpoints SET meta = replace(meta, '2', '3') WHERE step = 2", "list of tensors"),
    ],
)
def test_damage_is_named_and_the_step_before_is_used(run, state, is_state, statement, message):
    run.checkpoints.write(1, *state(1))
    run.checkpoints.write(2, *state(2), keep=2)
    alter(run, statement)
    loaded = run.checkpoints.read()
    assert loaded.step == 1
    assert is_state(loaded)
    assert message in loaded.skipped[0]
    assert "run.db" in loaded.skipped[0]
    with pytest.raises(DamagedError, match=message):
        run.checkpoints.read(2)


def test_a_flipped_bit_in_the_file_is_found(make_run, state, is_state):
    run = make_run("sqlite")
    run.checkpoints.write(1, *state(1))
    run.checkpoints.write(2, *state(2), keep=2)
    run.close()
    path = run.path / "run.db"
    data = path.read_bytes()
    place = data.index(state(2)[0]["model.head.weight"].numpy().tobytes()) + 17
    path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
    with Run.open(run.path) as again:
        loaded = again.checkpoints.read()
    assert is_state(loaded)
    assert loaded.step == 1
    assert "model.head.weight" in loaded.skipped[0]


@pytest.mark.parametrize("room", range(0, 60, 4))
def test_a_full_disk_leaves_the_steps_before(run, state, is_state, room):
    """`room` pages of 4,096 bytes are left for a step that needs some 60."""
    run.checkpoints.write(1, *state(1))
    database = run.checkpoints.index.database
    pages = database.query("PRAGMA page_count")[0][0]
    database.query(f"PRAGMA max_page_count = {pages + room}")
    large = {"model.x": torch.randn(60, 1024)}
    with pytest.raises(StorageError, match="full") as caught:
        run.checkpoints.write(2, large, {})
    assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
    assert os.strerror(errno.ENOSPC)
    assert run.checkpoints.steps() == [1]
    assert is_state(run.checkpoints.read())
    database.query("PRAGMA max_page_count = 1000000")
    run.checkpoints.write(2, *state(2), keep=1)
    assert is_state(run.checkpoints.read(2))


def test_the_file_does_not_grow_with_the_steps(run, state):
    sizes = []
    for step in range(8):
        run.checkpoints.write(step, {"model.x": torch.randn(20_000)}, {}, keep=2)
        sizes.append((run.path / "run.db").stat().st_size)
    assert sizes[-1] == sizes[4] < 5 * 80_000
