"""Rows of 16 numbers for compiled functions: what the kernels of this folder are written in.

A value of type `floats(R)` or `ints(R)` is R vectors of 16 lanes. Most operations take one vector; those of a matrix
product take R accumulators at once, one for each row of the batch, and do the same to each, in the same order whatever
R is. LLVM makes of them what the processor has. Three things are chosen, and give the same bits:

    products of bytes   AVX-512 VNNI (`vpdpbusd`), AVX2 (`vpmaddwd`), or plain 32-bit multiplications: what is measured
                        to be the fastest (`fastest.py`)
    half precision      the conversion of F16C, or shifts and masks
    a b + c             rounded once where there is FMA; elsewhere twice, which alone differs in the last bit
"""

import inspect
from collections.abc import Callable, Sequence, Set
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, models, register_model

LANES = 16
BYTE, SHORT, WORD, LONG = (ir.IntType(bits) for bits in (8, 16, 32, 64))
NUMBER = ir.FloatType()
NUMBERS, WORDS, SHORTS = (ir.VectorType(kind, LANES) for kind in (NUMBER, WORD, SHORT))
BYTE_FACTORS = llvmlite.binding.llvm_version_info >= (22,)
"""Since LLVM 22 the factors of `vpdpbusd` are vectors of bytes; before they were of 32-bit numbers."""


class Vectors(types.Type):
    """`rows` vectors of 16 floats or ints."""

    def __init__(self, kind: str, rows: int) -> None:
        self.kind, self.rows = kind, rows
        super().__init__(name=f"{kind}x16[{rows}]")


@register_model(Vectors)
class _Model(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Vectors) -> None:
        element = NUMBERS if fe_type.kind == "float" else WORDS
        super().__init__(dmm, fe_type, ir.ArrayType(element, fe_type.rows))


def floats(rows: int = 1) -> Vectors:
    return Vectors("float", rows)


def ints(rows: int = 1) -> Vectors:
    return Vectors("int", rows)


ONE, INTS, REAL, PLACE = floats(), ints(), types.float32, types.int64
Make = Callable[..., Any]


def features_of(context: Any) -> frozenset[str]:
    """What the processor has that the code is made for."""
    return frozenset(part[1:] for part in context.codegen().magic_tuple()[2].split(",") if part.startswith("+"))


def possible_products(features: Set[str]) -> list[str]:
    """The products of bytes that a processor with these features can make, the widest first."""
    vnni = ["vnni"] if {"avx512vnni", "avx512bw", "avx512f"} <= features else []
    return [*vnni, *(["avx2"] if "avx2" in features else []), "plain"]


_preferred: list[str] = []


def prefer_product(name: str) -> None:
    """Make this one, if the processor can, of what is compiled from now on in this process."""
    _preferred[:] = [name]


def byte_product(features: Set[str]) -> str:
    """Which of the products of bytes is made: the one that was the fastest here, else the widest."""
    possible = possible_products(features)
    return next((name for name in _preferred if name in possible), possible[0])


def operation(taken: Sequence[Any], result: Any, make: Make) -> Any:
    """An intrinsic of arguments of the types `taken`, where None is any; a `result` of None is the first's type.

    `make(work, *values)` gives the value, with `work` the builder and what is known of the processor.
    """

    def typed(typingctx: Any, *args: Any) -> tuple[Any, Callable[..., Any]]:
        kinds = [kind or arg for kind, arg in zip(taken, args, strict=True)]

        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            made = make(Work(context, builder), *values)
            return context.get_dummy_value() if signature.return_type == types.void else made

        return (result or kinds[0])(*kinds), generate

    names = ["typingctx", *(f"argument{i}" for i in range(len(taken)))]
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    typed.__signature__ = inspect.Signature([inspect.Parameter(name, kind) for name in names])  # type: ignore[attr-defined]
    return intrinsic(typed)


