"""What both stores promise."""

import os
import signal
import sqlite3
import time
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tessera.errors import DamagedError, InputError, SettingError
from tessera.store import sqlite
from tessera.store.migrations import MIGRATIONS, _seals
from tessera.store.run import CHECKPOINT_STORES, Run
from tessera.store.tensors import NUMPY_DTYPES, dtype_name, tensor_bytes
from tessera.store.torch_types import DTYPES

stores = pytest.mark.parametrize("store", list(CHECKPOINT_STORES))


@pytest.fixture
def run(make_run, store):
    with make_run(store) as run:
        yield run


@stores
def test_what_is_read_is_what_was_written(run, state, is_state):
    run.checkpoints.write(3, *state(3))
    loaded = run.checkpoints.read()
    assert loaded.step == 3
    assert loaded.skipped == []
    assert is_state(loaded)


@st.composite
def named_tensors(draw):
    tensors = {}
    for number in range(draw(st.integers(0, 5))):
        dtype = DTYPES[draw(st.sampled_from(sorted(DTYPES)))]
        shape = draw(st.lists(st.integers(0, 4), max_size=4))
        n_bytes = torch.empty(shape, dtype=dtype).nbytes
        data = draw(st.binary(min_size=n_bytes, max_size=n_bytes))
        if dtype == torch.bool:
            data = bytes(byte & 1 for byte in data)
        tensor = (
            torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape) if data else torch.empty(shape, dtype=dtype)
        )
        group = draw(st.sampled_from(["model", "optimizer"]))
        tensors[f"{group}.{number}.{draw(st.text(min_size=1, max_size=3).filter(encodable))}"] = tensor
    return tensors


def encodable(text: str) -> bool:
    return all(not 0xD800 <= ord(character) < 0xE000 for character in text)


@stores
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tensors=named_tensors(), seconds=st.floats(allow_nan=False))
def test_any_type_and_shape_comes_back_bit_for_bit(run, tensors, seconds):
    run.checkpoints.write(1, tensors, {"seconds": seconds})
    loaded = run.checkpoints.read()
    assert loaded.meta == {"seconds": seconds}
    assert loaded.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        back = loaded.tensors[name]
        assert (back.dtype, back.shape) == (tensor.dtype, tensor.shape)
        assert bytes(tensor_bytes(back)) == bytes(tensor_bytes(tensor))
    run.checkpoints.write(1, {name: each for name, each in tensors.items() if dtype_name(each) in NUMPY_DTYPES}, {})
    for name, array in run.checkpoints.read(engine="numpy").tensors.items():
        assert (dtype_name(array), array.shape) == (dtype_name(tensors[name]), tensors[name].shape)
        assert bytes(tensor_bytes(array)) == bytes(tensor_bytes(tensors[name]))


@stores
def test_a_group_can_be_read_alone(run, state):
    run.checkpoints.write(3, *state(3))
    loaded = run.checkpoints.read(prefix="model")
    assert sorted(loaded.tensors) == ["model.embedding.weight", "model.head.weight"]
    assert loaded.meta["step"] == 3
    assert run.checkpoints.read(prefix="mod").tensors == {}


@stores
def test_the_newest_are_kept(run, state, is_state):
    for step in range(1, 6):
        run.checkpoints.write(step, *state(step), keep=2)
        assert run.checkpoints.steps() == [s for s in (step - 1, step) if s]
    assert is_state(run.checkpoints.read(4))


@stores
def test_keeping_more_than_there_are(run, state):
    for step in range(1, 4):
        run.checkpoints.write(step, *state(step), keep=5)
    assert run.checkpoints.steps() == [1, 2, 3]


@stores
def test_the_best_and_the_protected_stay(run, state):
    for step in (1, 2, 3, 4, 5):
        run.checkpoints.write(step, *state(step), keep=1, protect={3})
        if step == 2:
            run.checkpoints.mark_best(2)
    assert run.checkpoints.steps() == [2, 3, 5]
    assert run.checkpoints.best() == 2
    run.checkpoints.mark_best(5)
    run.checkpoints.write(6, *state(6), keep=1)
    assert run.checkpoints.steps() == [5, 6]


