"""The operations of a matrix product, on the accumulators of 1, 4 or 8 rows at once; and numbers of half the width.

Of a weight's 16 rows and some columns, one vector is loaded and serves all rows of the batch; what belongs to a row of
the batch is one number at `address + r * stride`, spread over the lanes.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types

from tessera.generate.cpu.vectors import (
    BYTE,
    BYTE_FACTORS,
    INTS,
    LANES,
    NUMBER,
    NUMBERS,
    ONE,
    PLACE,
    SHORT,
    SHORTS,
    WORD,
    WORDS,
    Make,
    Work,
    byte_product,
    floats,
    ints,
    operation,
)

HALF = ir.HalfType()


def _wide(work: Work, bits: Any) -> Any:
    """Half precision to single, exactly: by its own instruction, else by moving the bits and scaling by 2^112."""
    if work.features & {"f16c", "avx512f", "neon"}:
        return work.build.fpext(work.build.bitcast(bits, ir.VectorType(HALF, LANES)), NUMBERS)
    bits = work.build.zext(bits, WORDS)
    sign = work.build.shl(work.build.and_(bits, work.constant(WORD, 0x8000)), work.constant(WORD, 16))
    size = work.build.shl(work.build.and_(bits, work.constant(WORD, 0x7FFF)), work.constant(WORD, 13))
    scaled = work.build.fmul(work.build.bitcast(size, NUMBERS), work.constant(NUMBER, 2.0**112))
    special = work.build.icmp_unsigned(">=", size, work.constant(WORD, 0x7C00 << 13))
    infinite = work.build.or_(size, work.constant(WORD, 0x7F800000))
    found = work.build.select(special, infinite, work.build.bitcast(scaled, WORDS))
    return work.build.bitcast(work.build.or_(found, sign), NUMBERS)


def _load_halves(work: Work, address: Any) -> Any:
    return work.one(_wide(work, work.load(address, SHORTS)))


def _store_halves(work: Work, address: Any, a: Any) -> None:
    """Single precision to half, ties to even; what is too large becomes infinite."""
    if work.features & {"f16c", "avx512f", "neon"}:
        work.store(work.build.fptrunc(work.only(a), ir.VectorType(HALF, LANES)), address)
        return
    build, constant = work.build, work.constant
    bits = build.bitcast(work.only(a), WORDS)
    sign = build.lshr(build.and_(bits, constant(WORD, -(2**31))), constant(WORD, 16))
    size = build.and_(bits, constant(WORD, 0x7FFFFFFF))
    # A normal half: the exponent moved, and the 13 bits that go rounded to even by an addition.
    odd = build.and_(build.lshr(size, constant(WORD, 13)), constant(WORD, 1))
    moved = build.sub(build.add(build.add(size, constant(WORD, 0xFFF)), odd), constant(WORD, 112 << 23))
    normal = build.lshr(moved, constant(WORD, 13))
    # A subnormal one: a sum with 1/2 leaves its bits at the end of the fraction.
    half = constant(NUMBER, 0.5)
    small = build.sub(build.bitcast(build.fadd(build.bitcast(size, NUMBERS), half), WORDS), build.bitcast(half, WORDS))
    found = build.select(build.icmp_unsigned("<", size, constant(WORD, 113 << 23)), small, normal)
    large = build.icmp_unsigned(">=", size, constant(WORD, 0x477FF000))
    found = build.select(large, constant(WORD, 0x7C00), found)
    nothing = build.icmp_unsigned(">", size, constant(WORD, 0x7F800000))
    found = build.select(nothing, constant(WORD, 0x7E00), found)
    work.store(build.trunc(build.or_(found, sign), SHORTS), address)


def _dot(work: Work, total: Any, weights: Any, address: Any, stride: Any, name: str | None = None) -> Any:
    """total + the products of 16 x 4 unsigned bytes with 4 signed bytes of each row, by the product of this name."""
    product = PRODUCTS[name or byte_product(work.features)]
    w = work.only(weights)

    def dot(r: int, one: Any) -> Any:
        x = work.everywhere(work.load(work.row(address, stride, r), WORD))
        return product(work, one, w, x)

    return work.each(dot, total)


def _dot_vnni(work: Work, total: Any, w: Any, x: Any) -> Any:
    if BYTE_FACTORS:
        w, x = (work.build.bitcast(each, ir.VectorType(BYTE, 4 * LANES)) for each in (w, x))
    return work.call("llvm.x86.avx512.vpdpbusd.512", WORDS, total, w, x)


def _dot_avx2(work: Work, total: Any, w: Any, x: Any) -> Any:
    """Bytes at even places and at odd ones, as 16 bits each, whose products in pairs fit into 32."""
    build, kind = work.build, ir.VectorType(SHORT, 2 * LANES)
    w, x = build.bitcast(w, kind), build.bitcast(x, kind)
    eight, low = (ir.Constant(kind, [value] * 2 * LANES) for value in (8, 255))
    pairs = (
        (build.and_(w, low), build.ashr(build.shl(x, eight), eight)),
        (build.lshr(w, eight), build.ashr(x, eight)),
    )
    sums = []
    for place in range(0, 2 * LANES, 16):
        lanes = range(place, place + 16)
        products = [
            work.call("llvm.x86.avx2.pmadd.wd", ir.VectorType(WORD, 8), work.part(a, lanes), work.part(b, lanes))
            for a, b in pairs
        ]
        sums.append(build.add(*products))
    both = build.shuffle_vector(*sums, ir.Constant(ir.VectorType(WORD, LANES), list(range(LANES))))
    return build.add(total, both)


def _dot_plain(work: Work, total: Any, w: Any, x: Any) -> Any:
    build = work.build
    for place in range(4):
        w_byte = build.and_(build.lshr(w, work.constant(WORD, 8 * place)), work.constant(WORD, 255))
        x_byte = build.ashr(build.shl(x, work.constant(WORD, 24 - 8 * place)), work.constant(WORD, 24))
        total = build.add(total, build.mul(w_byte, x_byte))
    return total


PRODUCTS: dict[str, Callable[..., Any]] = {"vnni": _dot_vnni, "avx2": _dot_avx2, "plain": _dot_plain}


def dot_by(name: str) -> Any:
    """`dot` by the product of this name, to be measured."""

    def make(work: Work, total: Any, weights: Any, address: Any, stride: Any) -> Any:
        return _dot(work, total, weights, address, stride, name)

    return operation([None, INTS, PLACE, PLACE], None, make)


def starts(rows: int) -> Any:
    """The operation that makes `ints(rows)`: in all lanes the word of a row, divided by 2^`shift`."""

    def make(work: Work, address: Any, stride: Any, shift: Any) -> Any:
        shift = work.everywhere(work.build.trunc(shift, WORD))

        def one(r: int, _: Any) -> Any:
            word = work.everywhere(work.load(work.row(address, stride, r), WORD))
            return work.build.ashr(word, shift)

        return work.each(one, ir.Constant(ir.ArrayType(WORDS, rows), ir.Undefined))

    return operation([PLACE, PLACE, PLACE], ints(rows), make)


def _row_factor(work: Work, address: Any, stride: Any, r: int) -> Any:
    return work.everywhere(work.load(work.row(address, stride, r), NUMBER))


def _add_scaled(work: Work, total: Any, found: Any, scales: Any, address: Any, stride: Any) -> Any:
    """total + found * (scales * the row's number)."""
    scales = work.only(scales)

    def add(r: int, one: Any, ints_: Any) -> Any:
        both = work.build.fmul(scales, _row_factor(work, address, stride, r))
        return work.fma(work.build.sitofp(ints_, NUMBERS), both, one)

    return work.each(add, total, found)


def _add_products(work: Work, total: Any, weights: Any, address: Any, stride: Any) -> Any:
    """total + weights * the row's number."""
    w = work.only(weights)
    return work.each(lambda r, one: work.fma(w, _row_factor(work, address, stride, r), one), total)


def _scale_rows(work: Work, total: Any, factors: Any) -> Any:
    """total * factors, the same for all rows."""
    factor = work.only(factors)
    return work.each(lambda _, one: work.build.fmul(one, factor), total)


def _store_rows(work: Work, address: Any, stride: Any, total: Any) -> None:
    for r in range(total.type.count):
        work.store(work.build.extract_value(total, r), work.row(address, stride, r))


def load_rows(rows: int) -> Any:
    """The operation that makes `floats(rows)` of what is stored."""

    def make(work: Work, address: Any, stride: Any) -> Any:
        none = ir.Constant(ir.ArrayType(NUMBERS, rows), ir.Undefined)
        return work.each(lambda r, _: work.load(work.row(address, stride, r), NUMBERS), none)

    return operation([PLACE, PLACE], floats(rows), make)


def _row_of(work: Work, total: Any, r: Any) -> Any:
    """The vector of a row, of those that are known when compiled."""
    found = work.build.extract_value(total, 0)
    for i in range(1, total.type.count):
        found = work.build.select(
            work.build.icmp_signed("==", r, ir.IntType(64)(i)), work.build.extract_value(total, i), found
        )
    return work.one(found)


def _nibbles(shift: int) -> Make:
    def make(work: Work, a: Any) -> Any:
        bits = work.build.lshr(work.only(a), work.constant(WORD, shift))
        return work.one(work.build.and_(bits, work.constant(WORD, 0x0F0F0F0F)))

    return make


def _first_bf16(work: Work, a: Any) -> Any:
    """The lower halves of words, which are the upper halves of floats."""
    return work.one(work.build.bitcast(work.build.shl(work.only(a), work.constant(WORD, 16)), NUMBERS))


def _second_bf16(work: Work, a: Any) -> Any:
    return work.one(work.build.bitcast(work.build.and_(work.only(a), work.constant(WORD, -(2**16))), NUMBERS))


load_halves = operation([PLACE], ONE, _load_halves)
store_halves = operation([PLACE, ONE], types.void, _store_halves)
low_nibbles, high_nibbles = operation([INTS], INTS, _nibbles(0)), operation([INTS], INTS, _nibbles(4))
first_bf16, second_bf16 = operation([INTS], ONE, _first_bf16), operation([INTS], ONE, _second_bf16)
dot = operation([None, INTS, PLACE, PLACE], None, _dot)
add_scaled = operation([None, None, ONE, PLACE, PLACE], None, _add_scaled)
add_products = operation([None, ONE, PLACE, PLACE], None, _add_products)
scale_rows = operation([None, ONE], None, _scale_rows)
store_rows = operation([PLACE, PLACE, None], types.void, _store_rows)
row_of = operation([None, PLACE], ONE, _row_of)
load_half = operation([PLACE], types.float32, lambda work, address: _half_of(work, address))


def _half_of(work: Work, address: Any) -> Any:
    return work.build.extract_element(_wide(work, work.everywhere(work.load(address, SHORT))), WORD(0))
