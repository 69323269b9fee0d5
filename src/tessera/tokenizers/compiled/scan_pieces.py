"""One piece at a time: the split patterns of `scan.PATTERNS` as compiled functions over UTF-8.

Each takes the address of the class table (`scanners.unicode_table`), of the text, the offset where a piece begins
and the one where the text ends, and gives the offset where the piece ends. A pattern looks back at nothing, so where
a piece begins is all that it has to know.

The table holds a byte of flags for each code point: those below 0x800 first; then, for each 64 code points, the
number of their block in two bytes; then the blocks.
"""

from tessera.native.jit import inner
from tessera.native.memory import load8, load16
from tessera.tokenizers.scan import RULES

# What the patterns ask of a character. UPPER and LOWER are o200k's two halves of a word: a modifier letter, a letter
# without case and a mark are in both. HARD is for `scan_blocks`: what it leaves to the functions here.
LETTER, UPPER, LOWER, NUMBER, SPACE, HARD = 1, 2, 4, 8, 16, 32
NOT_OTHER = LETTER | NUMBER | SPACE
FLAGS = {
    "other": 0,
    "Lu": LETTER | UPPER,
    "Ll": LETTER | LOWER,
    "Lt": LETTER | UPPER,
    "Lm": LETTER | UPPER | LOWER,
    "Lo": LETTER | UPPER | LOWER,
    "M": UPPER | LOWER,
    "N": NUMBER,
    "space": SPACE,
}

