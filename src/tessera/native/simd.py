"""64 bytes at once, each as one bit of a uint64: the lowest bit is the byte at the address.

LLVM makes of a vector what the processor has: two instructions with AVX-512, a few more elsewhere, the same bits on
every machine (Langdale and Lemire 2019, "Parsing Gigabytes of JSON per Second", section 3, is the idea).
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

LANES = 64
BYTE, WORD = ir.IntType(8), ir.IntType(64)
BYTES = ir.VectorType(BYTE, LANES)


def _everywhere(builder: Any, value: Any) -> Any:
    """The low byte of an integer in every lane."""
    none = ir.Constant(BYTES, ir.Undefined)
    one = builder.insert_element(none, builder.trunc(value, BYTE), ir.IntType(32)(0))
    return builder.shuffle_vector(one, none, ir.Constant(ir.VectorType(ir.IntType(32), LANES), None))


def _which_bytes(typingctx: Any, address: Any, fold: Any, first: Any, count: Any) -> tuple[Any, Callable[..., Any]]:
    """A 1 for each of 64 bytes that, with the bits of `fold` set, is one of the `count` values from `first` on."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        text = builder.load(builder.inttoptr(args[0], BYTES.as_pointer()), align=1)
        fold, first, count = (_everywhere(builder, value) for value in args[1:])
        found = builder.icmp_unsigned("<", builder.sub(builder.or_(text, fold), first), count)
        return builder.bitcast(found, WORD)

    return types.uint64(types.int64, types.int64, types.int64, types.int64), generate


def _bits(builder: Any, name: str, bits: Any, *flags: int) -> Any:
    """One of LLVM's functions from a word to a word; `flags` are what it takes besides."""
    kind = ir.FunctionType(WORD, [WORD, *(ir.IntType(1) for _ in flags)])
    function = builder.module.declare_intrinsic(name, [WORD], kind)
    return builder.call(function, [bits, *(ir.IntType(1)(flag) for flag in flags)])


def _zeros_above(typingctx: Any, bits: Any) -> tuple[Any, Callable[..., Any]]:
    """How many zeros are above the highest 1 of a uint64; 64 for zero."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _bits(builder, "llvm.ctlz", args[0], 0)

    return types.int64(types.uint64), generate


def _ones(typingctx: Any, bits: Any) -> tuple[Any, Callable[..., Any]]:
    """How many bits of a uint64 are 1."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _bits(builder, "llvm.ctpop", args[0])

    return types.int64(types.uint64), generate


def _store_places(typingctx: Any, address: Any, base: Any, bits: Any) -> tuple[Any, Callable[..., Any]]:
    """Write base + the places of the lowest eight 1s as int64, and give the uint64 without them.

    Eight are always written, what they are beyond the last 1 is of no meaning: no branch depends on their number.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address, base, bits = args
        first = builder.inttoptr(address, WORD.as_pointer())
        for slot in range(8):
            place = builder.add(base, _bits(builder, "llvm.cttz", bits, 0))
            builder.store(place, builder.gep(first, [WORD(slot)]), align=1)
            bits = builder.and_(bits, builder.sub(bits, WORD(1)))
        return bits

    return types.uint64(types.int64, types.int64, types.uint64), generate


# An intrinsic is called without the first argument that its definition takes, which a type checker cannot know.
which_bytes: Any = intrinsic(_which_bytes)
zeros_above: Any = intrinsic(_zeros_above)
ones: Any = intrinsic(_ones)
store_places: Any = intrinsic(_store_places)
