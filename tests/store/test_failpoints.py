"""The door for tests: what is asked for happens, there and nowhere else; nothing is asked for, nothing happens."""

import errno
import os
import signal
from pathlib import Path

import pytest

from tessera.errors import SettingError
from tessera.store import failpoints
from tessera.store.failpoints import EXIT_STATUS, Plan

PATH = Path("folder/model.safetensors")


def test_without_the_variable_nothing_is_noted(monkeypatch):
    monkeypatch.delenv(failpoints.VARIABLE, raising=False)
    failpoints.plan.cache_clear()
    assert failpoints.plan() is None
    assert failpoints.before("write", PATH, 10) == 10
    failpoints.after("write", PATH)


def test_the_nth_place_that_fits_the_pattern(disk):
    disk.order("write:before model*@1=EIO")
    assert failpoints.before("write", PATH, 4) == 4
    failpoints.after("write", PATH)
    failpoints.before("write", PATH.with_name("state.json"), 4)
    with pytest.raises(OSError, match="Input/output") as caught:
        failpoints.before("write", PATH, 4)
    assert caught.value.errno == errno.EIO
    assert failpoints.before("write", PATH, 4) == 4
    name = "model.safetensors"
    first = [f"write:before {name}", f"write:after {name}"]
    assert disk.places == [*first, "write:before state.json", f"write:before {name}", f"write:before {name}"]


def test_with_a_plus_it_goes_on(disk):
    disk.order("fsync:*@1+=ENOSPC")
    failpoints.before("fsync", PATH)
    for _ in range(3):
        with pytest.raises(OSError, match="No space"):
            failpoints.after("fsync", PATH)


@pytest.mark.parametrize(("size", "taken"), [(9, 4), (2, 1), (1, 1), (0, 0)])
def test_a_short_write_takes_half_and_is_no_error(disk, size, taken):
    disk.order("write:*@0=short")
    assert failpoints.before("write", PATH, size) == taken
    failpoints.after("write", PATH)


def test_an_error_after_half_of_a_write(disk):
    disk.order("write:*@0=half+ENOSPC")
    assert failpoints.before("write", PATH, 10) == 5
    with pytest.raises(OSError, match="No space"):
        failpoints.after("write", PATH)
    failpoints.after("write", PATH)


@pytest.mark.parametrize("order", ["*@0=kill", "*@0=exit", "*@0=half+kill"])
def test_the_end_of_the_process(disk, in_child, order):
    disk.order(order)

    def work():
        failpoints.before("write", PATH, 10)
        failpoints.after("write", PATH)

    _, status = os.waitpid(in_child(work), 0)
    if order.endswith("exit"):
        assert os.WEXITSTATUS(status) == EXIT_STATUS
    else:
        assert os.WTERMSIG(status) == signal.SIGKILL


@pytest.mark.parametrize("text", ["kill", "*@=kill", "*@1=explode", "*@1=", "@1=kill", "*@-1=kill"])
def test_an_order_that_makes_no_sense_is_an_error(text):
    with pytest.raises(SettingError, match="TESSERA_FAILPOINTS"):
        Plan.parse(text)