@stores
def test_the_same_step_again_replaces_it(run, state):
    run.checkpoints.write(1, *state(1), keep=3)
    run.checkpoints.write(2, *state(1), keep=3)
    run.checkpoints.mark_best(2)
    run.checkpoints.write(2, *state(9), keep=3)
    assert run.checkpoints.read().meta["step"] == 9
    assert run.checkpoints.steps() == [1, 2]
    assert run.checkpoints.best() == 2


@stores
def test_going_back_leaves_later_steps_behind(run, state):
    """They can be read by number; the newest is of the new line, and its first step drives them out."""
    for step in (1, 2, 3, 4):
        run.checkpoints.write(step, *state(step), keep=4)
    run.checkpoints.mark_best(3)
    run.truncate_after(2)
    assert run.checkpoints.read().step == 2
    assert run.checkpoints.read(4).step == 4
    run.checkpoints.write(3, *state(8), keep=2, protect={2})
    assert run.checkpoints.steps() == [2, 3]
    assert run.checkpoints.read().meta["step"] == 8
    assert run.checkpoints.best() is None  # the best 3 was the other 3


@stores
def test_what_is_not_there(run, state):
    with pytest.raises(InputError, match="no checkpoint yet"):
        run.checkpoints.read()
    run.checkpoints.write(1, *state(1))
    with pytest.raises(InputError, match=r"no step 7 \(steps: 1\)"):
        run.checkpoints.read(7)
    with pytest.raises(InputError, match="no step 7"):
        run.checkpoints.mark_best(7)


@stores
def test_what_cannot_be_written_is_refused_before_anything_is(run, state):
    run.checkpoints.write(1, *state(1))
    tensors, meta = state(2)
    for error, arguments, options in (
        (SettingError, (2, tensors, meta), {"keep": 0}),
        (SettingError, (-1, tensors, meta), {}),
        (InputError, (2, {"weight": torch.zeros(1)}, meta), {}),
        (TypeError, (2, tensors, {"optimizer": {0: "a"}}), {}),
    ):
        with pytest.raises(error):
            run.checkpoints.write(*arguments, **options)
    assert run.checkpoints.steps() == [1]


@stores
def test_a_run_that_was_opened_for_reading_is_not_written(run, state):
    run.checkpoints.write(1, *state(1))
    with Run.open(run.path) as reader:
        assert reader.checkpoints.read().step == 1
        with pytest.raises(InputError, match="train=True"):
            reader.checkpoints.write(2, *state(2))


@stores
def test_metrics_are_not_younger_than_the_checkpoint(run, state, monkeypatch):
    monkeypatch.setattr("tessera.store.sqlite.FLUSH_SECONDS", 1e9)
    run.log_metrics(1, {"loss": 2.0})
    run.checkpoints.write(1, *state(1))
    with Run.open(run.path) as reader:
        assert reader.metrics("loss") == [(1, 2.0)]


@stores
def test_readers_always_get_a_whole_checkpoint_while_one_trains(make_run, store, state, is_state, in_child):
    run = make_run(store)
    run.checkpoints.write(1, *state(1))
    path = run.path
    run.close()

    def train():
        with Run.open(path, train=True) as run:
            for step in range(2, 40):
                run.checkpoints.write(step, *state(step), keep=1)
                run.checkpoints.write(step, *state(step), keep=1)

    pid = in_child(train)
    seen, status = [], None
    with Run.open(path) as reader:
        while status is None:
            loaded = reader.checkpoints.read()
            assert is_state(loaded)
            assert loaded.skipped == []
            seen.append(loaded.step)
            ended, code = os.waitpid(pid, os.WNOHANG)
            status = code if ended else None
    assert status == 0
    assert seen == sorted(seen)
    assert len(set(seen)) > 1