class Work:
    """A builder, with the few things that most operations do."""

    def __init__(self, context: Any, builder: Any) -> None:
        self.build = builder
        self.features = features_of(context)

    def each(self, action: Callable[..., Any], first: Any, *others: Any) -> Any:
        """`action(r, one, ...)` for each of the vectors in the aggregates, which are as long as the first."""
        made = first
        for r in range(first.type.count):
            parts = [self.build.extract_value(each, r) for each in (first, *others)]
            made = self.build.insert_value(made, action(r, *parts), r)
        return made

    def one(self, vector: Any) -> Any:
        """A vector as an aggregate of one."""
        return self.build.insert_value(ir.Constant(ir.ArrayType(vector.type, 1), ir.Undefined), vector, 0)

    def only(self, aggregate: Any) -> Any:
        return self.build.extract_value(aggregate, 0)

    def at(self, address: Any, kind: ir.Type) -> Any:
        return self.build.inttoptr(address, kind.as_pointer())

    def load(self, address: Any, kind: ir.Type) -> Any:
        return self.build.load(self.at(address, kind), align=1)

    def store(self, value: Any, address: Any) -> None:
        self.build.store(value, self.at(address, value.type), align=1)

    def row(self, address: Any, stride: Any, r: int) -> Any:
        return self.build.add(address, self.build.mul(stride, LONG(r)))

    def everywhere(self, value: Any) -> Any:
        """A scalar in every lane."""
        none = ir.Constant(ir.VectorType(value.type, LANES), ir.Undefined)
        one = self.build.insert_element(none, value, WORD(0))
        return self.build.shuffle_vector(one, none, ir.Constant(ir.VectorType(WORD, LANES), [0] * LANES))

    def call(self, name: str, result: ir.Type, *values: Any) -> Any:
        kind = ir.FunctionType(result, [value.type for value in values])
        return self.build.call(cgutils.get_or_insert_function(self.build.module, kind, name), values)

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        """a b + c, rounded once where the processor can."""
        if "fma" in self.features or "neon" in self.features:
            return self.call("llvm.fma.v16f32", NUMBERS, a, b, c)
        return self.build.fadd(self.build.fmul(a, b), c)

    def part(self, vector: Any, lanes: Sequence[int]) -> Any:
        none = ir.Constant(vector.type, ir.Undefined)
        return self.build.shuffle_vector(vector, none, ir.Constant(ir.VectorType(WORD, len(lanes)), list(lanes)))

    def constant(self, kind: ir.Type, value: Any) -> Any:
        return ir.Constant(ir.VectorType(kind, LANES), [value] * LANES)


def _elementwise(name: str) -> Make:
    return lambda work, a, b: work.each(lambda _, x, y: getattr(work.build, name)(x, y), a, b)


def _chosen(sign: str) -> Make:
    """The greater or the lesser; the second where either is NaN."""

    def make(work: Work, a: Any, b: Any) -> Any:
        def choose(_: int, x: Any, y: Any) -> Any:
            return work.build.select(work.build.fcmp_ordered(sign, x, y), x, y)

        return work.each(choose, a, b)

    return make


def _reduced(combine: Callable[..., Any]) -> Make:
    """All lanes as one number, halves onto halves: the same order on every processor."""

    def make(work: Work, a: Any) -> Any:
        vector, width = work.only(a), LANES
        while width > 1:
            width //= 2
            low, high = work.part(vector, range(width)), work.part(vector, range(width, 2 * width))
            vector = combine(work, low, high)
        return work.build.extract_element(vector, WORD(0))

    return make


def _greater(work: Work, low: Any, high: Any) -> Any:
    return work.build.select(work.build.fcmp_ordered(">", low, high), low, high)


def _as(target: ir.Type) -> Make:
    return lambda work, a: work.one(work.build.bitcast(work.only(a), target))


def _keep_first(work: Work, a: Any, count: Any, other: Any) -> Any:
    """Lane i where i < count, else `other`."""
    lanes = ir.Constant(ir.VectorType(LONG, LANES), list(range(LANES)))
    inside = work.build.icmp_signed("<", lanes, work.everywhere(count))
    return work.one(work.build.select(inside, work.only(a), work.everywhere(other)))


def _power_of_two(work: Work, a: Any) -> Any:
    """2^n of whole numbers n from -126 to 127."""
    whole = work.build.fptosi(work.only(a), WORDS)
    biased = work.build.add(whole, work.constant(WORD, 127))
    return work.one(work.build.bitcast(work.build.shl(biased, work.constant(WORD, 23)), NUMBERS))


def _zeros(rows: int, kind: ir.Type) -> Make:
    return lambda work: ir.Constant(ir.ArrayType(kind, rows), None)


def zeros(rows: int) -> Any:
    """The operation that makes `floats(rows)` of zeros."""
    return operation([], floats(rows), _zeros(rows, NUMBERS))


def no_ints(rows: int) -> Any:
    """The operation that makes `ints(rows)` of zeros."""
    return operation([], ints(rows), _zeros(rows, WORDS))