FLAT = 0x800
BLOCKS = FLAT + 2 * (0x110000 // 64)
LENGTH = 8  # a character's length in bytes stands this many bits above its flags

GPT2, GPT4, O200K, LLAMA3, QWEN2, SMOLLM = (
    RULES[name] for name in ("gpt2", "gpt4", "o200k", "llama3", "qwen2", "smollm")
)
APOSTROPHE, BLANK, SLASH, NEWLINE, RETURN = 0x27, 0x20, 0x2F, 0x0A, 0x0D
LONG_S = 0xBFC5  # U+017F in UTF-8, as two bytes are loaded
D, M, S, T, EL, RE, VE = 0x64, 0x6D, 0x73, 0x74, 0x6C6C, 0x6572, 0x6576
LOWER_CASE = 0x2020


@inner
def look(table, text, at):  # type: ignore[no-untyped-def]
    """The flags of the character at `at`, and above them its length in bytes."""
    lead = load8(text + at)
    if lead < 0x80:
        return load8(table + lead) | 1 << LENGTH
    if lead < 0xE0:
        return load8(table + ((lead & 0x1F) << 6 | load8(text + at + 1) & 0x3F)) | 2 << LENGTH
    block, length = (lead & 0x0F) << 6 | load8(text + at + 1) & 0x3F, 3
    if lead >= 0xF0:
        block, length = (block & 0x1FF) << 6 | load8(text + at + 2) & 0x3F, 4
    last = load8(text + at + length - 1) & 0x3F
    return load8(table + BLOCKS + (load16(table + FLAT + 2 * block) << 6 | last)) | length << LENGTH


@inner
def run_end(table, text, at, stop, mask, wanted):  # type: ignore[no-untyped-def]
    """Where the run of characters ends whose flags are `wanted` where `mask` is."""
    while at < stop:
        seen = look(table, text, at)
        if seen & mask != wanted:
            break
        at += seen >> LENGTH
    return at


@inner
def newlines_end(text, at, stop, slash):  # type: ignore[no-untyped-def]
    """Where the run of line ends is over; `slash` is one more byte that belongs to it."""
    while at < stop:
        byte = load8(text + at)
        if byte not in (NEWLINE, RETURN, slash):
            break
        at += 1
    return at


@inner
def contraction(text, at, stop, any_case):  # type: ignore[no-untyped-def]
    """The length of 's 't 'm 'd 'll 've or 're at `at`; 0 if there is none."""
    if at + 2 > stop or load8(text + at) != APOSTROPHE:
        return 0
    two = load16(text + at + 1)
    if any_case and two == LONG_S and at + 3 <= stop:
        return 3
    if any_case:
        two |= LOWER_CASE
    one = two & 0xFF
    if one in (S, T, M, D):
        return 2
    if at + 3 <= stop and two in (EL, RE, VE):
        return 3
    return 0


@inner
def spaces_end(table, text, at, stop, by_line, whole_before):  # type: ignore[no-untyped-def]
    r"""The end of a piece of white space: the run without its last character, which belongs to what follows.

    The run is taken whole at the end of the text, if it is one character, and before a character with one of the
    flags `whole_before`. `by_line`: up to the last line end in the run if there is one; where `by_line` is 2, at the
    end of the text as well.
    """
    last, line, end = at, 0, at
    while end < stop:
        seen = look(table, text, end)
        if not seen & SPACE:
            break
        last = end
        byte = load8(text + end)
        end += seen >> LENGTH
        if byte in (NEWLINE, RETURN):
            line = end
    if end == stop and by_line != 2:
        return end
    if by_line and line:
        return line
    if end == stop or last == at or look(table, text, end) & whole_before:
        return end
    return last


@inner
def spaced_end(rule, table, text, at, stop):  # type: ignore[no-untyped-def]
    """GPT-2's pattern and SmolLM's: a blank belongs to the run of letters, numbers or others after it."""
    length = contraction(text, at, stop, False)
    if length:
        return at + length
    seen = look(table, text, at)
    first = at
    if load8(text + at) == BLANK and at + 1 < stop:
        first = at + 1
        seen = look(table, text, first)
    if rule == SMOLLM and seen & NUMBER:
        return at + 1 if first > at else at + (seen >> LENGTH)
    if seen & SPACE:
        return spaces_end(table, text, at, stop, 0, NUMBER if rule == SMOLLM else 0)
    return run_end(table, text, first, stop, NOT_OTHER, seen & NOT_OTHER)


@inner
def numbers_end(table, text, at, stop, most):  # type: ignore[no-untyped-def]
    """Where up to `most` numbers end."""
    while most > 0 and at < stop:
        seen = look(table, text, at)
        if not seen & NUMBER:
            break
        at += seen >> LENGTH
        most -= 1
    return at


@inner
def others_end(rule, table, text, at, stop):  # type: ignore[no-untyped-def]
    """What is no word and no number: others after at most one blank, with the line ends after them; or white space."""
    first = at
    if load8(text + at) == BLANK:
        first = at + 1
    end = run_end(table, text, first, stop, NOT_OTHER, 0)
    if end > first:
        return newlines_end(text, end, stop, SLASH if rule == O200K else NEWLINE)
    return spaces_end(table, text, at, stop, 1 if rule == GPT4 else 2, 0)


@inner
def prefixed_end(rule, table, text, at, stop):  # type: ignore[no-untyped-def]
    """GPT-4's pattern, Llama's and Qwen's: any one character but a line end or a number may stand before letters."""
    length = contraction(text, at, stop, True)
    if length:
        return at + length
    seen = look(table, text, at)
    if seen & LETTER:
        return run_end(table, text, at, stop, LETTER, LETTER)
    if seen & NUMBER:
        return numbers_end(table, text, at, stop, 1 if rule == QWEN2 else 3)
    byte = load8(text + at)
    if byte not in (NEWLINE, RETURN):
        first = at + (seen >> LENGTH)
        end = run_end(table, text, first, stop, LETTER, LETTER)
        if end > first:
            return end
    return others_end(rule, table, text, at, stop)


@inner
def cased_run(table, text, at, stop):  # type: ignore[no-untyped-def]
    """Letters of the kind UPPER, then at least one of LOWER, as long as can be: where they end; 0 if there are none.

    The first run may have to give back what it took until a letter of both kinds is free for the second.
    """
    both = 0
    while at < stop:
        seen = look(table, text, at)
        if not seen & UPPER:
            if seen & LOWER:
                return run_end(table, text, at, stop, LOWER, LOWER)
            break
        at += seen >> LENGTH
        if seen & LOWER:
            both = at
    return both


@inner
def cased_end(table, text, at, stop):  # type: ignore[no-untyped-def]
    """o200k's pattern: a word is upper, then lower case, with a contraction after it and any one character before."""
    seen = look(table, text, at)
    if seen & NUMBER:
        return numbers_end(table, text, at, stop, 3)
    byte = load8(text + at)
    if byte in (NEWLINE, RETURN):
        return others_end(O200K, table, text, at, stop)
    first = at if seen & LETTER else at + (seen >> LENGTH)
    end = cased_run(table, text, first, stop)
    if not end and first > at and seen & LOWER:
        end = first  # a mark before capitals only: it is no prefix but the word
    if not end:
        end = run_end(table, text, first, stop, UPPER, UPPER)
        if end == first:
            return others_end(O200K, table, text, at, stop)
    return end + contraction(text, end, stop, True)


@inner
def piece_end(rule, table, text, at, stop):  # type: ignore[no-untyped-def]
    """Where the piece that begins at `at` ends; at < stop."""
    if rule in (GPT2, SMOLLM):
        return spaced_end(rule, table, text, at, stop)
    if rule == O200K:
        return cased_end(table, text, at, stop)
    return prefixed_end(rule, table, text, at, stop)
