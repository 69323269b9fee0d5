"""Pre-tokenizers: the patterns that cut text into pieces which no token crosses.

A piece is a word with the space before it, up to three digits, a run of punctuation, or white space (Radford et al.
2019, section 2.2).
"""

from collections.abc import Iterator, Sequence

import regex

from tessera.errors import SettingError

# GPT-2's and GPT-4's (cl100k_base) patterns as tiktoken has them: `++` and `?+` never give back what they took.
PATTERNS = {
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    "gpt4": (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
        r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
    ),
}


def split_pieces(pattern: regex.Pattern, text: str) -> Sequence[str]:
    """What `pattern` finds in `text`, and what lies between: nothing of the text is lost, whatever the pattern.

    >>> split_pieces(regex.compile("[a-z]+"), "so, what")
    ['so', ', ', 'what']
    """
    if not pattern.groups:
        pieces: list[str] = pattern.findall(text)
        if sum(map(len, pieces)) == len(text):
            return pieces if all(pieces) else [piece for piece in pieces if piece]
    return list(_with_gaps(pattern, text))


def _with_gaps(pattern: regex.Pattern, text: str) -> Iterator[str]:
    done = 0
    for match in pattern.finditer(text):
        start, end = max(match.start(), done), match.end()
        if start > done:
            yield text[done:start]
        if end > start:
            yield text[start:end]
        done = max(end, done)
    if done < len(text):
        yield text[done:]


def compile_pattern(pattern: str) -> regex.Pattern:
    """A named split pattern, or a regular expression in the syntax of the `regex` package."""
    try:
        compiled = regex.compile(PATTERNS.get(pattern, pattern))
    except (regex.error, TypeError) as error:
        expected = f"{', '.join(PATTERNS)} or a regular expression ({error})"
        raise SettingError("tokenizer.pattern", pattern, expected) from None
    if not pattern or compiled.flags & regex.REVERSE:
        raise SettingError("tokenizer.pattern", pattern, f"{', '.join(PATTERNS)} or a regular expression that reads on")
    return compiled
