import os
import signal
import time

import pytest

from tessera.errors import InputError
from tessera.store import lock
from tessera.store.lock import RunLock, lock_owner


def test_the_second_is_told_who_the_first_is(tmp_path, in_child):
    path = tmp_path / "run.lock"
    ready = tmp_path / "ready"

    def hold():
        held = RunLock(path)
        ready.touch()
        time.sleep(60)
        held.release()

    pid = in_child(hold)
    while not ready.exists():
        time.sleep(0.002)
    assert lock_owner(path) == pid
    with pytest.raises(InputError, match=f"process {pid}"):
        RunLock(path)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert lock_owner(path) is None
    held = RunLock(path)  # a killed owner leaves the file, not the lock
    assert lock_owner(path) == os.getpid()
    held.release()
    assert not path.exists()


def test_the_same_process_is_told_to_close_its_run(tmp_path):
    held = RunLock(tmp_path / "run.lock")
    with pytest.raises(InputError, match="close that run first"):
        RunLock(tmp_path / "run.lock")
    held.release()
    held.release()
    RunLock(tmp_path / "run.lock").release()


def test_a_look_at_the_owner_does_not_turn_a_training_away(tmp_path, in_child):
    path = tmp_path / "run.lock"
    path.touch()

    def look():
        while True:
            lock_owner(path)
            time.sleep(0.001)

    pid = in_child(look)
    try:
        for _ in range(20):
            RunLock(path).release()
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_file_that_its_owner_removes_while_we_wait_for_it_is_not_taken(tmp_path, monkeypatch):
    """A lock on a file without a name would keep nobody out."""
    path = tmp_path / "run.lock"
    first = RunLock(path)
    real = lock.fcntl.flock

    def flock(descriptor, operation):
        first.release()
        real(descriptor, operation)

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    second = RunLock(path)
    assert lock_owner(path) == os.getpid()
    second.release()
