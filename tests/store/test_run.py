import json
import os
import signal
import socket
import sqlite3
import time

import pytest

from tessera.errors import DamagedError, InputError, SettingError, StorageError
from tessera.store import migrations
from tessera.store.run import CHECKPOINT_STORES, Run, list_runs

stores = pytest.mark.parametrize("store", list(CHECKPOINT_STORES))


@stores
def test_what_is_opened_is_what_was_created(make_run, store):
    def everything(run):
        return (run.id, run.store, run.created, run.recipe, run.tokenizer_json, run.vocabulary(), run.info, run.path)

    with make_run(store) as run:
        made = everything(run)
    for path in (run.path, run.path / "run.db", str(run.path)):
        with Run.open(path) as again:
            assert everything(again) == made
    assert made[4] == '{"sha256": "...", "tokenizer": {"kind": "char", "é": 1}}\n'
    assert made[5] == [(0, b"a"), (1, "é".encode()), (5, b"\xff")]


def test_a_run_of_files_can_be_read_by_anyone(make_run):
    with make_run() as run:
        assert json.loads((run.path / "recipe.json").read_text()) == run.recipe
        assert (run.path / "tokenizer.json").read_text() == run.tokenizer_json
    assert sorted(entry.name for entry in run.path.iterdir()) == [
        "checkpoints", "recipe.json", "run.db", "tokenizer.json",
    ]  # fmt: skip


@stores
def test_settings_and_vocabulary_can_be_queried(make_run, tmp_path, store):
    make_run(store).close()
    connection = sqlite3.connect(tmp_path / "run" / "run.db")
    settings = dict(connection.execute("SELECT path, value FROM settings"))
    kinds = dict(connection.execute("SELECT id, kind FROM vocabulary"))
    connection.close()
    assert settings["model.norm.name"] == '"rms"'
    assert settings["train.lr"] == "0.0003"
    assert kinds == {0: "text", 1: "text", 5: "bytes"}


@stores
def test_a_path_that_is_taken_is_refused_and_left_alone(make_run, store):
    make_run(store).close()
    path = make_run(store, name="other").path
    before = sorted(path.rglob("*"))
    with pytest.raises(InputError, match=r"holds a run already: choose another --out, or .* --resume"):
        make_run(store, name="run")
    with pytest.raises(InputError, match="already"):
        make_run(store, name="other")
    assert sorted(path.rglob("*")) == before


def test_a_folder_with_something_else_is_refused_but_shards_may_be_there(make_run, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"not empty .*thesis\.txt"):
        make_run(name="full")
    assert [entry.name for entry in (tmp_path / "full").iterdir()] == ["thesis.txt"]
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        make_run(name="file")
    (tmp_path / "prepared" / "data").mkdir(parents=True)
    make_run(name="prepared").close()


def test_an_unknown_store(make_run, tmp_path):
    with pytest.raises(SettingError, match="did you mean 'sqlite'"):
        make_run("sqlit")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_refuses_anything_leaves_nothing(make_run, tmp_path, disk):
    make_run(name="whole").close()
    operations = len(disk.places)
    assert operations > 15
    for at in range(operations):
        disk.order(f"*@{at}=ENOSPC")
        with pytest.raises(StorageError):
            make_run(name="deep/run")
        assert not (tmp_path / "deep" / "run").exists()
        if (tmp_path / "deep").exists():
            (tmp_path / "deep").rmdir()


def test_a_vocabulary_that_fails_leaves_nothing(make_run, tmp_path):
    def broken():
        yield (0, b"a")
        raise ZeroDivisionError

    (tmp_path / "run" / "data").mkdir(parents=True)
    with pytest.raises(ZeroDivisionError):
        make_run(vocabulary=broken())
    assert [entry.name for entry in (tmp_path / "run").iterdir()] == ["data"]


def test_a_creation_that_was_killed_is_recognised(make_run, tmp_path, disk, in_child):
    make_run(name="whole").close()
    for at in range(len(disk.places)):
        path = tmp_path / f"killed-{at}"

        def create(path=path, at=at):
            disk.order(f"*@{at}=kill")
            make_run(name=path.name)

        os.waitpid(in_child(create), 0)
        try:
            with Run.open(path) as run:
                assert run.checkpoints.steps() == []
                assert run.tokenizer_json
                assert (path / "recipe.json").exists()
        except (InputError, DamagedError) as error:
            assert "not completely created" in str(error) or "no such run" in str(error) or "not a run" in str(error)


@pytest.mark.parametrize("seconds", [0.001, 0.003, 0.006, 0.01])
def test_a_creation_in_one_file_that_was_killed_is_recognised(make_run, tmp_path, in_child, seconds):
    pid = in_child(lambda: make_run("sqlite"))
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    try:
        Run.open(tmp_path / "run").close()
    except (InputError, DamagedError) as error:
        assert "not completely created" in str(error) or "no such run" in str(error) or "not a run" in str(error)


