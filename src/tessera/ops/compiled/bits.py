"""The bits of a number as an integer, and back: the same register under another type."""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic


def _bitcast(source: Any, target: Any, kind: ir.Type) -> Any:
    def same_bits(typingctx: Any, value: Any) -> tuple[Any, Callable[..., Any]]:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.bitcast(args[0], kind)

        return target(source), generate

    return intrinsic(same_bits)


bits_of: Any = _bitcast(types.float32, types.int32, ir.IntType(32))
number_of: Any = _bitcast(types.int32, types.float32, ir.FloatType())
