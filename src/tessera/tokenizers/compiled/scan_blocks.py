"""Many pieces at a time: where pieces begin among the next 64 bytes, as bits, by arithmetic on whole words of bits.

Each class of characters is a mask, a bit for each byte (all bytes of a character alike). `mask << 1` is then "the one
before is of this class", `mask >> 1` "the one after", and adding a bit to a mask runs to the end of a run of ones. No
branch depends on where a word ends, which is what a loop over pieces pays for.

What is rare or would need more than 64 bytes is left to `scan_pieces`: a mask is decided up to the first hard
character only, and `starts` gives no more than is certain.
"""

import numpy as np

from tessera.native.jit import inner
from tessera.native.memory import first_set
from tessera.native.simd import which_bytes, zeros_above
from tessera.tokenizers.compiled.scan_pieces import (
    GPT2,
    HARD,
    LETTER,
    LOWER,
    O200K,
    QWEN2,
    SMOLLM,
    UPPER,
    look,
)

ONE, TWO, THREE, FOUR, EIGHT, SIXTEEN = (np.uint64(number) for number in (1, 2, 3, 4, 8, 16))
NONE, ALL = np.uint64(0), np.uint64(2**64 - 1)


@inner
def below(place):  # type: ignore[no-untyped-def]
    """Ones below bit `place`, which is 0 to 64."""
    return ALL >> np.uint64(64 - place) if place > 0 else NONE


@inner
def spread(mask, more):  # type: ignore[no-untyped-def]
    """From the first byte of characters to all their bytes; `more` are the bytes that continue one."""
    mask |= (mask << ONE) & more
    mask |= (mask << ONE) & more
    return mask | (mask << ONE) & more


@inner
def wide_letters(table, text, leads):  # type: ignore[no-untyped-def]
    """Of the characters of two to four bytes that begin at `leads`: the letters, the two halves of words, hard ones.

    The last is the first hard one alone, and beyond it nothing is looked at.
    """
    letters, upper, lower = NONE, NONE, NONE
    while leads:
        at = first_set(leads)
        seen = look(table, text, at)
        if seen & HARD:
            return letters, upper, lower, ONE << np.uint64(at)
        letters |= np.uint64(seen & LETTER) << np.uint64(at)
        upper |= np.uint64((seen & UPPER) >> 1) << np.uint64(at)
        lower |= np.uint64((seen & LOWER) >> 2) << np.uint64(at)
        leads &= leads - ONE
    return letters, upper, lower, NONE


@inner
def contractions(text, apostrophes, fold):  # type: ignore[no-untyped-def]
    """Those of the apostrophes that 's 't 'm 'd begins at, and those of 'll 've 're."""
    single = which_bytes(text, fold, 0x73, 2) | which_bytes(text, fold, 0x6D, 1) | which_bytes(text, fold, 0x64, 1)
    el, e = which_bytes(text, fold, 0x6C, 1), which_bytes(text, fold, 0x65, 1)
    r_or_v = which_bytes(text, fold, 0x72, 1) | which_bytes(text, fold, 0x76, 1)
    double = el & (el >> ONE) | r_or_v & (e >> ONE)
    return apostrophes & (single >> ONE), apostrophes & (double >> ONE)


@inner
def thirds(digits, first):  # type: ignore[no-untyped-def]
    """The digits that begin a group of three, `first` being those that begin a run."""
    four = digits & (digits << ONE)
    four &= four << TWO
    found = first
    more = (first << THREE) & four
    while more:
        found |= more
        more = (more << THREE) & four
    return found


@inner
def blanks_before_line_end(blanks, line_ends):  # type: ignore[no-untyped-def]
    """The runs of blanks that a line end follows: from their last character down to the first in doubling steps."""
    found = blanks & (line_ends >> ONE)
    found |= blanks & (found >> ONE)
    blanks &= blanks >> ONE
    found |= blanks & (found >> TWO)
    blanks &= blanks >> TWO
    found |= blanks & (found >> FOUR)
    blanks &= blanks >> FOUR
    found |= blanks & (found >> EIGHT)
    blanks &= blanks >> EIGHT
    found |= blanks & (found >> SIXTEEN)
    blanks &= blanks >> SIXTEEN
    return found | blanks & (found >> np.uint64(32))


@inner
def spaced_starts(rule, text, letters, digits, spaces, others):  # type: ignore[no-untyped-def]
    """GPT-2's pattern and SmolLM's."""
    after_blank = which_bytes(text, 0, 0x20, 1) << ONE
    other_starts = others & ~(others << ONE) & ~after_blank
    last = spaces & ~(spaces >> ONE)
    if rule == SMOLLM:
        digit_starts = digits
        last &= ~(digits >> ONE)
    else:
        digit_starts = digits & ~(digits << ONE) & ~after_blank
    found = letters & ~(letters << ONE) & ~after_blank
    found |= other_starts | digit_starts | last | spaces & ~(spaces << ONE)
    apostrophes = other_starts & which_bytes(text, 0, 0x27, 1)
    if apostrophes:
        single, double = contractions(text, apostrophes, 0)
        found = found & ~((single | double) << ONE) | single << TWO | double << THREE
    return found