@stores
def test_killed_at_random_moments_it_goes_on(make_run, store, state, is_state, in_child):
    run = make_run(store)
    run.checkpoints.write(0, *state(0))
    path = run.path
    run.close()
    for trial in range(6):
        train_until_killed(path, state, in_child, seconds=0.011 * trial)
        with Run.open(path, train=True) as run:
            loaded = run.checkpoints.read()
            assert is_state(loaded)
            assert loaded.skipped == []
            assert all(is_state(run.checkpoints.read(step)) for step in run.checkpoints.steps())
            assert loaded.step in run.checkpoints.index.steps()
            logged = [step for step, _ in run.metrics("loss")]
            assert set(range(1, loaded.step + 1)) <= set(logged)
    assert loaded.step > 0


def train_until_killed(path: Path, state, in_child, *, seconds: float) -> None:
    """Kill it so long after its first checkpoint."""
    saved = path.with_name("saved")

    def train():
        with Run.open(path, train=True) as run:
            step = run.checkpoints.read().step
            run.truncate_after(step)
            while True:
                step += 1
                tensors, meta = state(step)
                run.log_metrics(step, {"loss": 1 / step})
                run.checkpoints.write(step, tensors, meta, keep=2)
                saved.touch()

    pid = in_child(train)
    while not saved.exists():
        assert os.waitpid(pid, os.WNOHANG) == (0, 0), "the training ended by itself"
        time.sleep(0.001)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    saved.unlink()
    assert os.WIFSIGNALED(status), "the training ended by itself"


@stores
def test_a_step_that_was_left_behind_and_gone_back_to_counts_again(run, state):
    """Killed before its next checkpoint the run goes on from there, not from an older one."""
    for step in (1, 2, 3, 4):
        run.checkpoints.write(step, *state(step), keep=9)
    run.truncate_after(1)
    assert run.checkpoints.read().step == 1
    run.truncate_after(3)
    assert run.checkpoints.read().step == 3


@stores
@pytest.mark.parametrize("change", ["abandoned = 1", "abandoned = 0", "best = 1", "best = 0", "best = x'01'"])
def test_a_flag_that_has_changed_is_found_and_the_step_can_be_named(run, state, is_state, change):
    """They decide which checkpoint counts: nothing is guessed."""
    for step in (1, 2, 3, 4):
        run.checkpoints.write(step, *state(step), keep=9)
    run.checkpoints.mark_best(2)
    run.truncate_after(3)
    assert (run.checkpoints.best(), run.checkpoints.read().step) == (2, 3)
    step = {"abandoned = 1": 3, "abandoned = 0": 4, "best = 0": 2}.get(change, 1)
    run.close()
    with sqlite3.connect(run.path / "run.db") as connection:
        connection.execute(f"UPDATE checkpoints SET {change} WHERE step = ?", (step,))
    connection.close()
    for look in (lambda run: run.checkpoints.read(), lambda run: run.checkpoints.best()):
        with Run.open(run.path) as reader, pytest.raises(DamagedError, match=rf"run.db .* at step {step}; name the"):
            look(reader)
    with Run.open(run.path, train=True) as again:
        assert is_state(again.checkpoints.read(3))
        again.truncate_after(3)
        assert again.checkpoints.read().step == 3
        again.checkpoints.write(5, *state(5), keep=9)
        assert again.checkpoints.read().step == 5


@stores
def test_a_run_of_before_there_were_seals_opens(run, state, monkeypatch):
    run.checkpoints.write(1, *state(1))
    run.checkpoints.mark_best(1)
    run.close()
    with sqlite3.connect(run.path / "run.db") as connection:
        connection.execute("ALTER TABLE checkpoints DROP COLUMN seal")
        connection.execute("ALTER TABLE events DROP COLUMN drawn")
        connection.execute(f"PRAGMA user_version = {MIGRATIONS.index(_seals)}")
    connection.close()
    with monkeypatch.context() as patch:
        patch.setattr(sqlite.os, "access", lambda path, mode: False)  # a disk that cannot be written
        with Run.open(run.path) as old:
            assert (old.checkpoints.best(), old.checkpoints.read().step) == (1, 1)
    with Run.open(run.path, train=True) as again:
        assert (again.checkpoints.best(), again.checkpoints.read().step) == (1, 1)
        again.checkpoints.write(2, *state(2))
        assert again.checkpoints.read().step == 2
