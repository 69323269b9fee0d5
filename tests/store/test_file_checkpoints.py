"""Folders: the order on the disk, and what is found and mended. Failing disks: tests/reliability."""

import re
import shutil

import pytest
import safetensors.torch
import torch

from tessera.errors import DamagedError, InputError, StorageError
from tessera.store.checkpoints import Index
from tessera.store.run import Run

DATABASE_FILE = re.compile(r"^(write|fsync|truncate|remove) run\.db")
"""What SQLite does to its own files, where a test of this process has its disk traced (`sqlite_disk`)."""


@pytest.fixture
def run(make_run):
    with make_run() as run:
        yield run


@pytest.fixture
def folder(run):
    return run.path / "checkpoints"


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_the_files_are_what_safetensors_reads(run, folder, state):
    run.checkpoints.write(120, *state(120))
    path = folder / "step-000120"
    assert names(path) == [
        "manifest.json", "model.safetensors", "optimizer.safetensors", "rng.safetensors", "state.json",
    ]  # fmt: skip
    model = safetensors.torch.load_file(path / "model.safetensors")
    assert torch.equal(model["head.weight"], state(120)[0]["model.head.weight"])


def test_the_order(run, state, disk, monkeypatch):
    """Files, then the manifest, each flushed; their folder; the rename; its folder; the row; only then the rotation."""
    run.checkpoints.write(1, *state(1))
    real = Index.add
    monkeypatch.setattr(Index, "add", lambda self, step: (disk.places.append("row:before "), real(self, step))[1])
    disk.order("-@0=none")
    run.checkpoints.write(2, *state(2), keep=1)
    lines = [line for line in disk.log if not line.startswith("write") and not DATABASE_FILE.search(line)]
    temporary = lines[0].split()[1]
    assert temporary.startswith("step-000002.tmp-")
    files = [f"{group}.safetensors" for group in ("model", "optimizer", "rng")] + ["state.json", "manifest.json"]
    expected = [f"mkdir {temporary}"]
    expected += [f"{operation} {name}" for name in files for operation in ("open", "fsync")]
    expected += [f"open {temporary}", f"fsync {temporary}", "rename step-000002", "open checkpoints"]
    expected += ["fsync checkpoints", "row ", "begin run.db", "commit run.db"]
    removed = lines[len(expected)].split()[1]
    assert removed.startswith("step-000001.tmp-")
    assert lines == [*expected, f"rename {removed}", "begin run.db", "commit run.db", f"remove {removed}"]


def test_a_refused_removal_is_said_and_loses_nothing(run, state, is_state, disk):
    run.checkpoints.write(1, *state(1))
    disk.order("rename:before step-000001*@0=EIO")
    with pytest.raises(StorageError):
        run.checkpoints.write(2, *state(2), keep=1)
    assert run.checkpoints.steps() == [1, 2]
    assert is_state(run.checkpoints.read())


def test_a_rename_back_is_undone_when_the_run_is_next_trained(run, folder, state, is_state):
    """A kill between the two renames of a replacement."""
    run.checkpoints.write(1, *state(1))
    (folder / "step-000001").rename(folder / f"step-000001.old-{run.id}-0123abcd")
    assert is_state(run.checkpoints.read(1))
    run.close()
    with Run.open(run.path, train=True) as again:
        assert names(folder) == ["step-000001"]
        assert is_state(again.checkpoints.read())


def test_a_row_that_a_kill_prevented_is_made_up_for(run, folder, state, is_state):
    run.checkpoints.write(1, *state(1))
    run.checkpoints.index.remove(1)
    assert is_state(run.checkpoints.read())
    run.close()
    with Run.open(run.path, train=True) as again:
        assert again.checkpoints.index.steps() == {1}
        again.checkpoints.write(2, *state(2), keep=1)
        assert names(folder) == ["step-000002"]
    shutil.rmtree(folder / "step-000002")
    with Run.open(run.path, train=True) as again:
        assert again.checkpoints.index.steps() == set()


def damages(path):
    data = path.read_bytes()
    for place in sorted({0, 9, len(data) // 3, len(data) // 2, len(data) - 1}):
        yield data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :]
    yield data[:-1]
    yield data[: len(data) // 2]
    yield b""
    yield data + b"\x00"
    yield None


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.safetensors", "rng.safetensors", "state.json", "manifest.json"]
)
def test_damage_is_named_and_the_step_before_is_used(run, folder, state, is_state, name):
    run.checkpoints.write(1, *state(1))
    run.checkpoints.write(2, *state(2), keep=2)
    path = folder / "step-000002" / name
    whole = path.read_bytes()
    for damaged in damages(path):
        path.unlink(missing_ok=True)
        if damaged is not None:
            path.write_bytes(damaged)
        loaded = run.checkpoints.read()
        assert loaded.step == 1
        assert is_state(loaded)
        assert len(loaded.skipped) == 1
        assert f"step-000002/{name}" in loaded.skipped[0]
        with pytest.raises(DamagedError, match=name) as caught:
            run.checkpoints.read(2)
        assert caught.value.path == path
        path.write_bytes(whole)
    assert run.checkpoints.read().step == 2


def test_any_changed_byte_of_a_manifest_shows(run, folder, state):
    run.checkpoints.write(1, *state(1))
    path = folder / "step-000001" / "manifest.json"
    data = path.read_bytes()
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :])
        with pytest.raises((DamagedError, InputError), match=r"manifest\.json"):
            run.checkpoints.read(1)


def test_the_model_alone_does_not_need_a_whole_optimizer(run, folder, state):
    run.checkpoints.write(1, *state(1))
    path = folder / "step-000001" / "optimizer.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert run.checkpoints.read(prefix="model").step == 1
    with pytest.raises(DamagedError, match="no checkpoint verifies"):
        run.checkpoints.read()


def test_a_checkpoint_under_another_steps_name(run, folder, state):
    run.checkpoints.write(1, *state(1))
    shutil.copytree(folder / "step-000001", folder / "step-000009")
    loaded = run.checkpoints.read()
    assert loaded.step == 1
    assert "it is of step 1" in loaded.skipped[0]


def test_what_another_run_made_is_read_but_never_removed(run, make_run, folder, state, is_state):
    with make_run(name="other") as other:
        other.checkpoints.write(5, *state(5))
        shutil.copytree(other.path / "checkpoints" / "step-000005", folder / "step-000005")
    (folder / "step-000005.tmp-deadbeef-00000000").mkdir()
    (folder / "notes").mkdir()
    assert is_state(run.checkpoints.read(5))
    run.checkpoints.write(6, *state(6), keep=1)
    run.checkpoints.write(7, *state(7), keep=1)
    assert names(folder) == ["notes", "step-000005", "step-000005.tmp-deadbeef-00000000", "step-000007"]
    run.checkpoints.write(5, *state(5), keep=3)  # sets the other's aside
    run.close()
    with Run.open(run.path, train=True) as again:
        again.checkpoints.write(8, *state(8), keep=1)
        kept = [name for name in names(folder) if name.startswith("step-000005.old-other-")]
        assert len(kept) == 1
        assert again.checkpoints.steps() == [8]


def test_leftovers_of_a_kill_are_removed_by_the_next_training_only(run, folder, state):
    run.checkpoints.write(1, *state(1))
    leftover = folder / f"step-000002.tmp-{run.id}-0123abcd"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(b"half")
    run.close()
    with Run.open(run.path) as reader:
        assert reader.checkpoints.steps() == [1]
        assert leftover.exists()
    with Run.open(run.path, train=True):
        assert names(folder) == ["step-000001"]
