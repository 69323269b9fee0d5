"""The compiler: numba, with machine code that is kept between processes in the user's cache folder.

`compiled` is for functions that work on addresses and plain numbers: they run without the GIL and check nothing. Their
code is stored under a stamp of their module and of all modules of this package that it imports, at first or at second
hand, as a function holds the code and the constants of what it uses. What cannot be read from the cache is compiled
anew. Where nothing can be written nothing is kept, but what lies there already is used.
"""

import hashlib
import logging
import re
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from itertools import count
from pathlib import Path
from secrets import randbits
from typing import Any

import numba
from numba.core.bytecode import FunctionIdentity
from numba.core.caching import CompileResultCacheImpl, FunctionCache, _CacheLocator
from numba.core.runtime import rtsys

from tessera.native.folder import cache_folder

log = logging.getLogger("tessera.native")
# Compiled functions are told apart by a number that each process counts from 1. Two of one piece of source that two
# processes compile would get the same name, and who loads both from the cache would run one in place of the other.
FunctionIdentity._unique_ids = count(randbits(48))
ROOT = Path(__file__).parents[2]
"""Where the package lies."""
IMPORT = re.compile(rb"^from (tessera[\w.]*) import (\([^)]*\)|.*)|^import (tessera[\w.]*)", re.MULTILINE)


@cache
def _say_compiling(folder: Path) -> None:
    log.warning("compiling for this machine: it takes some seconds, once if %s can be written", folder)


@cache
def _say_not_kept(folder: Path) -> None:
    what_to_do = "set TESSERA_CACHE to a folder that can be written"
    log.warning("%s cannot keep what is compiled, so the next process compiles again: %s", folder, what_to_do)


@cache
def source_stamp(source: Path) -> str:
    """The sha256 of what the compiled functions of a module may be made of: it, and all that it imports from here."""
    found, left = {source}, [source]
    while left:
        new = _imported(left.pop()) - found
        found |= new
        left += new
    digest = hashlib.sha256()
    for each in sorted(found):
        digest.update(each.name.encode() + b"\0" + each.read_bytes())
    return digest.hexdigest()


@cache
def _imported(source: Path) -> frozenset[Path]:
    """The modules of this package that a module imports; what is imported from a package may be a module itself."""
    names = set()
    for package, what, alone in IMPORT.findall(source.read_bytes()):
        place = (package or alone).decode()
        names |= {place, *(f"{place}.{name}" for name in re.findall(r"\w+", what.decode()))}
    places = [ROOT.joinpath(*name.split(".")) for name in names]
    files = [file for place in places for file in (place.with_suffix(".py"), place / "__init__.py")]
    return frozenset(file for file in files if file.is_file())


class _Locator(_CacheLocator):
    def __init__(self, source: Path) -> None:
        self._stamp = source_stamp(source)
        self._folder = cache_folder() / self._stamp[:16]

    @classmethod
    def from_function(cls, py_func: Callable[..., Any], py_file: str) -> "_Locator":
        return cls(Path(py_file))

    def get_cache_path(self) -> str:
        return str(self._folder)

    def get_source_stamp(self) -> str:
        return self._stamp

    def get_disambiguator(self) -> None:
        return None


class _CacheImpl(CompileResultCacheImpl):
    _locator_classes = [_Locator]  # type: ignore[list-item]  # noqa: RUF012 - as numba has it


class _Cache(FunctionCache):
    """numba's cache (a temporary file and a rename for each entry), for which no failure is an error."""

    _impl_class = _CacheImpl

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        found = None
        try:
            # As it is done there, but without the definitions of all that there is for the compiler to compile: machine
            # code that is there needs the memory manager alone, and they take a third of a second.
            rtsys.initialize(target_context)
            with self._guard_against_spurious_io_errors():
                found = self._load_overload(sig, target_context)
        except OSError:
            found = None  # as if it were absent: the folder cannot be, or not be looked into
        except Exception as error:  # whatever a damaged pickle raises
            log.warning("the compiled code of %s cannot be read (%r) and is made anew", self._name, error)
            with suppress(OSError):  # what can be written gets a new index, as a damaged one would keep all out
                self.flush()
        if found is None:
            _say_compiling(cache_folder())
        return found

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except Exception as error:  # the system's, or what a pickle that is damaged meanwhile raises
            log.info("the compiled code of %s is not kept (%r)", self._name, error)
            _say_not_kept(cache_folder())


def compiled(function: Callable[..., Any]) -> Any:
    """`function` as machine code for the types that it is called with: no GIL, no checks, divisions as in NumPy."""
    dispatcher: Any = numba.njit(nogil=True, boundscheck=False, error_model="numpy")(function)
    dispatcher._cache = _Cache(function)
    # What other packages add to the compiler is for their types; to import them all takes a fifth of a second.
    dispatcher._compilation_chain_init_hook = lambda: None
    return dispatcher


def inner(function: Callable[..., Any]) -> Any:
    """`compiled` for what only compiled functions call: it cannot be called from Python, and is kept within them."""
    flags: Any = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return numba.njit(nogil=True, boundscheck=False, error_model="numpy", **flags)(function)
