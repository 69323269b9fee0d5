"""The kernels tried out in a process of their own, once on a machine, before a session relies on them.

What is compiled wrongly for a processor would end the process in which it runs, without a word. So another process
measures which of the products of bytes is the fastest here, compiles all kernels with it, which keeps them on the disk
as well, runs a small model in every storage and holds it against NumPy. What it has found is noted beside the compiled
code, for this processor and these sources.
"""

import hashlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numba
from numba.core.registry import cpu_target

from tessera.errors import InputError
from tessera.generate.cpu import fastest, kernels, panels, step
from tessera.generate.cpu.vectors import prefer_product
from tessera.native.folder import cache_folder
from tessera.native.jit import source_stamp

log = logging.getLogger(__name__)
PATIENCE = 600
"""Seconds after which a process that tries the kernels out is taken for stuck."""
MODULE = "tessera.generate.cpu"
HINT = "the torch path does without them"


def check_kernels(say: Callable[[str], None]) -> None:
    """Return if the kernels have worked on this machine, now or before; an `InputError` says what happened else."""
    note = _note()
    if note is not None:
        with suppress(OSError, ValueError):
            prefer_product(note.read_text())
            return
    say("compiling the CPU kernels for this machine, and trying them out: about half a minute, once")
    try:
        done = subprocess.run(
            [sys.executable, "-m", MODULE], env=_environment(), capture_output=True, text=True, timeout=PATIENCE
        )
    except subprocess.TimeoutExpired:
        raise InputError(f"the CPU kernels were not done after {PATIENCE} seconds of trying them out; {HINT}") from None
    except OSError as error:
        raise InputError(f"the CPU kernels cannot be tried out ({error.strerror or error}); {HINT}") from None
    if done.returncode != 0:
        raise InputError(f"the CPU kernels do not work on this machine: {_what_happened(done)}; {HINT}")
    product = done.stdout.strip()
    log.info("the fastest product of bytes here: %s", product)
    prefer_product(product)
    if note is not None:
        with suppress(OSError):  # then the next process tries them out again
            note.write_text(product)


def _note() -> Path | None:
    """The file that says that the kernels worked; None where there is no place for it."""
    target = repr((cpu_target.target_context.codegen().magic_tuple(), numba.__version__, sys.version_info))
    made_of = [source_stamp(Path(str(module.__file__))) for module in (fastest, kernels, panels, step)]
    folder = cache_folder()
    if not folder.is_dir():
        with suppress(OSError):
            folder.mkdir(parents=True)
    name = hashlib.sha256("\0".join([target, *made_of]).encode()).hexdigest()[:16]
    return folder / f"worked-{name}" if folder.is_dir() else None


def _environment() -> dict[str, str]:
    """The same modules are found, wherever this process has them from."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def _what_happened(done: "subprocess.CompletedProcess[str]") -> str:
    log.info("the output of the kernels' trial: %s", done.stderr)
    if done.returncode < 0:
        try:
            return f"the process that tried them ended by {signal.Signals(-done.returncode).name}"
        except ValueError:
            return f"the process that tried them ended by signal {-done.returncode}"
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"the process that tried them ended with {done.returncode}"
