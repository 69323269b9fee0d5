"""The script that a text is written in, told by the Unicode blocks of its characters."""

from bisect import bisect_right
from collections import Counter

# The first code point of a range, and the script whose blocks it begins; None for what is no letter of one script.
_RANGES: tuple[tuple[int, str | None], ...] = (
    (0x0000, None),
    (0x0041, "Latin"),
    (0x005B, None),
    (0x0061, "Latin"),
    (0x007B, None),
    (0x00C0, "Latin"),
    (0x0300, None),
    (0x0370, "Greek"),
    (0x0400, "Cyrillic"),
    (0x0530, "Armenian"),
    (0x0590, "Hebrew"),
    (0x0600, "Arabic"),
    (0x0780, "other"),
    (0x0900, "Devanagari"),
    (0x0980, "Bengali"),
    (0x0A00, "other"),
    (0x0B80, "Tamil"),
    (0x0C00, "Telugu"),
    (0x0C80, "other"),
    (0x0E00, "Thai"),
    (0x0E80, "other"),
    (0x10A0, "Georgian"),
    (0x1100, "Korean"),
    (0x1200, "other"),
    (0x1E00, "Latin"),
    (0x1F00, "Greek"),
    (0x2000, None),
    (0x2C00, "other"),
    (0x2E80, "Chinese"),
    (0x3000, None),
    (0x3040, "Japanese"),
    (0x3100, "Chinese"),
    (0x3130, "Korean"),
    (0x3190, "Chinese"),
    (0x31F0, "Japanese"),
    (0x3200, None),
    (0x3400, "Chinese"),
    (0xA000, "other"),
    (0xAC00, "Korean"),
    (0xD800, None),
    (0xF900, "Chinese"),
    (0xFB00, "Latin"),
    (0xFB1D, "Hebrew"),
    (0xFB50, "Arabic"),
    (0xFE00, None),
    (0xFE70, "Arabic"),
    (0xFEFF, None),
    (0xFF66, "Japanese"),
    (0xFFA0, "Korean"),
    (0xFFE0, None),
    (0x10000, "other"),
    (0x1F000, None),
    (0x20000, "Chinese"),
    (0x40000, None),
)
_STARTS = [start for start, _ in _RANGES]
WITHOUT_SPACES = frozenset({"Chinese", "Japanese", "Thai"})


def script_of(text: str) -> str | None:
    """The script of most letters of `text`; None where it has no letter.

    Chinese characters beside kana are Japanese.

    >>> script_of("12 Türen"), script_of("漢字かな"), script_of("1 + 1")
    ('Latin', 'Japanese', None)
    """
    counts: Counter[str] = Counter()
    for character, count in Counter(text).items():
        script = _RANGES[bisect_right(_STARTS, ord(character)) - 1][1]
        if script is not None:
            counts[script] += count
    if counts["Japanese"]:
        counts["Japanese"] += counts.pop("Chinese", 0)
    return max(counts, key=counts.__getitem__) if counts.total() else None