@inner
def space_starts(spaces, line_ends, others):  # type: ignore[no-untyped-def]
    """White space where a run goes up to its last line end, and line ends after others belong to those.

    The second value: the line ends that do.
    """
    blanks = spaces & ~line_ends
    taken = line_ends & ~(line_ends + (line_ends & (others << ONE)))
    spaces &= ~taken
    found = spaces & ~(spaces << ONE) | blanks & ~(spaces >> ONE)
    after_line = blanks & (line_ends << ONE)
    if (blanks + after_line) & ~blanks & line_ends:
        after_line &= ~blanks_before_line_end(blanks, line_ends)
    return found | after_line, taken


@inner
def prefixed_starts(rule, text, letters, digits, spaces, others, more):  # type: ignore[no-untyped-def]
    """GPT-4's pattern, Llama's and Qwen's."""
    line_ends = spaces & (which_bytes(text, 0, 0x0A, 1) | which_bytes(text, 0, 0x0D, 1))
    other_starts = others & ~(others << ONE) & ~(which_bytes(text, 0, 0x20, 1) << ONE)
    prefixes = spread(other_starts, more) | spaces & ~line_ends
    found, _ = space_starts(spaces, line_ends, others)
    found |= other_starts | letters & ~((letters | prefixes) << ONE)
    found |= digits if rule == QWEN2 else thirds(digits, digits & ~(digits << ONE))
    apostrophes = other_starts & which_bytes(text, 0, 0x27, 1)
    if apostrophes:
        single, double = contractions(text, apostrophes, 0x20)
        found |= single << TWO | double << THREE
    return found


@inner
def cased_starts(text, words, upper, lower, digits, spaces, others, more):  # type: ignore[no-untyped-def]
    """o200k's pattern. The second value: what is hard; `words` are letters and the marks after them."""
    both = upper & lower
    hard = (upper & ~lower) & (both << ONE)
    line_ends = spaces & (which_bytes(text, 0, 0x0A, 1) | which_bytes(text, 0, 0x0D, 1))
    found, taken = space_starts(spaces, line_ends, others)
    hard |= which_bytes(text, 0, 0x2F, 1) & (taken << ONE)
    other_starts = others & ~(others << ONE) & ~(which_bytes(text, 0, 0x20, 1) << ONE)
    prefixes = spread(other_starts, more) | spaces & ~line_ends
    found |= other_starts | words & ~((words | prefixes) << ONE) | upper & ~lower & ((lower & ~upper) << ONE)
    found |= thirds(digits, digits & ~(digits << ONE))
    apostrophes = (words << ONE) & which_bytes(text, 0, 0x27, 1)
    if apostrophes:
        single, double = contractions(text, apostrophes, 0x20)
        begin, after = single | double, single << TWO | double << THREE
        hard |= after & begin
        found = found & ~(begin | begin << ONE | double << TWO) | after
    return found, hard


@inner
def starts(rule, table, text, size):  # type: ignore[no-untyped-def]
    """Bits 1 and up: where the pieces after the first begin, as far as the next 64 bytes decide it.

    A piece begins at the address `text`, and `size` bytes from there belong to the text. What begins at a byte is
    known if the two after it are, and white space if the character after its run is: with one more space at most.
    """
    known = below(min(size, 64))
    wide = which_bytes(text, 0, 0x80, 0x80)
    more = NONE
    upper = which_bytes(text, 0, 0x41, 26)
    lower = which_bytes(text, 0, 0x61, 26)
    letters = upper | lower
    hard = NONE
    if wide & known:
        more = which_bytes(text, 0, 0x80, 0x40)
        wide_ones, wide_upper, wide_lower, hard = wide_letters(table, text, wide & ~more & known)
        letters |= spread(wide_ones, more)
        upper |= spread(wide_upper, more)
        lower |= spread(wide_lower, more)
    digits = which_bytes(text, 0, 0x30, 10)
    spaces = which_bytes(text, 0, 0x20, 1) | which_bytes(text, 0, 0x09, 5)
    if rule == O200K:
        words = upper | lower
        others = ~(words | digits | spaces)
        hard |= words & ~letters & ~(words << ONE)
        found, harder = cased_starts(text, words, upper, lower, digits, spaces, others, more)
        hard |= harder
    else:
        others = ~(letters | digits | spaces)
        if rule in (GPT2, SMOLLM):
            found = spaced_starts(rule, text, letters, digits, spaces, others)
        else:
            found = prefixed_starts(rule, text, letters, digits, spaces, others, more)
    known &= (hard & (~hard + ONE)) - ONE
    decided = 64 - zeros_above(known & ~spaces)
    return found & (below(decided) << ONE) & (known >> TWO)