zero = zeros(1)
splat = operation([REAL], ONE, lambda work, value: work.one(work.everywhere(value)))
load = operation([PLACE], ONE, lambda work, address: work.one(work.load(address, NUMBERS)))
load_ints = operation([PLACE], INTS, lambda work, address: work.one(work.load(address, WORDS)))
load_float = operation([PLACE], REAL, lambda work, address: work.load(address, NUMBER))
store = operation([PLACE, ONE], types.void, lambda work, address, a: work.store(work.only(a), address))
load_word = operation([PLACE], PLACE, lambda work, address: work.load(address, LONG))
store_word = operation([PLACE, PLACE], types.void, lambda work, address, value: work.store(value, address))
store_float = operation([PLACE, REAL], types.void, lambda work, address, value: work.store(value, address))
add = operation([None, None], None, _elementwise("fadd"))
add_ints = operation([None, None], None, _elementwise("add"))
subtract = operation([None, None], None, _elementwise("fsub"))
multiply = operation([None, None], None, _elementwise("fmul"))
divide = operation([None, None], None, _elementwise("fdiv"))
greater, lesser = operation([None, None], None, _chosen(">")), operation([None, None], None, _chosen("<"))
fma = operation([ONE, ONE, ONE], ONE, lambda work, *abc: work.one(work.fma(*(work.only(one) for one in abc))))
sum_of = operation([ONE], REAL, _reduced(lambda work, low, high: work.build.fadd(low, high)))
sum_of_ints = operation([INTS], types.int32, _reduced(lambda work, low, high: work.build.add(low, high)))
greatest_of = operation([ONE], REAL, _reduced(_greater))
keep_first = operation([ONE, PLACE, REAL], ONE, _keep_first)
power_of_two = operation([ONE], ONE, _power_of_two)
bits_of, numbers_of = operation([ONE], INTS, _as(WORDS)), operation([INTS], ONE, _as(NUMBERS))


def _largest(work: Work, a: Any, b: Any) -> Any:
    """The bits of the largest size in both, without a sign: what is not finite is above all others."""
    sizes = [
        work.build.and_(work.build.bitcast(work.only(each), WORDS), work.constant(WORD, 0x7FFFFFFF)) for each in (a, b)
    ]

    def combine(work: Work, low: Any, high: Any) -> Any:
        return work.build.select(work.build.icmp_unsigned(">", low, high), low, high)

    return work.build.zext(_reduced(combine)(work, work.one(combine(work, *sizes))), LONG)


def _rounded_bytes(work: Work, a: Any) -> Any:
    """The nearest whole numbers, ties to even, of numbers smaller than 2^22, as ints."""
    rounder = work.constant(NUMBER, 1.5 * 2**23)
    bits = work.build.bitcast(work.build.fadd(work.only(a), rounder), WORDS)
    return work.one(work.build.sub(bits, work.constant(WORD, 0x4B400000)))


def _whole(work: Work, a: Any) -> Any:
    rounder = work.constant(NUMBER, 1.5 * 2**23)
    return work.one(work.build.fsub(work.build.fadd(work.only(a), rounder), rounder))


def _store_bytes(work: Work, address: Any, a: Any) -> None:
    work.store(work.build.trunc(work.only(a), ir.VectorType(BYTE, LANES)), address)


def _load_bytes(work: Work, address: Any) -> Any:
    """16 signed bytes as numbers."""
    return work.one(work.build.sitofp(work.load(address, ir.VectorType(BYTE, LANES)), NUMBERS))


load_bytes = operation([PLACE], ONE, _load_bytes)
largest = operation([ONE, ONE], PLACE, _largest)
rounded = operation([ONE], INTS, _rounded_bytes)
whole = operation([ONE], ONE, _whole)
store_bytes = operation([PLACE, INTS], types.void, _store_bytes)


def _any_word(work: Work, address: Any) -> Any:
    """256 bytes read, as a word that depends on all."""
    parts = [work.load(work.build.add(address, LONG(place)), WORDS) for place in range(0, 256, 64)]
    joined = work.build.xor(work.build.xor(*parts[:2]), work.build.xor(*parts[2:]))
    halves = work.build.bitcast(joined, ir.VectorType(LONG, LANES // 2))
    return work.build.extract_element(halves, WORD(0))


any_word = operation([PLACE], PLACE, _any_word)