def test_what_is_not_a_run(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    for path, message in (("nothing", "no such run"), ("", "is not a run"), ("notes.txt", "is not a run")):
        with pytest.raises(InputError, match=message):
            Run.open(tmp_path / path)


@stores
def test_two_trainings_of_one_run(make_run, store, in_child, tmp_path):
    run = make_run(store)
    with pytest.raises(InputError, match="this process"):
        Run.open(run.path, train=True)
    with Run.open(run.path) as reader:  # reading is always possible
        assert reader.recipe == run.recipe
    run.close()
    ready = tmp_path / "ready"

    def train():
        with Run.open(run.path, train=True):
            ready.touch()
            time.sleep(60)

    pid = in_child(train)
    while not ready.exists():
        time.sleep(0.002)
    with pytest.raises(InputError, match=f"is being trained by process {pid} on "):
        Run.open(run.path, train=True)
    assert list_runs(tmp_path)[0].trained_by == f"process {pid} on {socket.gethostname()}"
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    Run.open(run.path, train=True).close()


def test_a_run_that_is_forgotten_is_closed(make_run):
    run = make_run()
    path = run.path
    run.log_metrics(1, {"loss": 2.0})
    del run
    with Run.open(path, train=True) as again:
        assert again.metrics("loss") == [(1, 2.0)]


def test_a_forked_child_leaves_its_parents_run_alone(make_run, in_child):
    run = make_run()
    run.log_metrics(1, {"loss": 2.0})
    os.waitpid(in_child(run.close), 0)
    assert (run.path / "run.lock").exists()
    assert run.metrics("loss") == [(1, 2.0)]
    run.close()


def test_a_recipe_that_goes_on_differently(make_run):
    run = make_run()
    first = run.recipe
    run.update_recipe({**first, "train": {"lr": 1e-4, "steps": 20}})
    run.close()
    assert json.loads((run.path / "recipe.json").read_text())["train"]["steps"] == 20
    (run.path / "recipe.json").write_text(json.dumps(first))  # as after a kill between the database and the file
    with Run.open(run.path) as again:
        assert again.recipe["train"]["steps"] == 20
    with Run.open(run.path, train=True):
        assert json.loads((run.path / "recipe.json").read_text())["train"]["steps"] == 20


@pytest.mark.parametrize("name", ["recipe.json", "tokenizer.json", "run.db"])
@pytest.mark.parametrize("damage", ["truncated", "altered", "emptied"])
def test_damage_is_named(make_run, tmp_path, name, damage):
    make_run().close()
    path = tmp_path / "run" / name
    data = path.read_bytes()
    altered = data.replace(b'"char"', b'"cher"').replace(b'"rms"', b'"rns"')
    path.write_bytes({"truncated": data[: len(data) * 2 // 3], "altered": altered, "emptied": b""}[damage])
    with pytest.raises(DamagedError, match=name) as caught, Run.open(path.parent, train=True) as run:
        assert run.tokenizer_json
    assert caught.value.path == path
    assert not (path.parent / "run.lock").exists()


def test_without_its_database_the_weights_still_open(make_run, state, is_state):
    with make_run() as run:
        run.checkpoints.write(1, *state(1))
    (run.path / "run.db").unlink()
    with Run.open(run.path) as again:
        assert again.recipe == run.recipe
        assert again.tokenizer_json.startswith("{")
        assert is_state(again.checkpoints.read())
        assert again.metrics("loss") == []
        with pytest.raises(StorageError):
            again.add_sample(1, "", "")
    with pytest.raises(InputError, match=r"run\.db is missing"):
        Run.open(run.path, train=True)
    assert not (run.path / "run.db").exists()


def test_the_database_of_a_run_of_files_is_not_the_run(make_run, tmp_path):
    make_run().close()
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "run.db").write_bytes((tmp_path / "run" / "run.db").read_bytes())
    with pytest.raises(InputError, match=r"recipe\.json is missing"):
        Run.open(tmp_path / "copy")


def test_a_run_of_a_newer_version_is_left_alone(make_run, tmp_path):
    make_run().close()
    path = tmp_path / "run" / "run.db"
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {len(migrations.MIGRATIONS) + 1}")
    connection.close()
    with pytest.raises(InputError, match="newer Tessera"):
        Run.open(tmp_path / "run")


def test_list_runs(make_run, tmp_path, state):
    with make_run(name="a/one") as one:
        one.log_metrics(1, {"loss": 3.0, "validation_loss": 3.5})
        one.log_metrics(2, {"loss": 2.0})
        one.checkpoints.write(2, *state(2))
    with make_run("sqlite", name="two"):
        pass
    with make_run(name="three"):
        pass
    (tmp_path / "three" / "recipe.json").unlink()
    (tmp_path / "data").mkdir()
    found = {summary.path.relative_to(tmp_path).as_posix(): summary for summary in list_runs(tmp_path)}
    assert sorted(found) == ["a/one", "three", "two"]
    summary = found["a/one"]
    assert (summary.step, summary.loss, summary.validation_loss, summary.steps) == (2, 2.0, 3.5, [2])
    assert summary.trained_by is None
    assert found["two"].store == "sqlite"
    assert "not completely created" in found["three"].problem
    with pytest.raises(InputError, match="no such folder"):
        list_runs(tmp_path / "nowhere")
