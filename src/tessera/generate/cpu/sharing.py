"""Threads that share the parts of a step, and what they need of the processor's atomics.

The thread that makes the step publishes one piece of work after the other as a number of parts. Each thread has a
share of them, parts one after the other, so that what it reads is one stretch of memory; who is done with its own takes
of the others'. A ticket holds the number of the piece and how many parts of a share are left in one word, so a part is
taken by one compare-and-swap and none of another piece. A helper that comes late finds less to do, one that never comes
is not missed.
"""

import sys
from typing import Any

from llvmlite import ir
from numba.core import types

from tessera.generate.cpu.vectors import LONG, PLACE, WORD, Work, load_word, operation, store_word
from tessera.native.jit import inner

LINE = 128
PIECE, DONE, ACTION, LAYER, PARTS, BUSY, STOP, TICKETS = (LINE * place for place in range(8))
"""The places of the control block, each in cache lines of its own; a ticket for each thread is at the end."""
LEFT = 0xFFFFFFFF
"""The bits of a ticket that say how many parts are left."""


def _load(work: Work, address: Any) -> Any:
    return work.build.load_atomic(work.at(address, LONG), "acquire", 8)


def _store(work: Work, address: Any, value: Any) -> None:
    work.build.store_atomic(value, work.at(address, LONG), "release", 8)


def _add(work: Work, address: Any, value: Any) -> Any:
    return work.build.atomic_rmw("add", work.at(address, LONG), value, "acq_rel")


def _swap(work: Work, address: Any, old: Any, new: Any) -> Any:
    found = work.build.cmpxchg(work.at(address, LONG), old, new, "acq_rel", "acquire")
    return work.build.zext(work.build.extract_value(found, 1), LONG)


def _pause(work: Work) -> None:
    """A moment in which the processor need not hurry."""
    if "sse2" in work.features:
        work.call("llvm.x86.sse2.pause", ir.VoidType())


def _give_way(work: Work) -> None:
    """Let another thread have the processor, where the system has a call for it."""
    if sys.platform != "win32":
        work.call("sched_yield", WORD)


load_shared = operation([PLACE], PLACE, _load)
store_shared = operation([PLACE, PLACE], types.void, _store)
add_shared = operation([PLACE, PLACE], PLACE, _add)
swap_shared = operation([PLACE, PLACE, PLACE], PLACE, _swap)
pause = operation([], types.void, _pause)
give_way = operation([], types.void, _give_way)


def call_address(n: int) -> Any:
    """The operation that calls the function at an address with `n` whole numbers; it returns one."""

    def make(work: Work, address: Any, *values: Any) -> Any:
        kind = ir.FunctionType(LONG, [LONG] * n)
        return work.build.call(work.build.inttoptr(address, kind.as_pointer()), values)

    return operation([PLACE] * (n + 1), PLACE, make)


@inner
def first_part(thread, n_threads, n_parts):  # type: ignore[no-untyped-def]
    """Where the share of a thread begins; that of the next one is its end."""
    return n_parts * thread // n_threads


@inner
def publish(control, n_threads, action, layer, n_parts):  # type: ignore[no-untyped-def]
    """A piece of work, once the one before it is done."""
    store_word(control + ACTION, action)
    store_word(control + LAYER, layer)
    store_word(control + PARTS, n_parts)
    store_shared(control + DONE, 0)
    piece = load_shared(control + PIECE) + 1
    for thread in range(n_threads):
        left = first_part(thread + 1, n_threads, n_parts) - first_part(thread, n_threads, n_parts)
        store_shared(control + TICKETS + LINE * thread, piece << 32 | left)
    store_shared(control + PIECE, piece)


@inner
def take(control, own, n_threads):  # type: ignore[no-untyped-def]
    """The number of a part that is ours now, of our own share as long as there are any; -1 if none is left."""
    for further in range(n_threads):
        thread = (own + further) % n_threads
        while True:
            ticket = load_shared(control + TICKETS + LINE * thread)
            left = ticket & LEFT
            if left == 0:
                break
            if swap_shared(control + TICKETS + LINE * thread, ticket, ticket - 1) != 0:
                return first_part(thread + 1, n_threads, load_word(control + PARTS)) - left
    return -1
