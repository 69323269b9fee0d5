import json
import os
import re
import signal
import socket
import threading
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
    owner = lock_owner(path)
    assert owner is not None
    assert (owner.process, owner.host) == (pid, socket.gethostname())
    with pytest.raises(InputError, match=f"is being trained by process {pid} on {re.escape(socket.gethostname())}: "):
        RunLock(path)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert lock_owner(path) is None
    held = RunLock(path)  # a killed owner leaves the file, not the lock
    assert lock_owner(path).process == os.getpid()
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
    assert lock_owner(path).process == os.getpid()
    second.release()


ELSEWHERE = {"process": 7, "host": "another-machine", "boot": "00000000-0000-0000-0000-000000000000"}


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.02)
    monkeypatch.setattr(lock, "WATCH_SECONDS", 0.4)


@pytest.mark.usefixtures("quick")
def test_the_lock_of_another_machine_that_stands_still_was_left_behind(tmp_path):
    """Where the kernels do not see each other's locks, only the file tells."""
    path, said = tmp_path / "run.lock", []
    path.write_text(json.dumps(ELSEWHERE))
    held = RunLock(path, say=said.append)
    assert said == ["took over the lock that process 7 on another-machine left behind"]
    assert lock_owner(path).process == os.getpid()
    held.release()
    assert not path.exists()


@pytest.mark.usefixtures("quick")
def test_the_lock_of_another_machine_that_is_renewed_is_respected(tmp_path):
    path, done = tmp_path / "run.lock", threading.Event()
    path.write_text(json.dumps(ELSEWHERE))

    def renew():
        while not done.wait(0.02):
            os.utime(path)

    owner = threading.Thread(target=renew)
    owner.start()
    try:
        with pytest.raises(InputError, match=r"trained by process 7 on another-machine: .* is being renewed"):
            RunLock(path)
        assert json.loads(path.read_text()) == ELSEWHERE
    finally:
        done.set()
        owner.join()


@pytest.mark.parametrize(
    "changes",
    [
        {"boot": lock._boot()},  # another container on this kernel: the lock would have been seen
        {"host": socket.gethostname()},  # this machine before it was started again
    ],
)
def test_a_lock_that_the_kernel_vouches_for_is_taken_at_once(tmp_path, changes, monkeypatch):
    monkeypatch.setattr(lock, "WATCH_SECONDS", 1e9)
    path = tmp_path / "run.lock"
    path.write_text(json.dumps(ELSEWHERE | changes))
    RunLock(path).release()


@pytest.mark.parametrize("content", ["", "123", "{", "[]", '{"pid": 3}', "\x00\xff"])
def test_a_lock_file_that_says_nothing_is_no_obstacle(tmp_path, content):
    path = tmp_path / "run.lock"
    path.write_text(content)
    RunLock(path).release()


@pytest.mark.usefixtures("quick")
def test_the_owner_renews_its_lock_until_it_lets_go(tmp_path):
    path = tmp_path / "run.lock"
    held = RunLock(path)
    before = path.stat().st_mtime_ns
    deadline = time.monotonic() + 10
    while path.stat().st_mtime_ns == before:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    held.release()
    assert not [thread for thread in threading.enumerate() if thread.name == "run lock"]
