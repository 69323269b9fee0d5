"""Raw memory for compiled functions: an address is an int64, and whoever passes one answers for it.

Loads of 8, 16 and 32 bits give an int64, as numba makes a float of a uint64 and an int64; 64 bits give a uint64.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic


def address_of(array: np.ndarray) -> int:
    """Where the first element lies; the array must be contiguous and outlive the use of the address."""
    return int(array.ctypes.data)


def _load(bits: int, result: Any) -> Any:
    def load(typingctx: Any, address: Any) -> tuple[Any, Callable[..., Any]]:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            width = ir.IntType(bits)
            pointer = builder.inttoptr(args[0], width.as_pointer())
            value = builder.load(pointer, align=1)
            return value if bits == 64 else builder.zext(value, ir.IntType(64))

        return result(types.int64), generate

    load.__name__ = f"load{bits}"
    return intrinsic(load)


def _store(bits: int, taken: Any) -> Any:
    def store(typingctx: Any, address: Any, value: Any) -> tuple[Any, Callable[..., Any]]:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            width = ir.IntType(bits)
            pointer = builder.inttoptr(args[0], width.as_pointer())
            value = args[1] if bits == 64 else builder.trunc(args[1], width)
            builder.store(value, pointer, align=1)
            return context.get_dummy_value()

        return types.void(types.int64, taken), generate

    store.__name__ = f"store{bits}"
    return intrinsic(store)


load8, load16, load32 = _load(8, types.int64), _load(16, types.int64), _load(32, types.int64)
load64 = _load(64, types.uint64)
store8, store16, store32 = _store(8, types.int64), _store(16, types.int64), _store(32, types.int64)
store64 = _store(64, types.uint64)


def _prefetch(typingctx: Any, address: Any) -> tuple[Any, Callable[..., Any]]:
    """Ask for the cache line of `address`, which will be read soon."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        function = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        builder.call(function, [builder.inttoptr(args[0], byte), word(0), word(3), word(1)])
        return context.get_dummy_value()

    return types.void(types.int64), generate


def _first_set(typingctx: Any, bits: Any) -> tuple[Any, Callable[..., Any]]:
    """How many zeros are below the lowest 1 of a uint64; 64 for zero."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = ir.IntType(64)
        kind = ir.FunctionType(word, [word, ir.IntType(1)])
        function = builder.module.declare_intrinsic("llvm.cttz", [word], kind)
        return builder.call(function, [args[0], ir.IntType(1)(0)])

    return types.int64(types.uint64), generate


prefetch: Any = intrinsic(_prefetch)
first_set: Any = intrinsic(_first_set)
