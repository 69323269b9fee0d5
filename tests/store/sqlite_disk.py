"""SQLite's own writes, through the same fail points as ours.

SQLite reaches the disk through a table of functions, its VFS (sqlite.org/vfs.html). `install` makes a copy of the
default one whose writes, syncs, truncations and deletions are ours: they say where they are (`store.failpoints`), then
do what SQLite would have done. So a test can refuse, shorten or end any of them, with the library as it is.
"""

import ctypes
import errno
from ctypes import CFUNCTYPE, POINTER, Structure, byref, c_char_p, c_int, c_int64, c_void_p
from pathlib import Path
from typing import Any

import pytest

from tessera.store import failpoints

OK, FULL, IOERR = 0, 13, 10
IOERR_WRITE, IOERR_FSYNC, IOERR_TRUNCATE, IOERR_DELETE = (IOERR | number << 8 for number in (3, 4, 6, 10))

# A name is passed on as the address that it came as: SQLite keeps parameters behind the end of the string.
XOpen = CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p, c_int, c_void_p)
XDelete = CFUNCTYPE(c_int, c_void_p, c_void_p, c_int)
XWrite = CFUNCTYPE(c_int, c_void_p, c_void_p, c_int, c_int64)
XSync = CFUNCTYPE(c_int, c_void_p, c_int)
XTruncate = CFUNCTYPE(c_int, c_void_p, c_int64)


class Methods(Structure):
    """sqlite3_io_methods, version 3."""

    _fields_ = (
        ("version", c_int),
        ("close", c_void_p),
        ("read", c_void_p),
        ("write", c_void_p),
        ("truncate", c_void_p),
        ("sync", c_void_p),
        ("others", c_void_p * 13),
    )


class File(Structure):
    """sqlite3_file."""

    _fields_ = (("methods", POINTER(Methods)),)


class Vfs(Structure):
    """sqlite3_vfs, version 3."""

    _fields_ = (
        ("version", c_int),
        ("file_size", c_int),
        ("longest_path", c_int),
        ("next", c_void_p),
        ("name", c_char_p),
        ("data", c_void_p),
        ("open", c_void_p),
        ("delete", c_void_p),
        ("others", c_void_p * 14),
    )


def address(function: Any) -> int:
    found = ctypes.cast(function, c_void_p).value
    assert found is not None
    return found


def code(refused: OSError, otherwise: int) -> int:
    return FULL if refused.errno == errno.ENOSPC else otherwise


class FaultyDisk:
    """The VFS; it must live as long as the process, since SQLite keeps its address."""

    def __init__(self, library: ctypes.CDLL) -> None:
        library.sqlite3_vfs_find.restype = POINTER(Vfs)
        base = library.sqlite3_vfs_find(None).contents
        self._open, self._delete = XOpen(base.open), XDelete(base.delete)
        self._methods: dict[int, Methods] = {}
        self._real: dict[int, Methods] = {}
        self._paths: dict[int, Path] = {}
        self._kept = [XOpen(self.open), XDelete(self.delete), XWrite(self.write), XSync(self.sync)]
        self._kept.append(XTruncate(self.truncate))
        opened, deleted = (address(function) for function in self._kept[:2])
        self.vfs = Vfs.from_buffer_copy(base)
        self.vfs.next, self.vfs.name, self.vfs.open, self.vfs.delete = None, b"faulty", opened, deleted
        assert library.sqlite3_vfs_register(byref(self.vfs), 1) == OK

    def open(self, vfs: int, name: int | None, file: int, flags: int, out: int) -> int:
        status = self._open(vfs, name, file, flags, out)
        methods = File.from_address(file).methods
        if status == OK and methods and name is not None:
            where = ctypes.addressof(methods.contents)
            if where not in self._methods:
                ours = Methods.from_buffer_copy(methods.contents)
                ours.write, ours.sync, ours.truncate = (address(function) for function in self._kept[2:])
                self._methods[where] = ours
            self._real[file], self._paths[file] = methods.contents, Path(ctypes.string_at(name).decode())
            File.from_address(file).methods = ctypes.pointer(self._methods[where])
        return status

    def delete(self, vfs: int, name: int, sync: int) -> int:
        path = Path(ctypes.string_at(name).decode())
        try:
            failpoints.before("remove", path)
            status = self._delete(vfs, name, sync)
            failpoints.after("remove", path)
        except OSError as refused:
            return code(refused, IOERR_DELETE)
        return status

    def write(self, file: int, data: int, size: int, offset: int) -> int:
        path, write = self._paths[file], XWrite(self._real[file].write)
        try:
            while size:
                some = failpoints.before("write", path, size)
                status = write(file, data, some, offset)
                failpoints.after("write", path)
                if status != OK:
                    return status
                data, size, offset = data + some, size - some, offset + some
        except OSError as refused:
            return code(refused, IOERR_WRITE)
        return OK

    def sync(self, file: int, flags: int) -> int:
        try:
            failpoints.before("fsync", self._paths[file])
            status = XSync(self._real[file].sync)(file, flags)
            failpoints.after("fsync", self._paths[file])
        except OSError as refused:
            return code(refused, IOERR_FSYNC)
        return status

    def truncate(self, file: int, size: int) -> int:
        try:
            failpoints.before("truncate", self._paths[file])
            status = XTruncate(self._real[file].truncate)(file, size)
            failpoints.after("truncate", self._paths[file])
        except OSError as refused:
            return code(refused, IOERR_TRUNCATE)
        return status


INSTALLED: list[FaultyDisk] = []


def library() -> Path:
    """SQLite's own, as this process has loaded it; skips the test where it is a part of Python."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    found = sorted({line.split()[-1] for line in lines if "libsqlite3" in line})
    if not found:
        pytest.skip("this Python has SQLite built in: its writes cannot be reached")
    return Path(found[0])


def install() -> None:
    """From here on every database that this process opens goes through the fail points; there is no way back."""
    if not INSTALLED:
        INSTALLED.append(FaultyDisk(ctypes.CDLL(str(library()))))
