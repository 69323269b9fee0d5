"""One token a bin of values: a real-valued series as a sequence of ids, so that a language model can forecast it.

The range of the values is cut into bins, of equal width ("uniform") or so that each holds as many training values
("quantile"); a value's id is its bin and decodes to the middle of it, so what comes back is off by half the bin's width
at the most. Ansari et al. 2024, "Chronos: Learning the Language of Time Series", section 3.1, has both kinds. Chronos
also divides each series by its mean size; that factor would be lost with the ids, from which alone a tokenizer must
decode, so here the scale is one for all series and is kept where the bins are: in their `edges`.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np

from tessera.errors import InputError, SettingError
from tessera.tokenizers.contract import Tokenizer
from tessera.tokenizers.specials import DEFAULT_SPECIALS, Specials, ordinary_parts
from tessera.tokenizers.symbols import check_choice

MISSING = "nan"
SMALLEST = 1e-280  # a width whose digits float64 can still scale to whole numbers
FIELD = re.compile(r"[^\s,]+")
EMPTY_FIELD = re.compile(r",\s*,")
TWO_WAYS = re.compile(r"[^\s,][^\S\n]+[^\s,]")  # numbers parted by space alone

Method = Literal["uniform", "quantile"]
Missing = Literal["error", "token"]
Rows = Literal["error", "join"]


def parse_values(text: str, rows: Rows = "error") -> np.ndarray:
    """The numbers of `text` as float64: on one line, with white space or commas between them, or one on each line.

    What else is there is an `InputError` with its place. Lines of several numbers are one too, as they may be columns,
    or series of their own, unless `rows="join"` says that they are one series, line after line. "nan" is a number here.

    >>> parse_values("0.5, -1, 2e3")
    array([ 5.e-01, -1.e+00,  2.e+03])
    """
    if "," in text:
        _check_commas(text)
    fields = text.replace(",", " ").split()
    try:
        values = np.array(list(map(float, fields)), dtype=np.float64)
    except ValueError:
        raise _not_a_number(text) from None
    if "_" in text or np.isinf(values).any():
        raise _not_a_number(text)
    if rows == "error":
        _check_rows(text, len(fields))
    return values


def _check_commas(text: str) -> None:
    """No two commas without a number between them, and no line with two ways of parting numbers."""
    if empty := EMPTY_FIELD.search(text):
        raise InputError(f"{_place(text, empty.start() + 1)}: no number between two commas; a missing value is 'nan'")
    for number, line in enumerate(text.split("\n"), 1):
        if "," in line and (found := TWO_WAYS.search(line)):
            raise InputError(
                f"line {number}: both commas and spaces part the numbers of {line.strip()!r:.60} (near "
                f"{found[0]!r}); use one of them, and a point for decimals"
            )


def _check_rows(text: str, n_values: int) -> None:
    lines = [line for line in text.split("\n") if line.strip().strip(",")]
    if len(lines) > 1 and n_values != len(lines):
        lengths = sorted({len(FIELD.findall(line)) for line in lines})
        raise InputError(
            f"{len(lines)} lines with {' or '.join(map(str, lengths[:3]))}{' ...' * (len(lengths) > 3)} numbers each: "
            "one series has one number a line, or one line; of a table give one column, of several series make "
            "documents, or join the lines with tokenizer.rows = 'join' (a decimal comma must be a point)"
        )


def _not_a_number(text: str) -> InputError:
    """The first thing in `text` that is no finite number, with its place."""
    for count, field in enumerate(FIELD.finditer(text)):
        if not _is_number(field[0]):
            header = " (a header? give one column without it)" if count == 0 and "\n" in text else ""
            return InputError(f"{_place(text, field.start())}: {field[0]!r:.40} is no finite number{header}")
    raise AssertionError("every field is a number")


def _is_number(field: str) -> bool:
    try:
        return "_" not in field and not math.isinf(float(field))
    except ValueError:
        return False


def _place(text: str, at: int) -> str:
    line = text.count("\n", 0, at) + 1
    return f"line {line}, character {at - text.rfind(chr(10), 0, at)}"


def uniform_edges(low: float, high: float, n_bins: int) -> np.ndarray:
    """The n_bins + 1 edges of bins of equal width from `low` to `high`."""
    edges: np.ndarray = np.linspace(low, high, n_bins + 1)
    return edges


def round_edges(low: float, high: float, n_bins: int) -> np.ndarray:
    """Edges of bins of equal width that hold `low` to `high`, widened to round numbers (three digits of the width).

    The middles of such bins are short to write: 12.518 instead of 12.517539062500001.
    """
    if (high - low) / n_bins < SMALLEST:
        return uniform_edges(low, high, n_bins)
    exponent = math.floor(math.log10((high - low) / n_bins)) - 2
    unit = 10.0 ** abs(exponent)

    def scaled(n: int) -> float:
        return n / unit if exponent < 0 else n * unit

    first = math.floor(low * unit if exponent < 0 else low / unit)
    first -= scaled(first) > low
    width = 2 * math.ceil((high - scaled(first)) / scaled(2 * n_bins))  # even, so that half of it is round too
    width += 2 * (scaled(first + n_bins * width) < high)
    return np.array([scaled(first + i * width) for i in range(n_bins + 1)])


def _shortest(middle: float, width: float) -> str:
    """`middle` as text: 0.15, not 0.15000000000000002, unless the bin is so narrow that the last digits count."""
    short = f"{middle:.15g}"
    return short if abs(float(short) - middle) <= 1e-9 * width else repr(middle)


def quantile_edges(values: np.ndarray, n_bins: int) -> np.ndarray:
    """Edges between which lie equally many of `values`; fewer bins where a value is so frequent that edges coincide."""
    edges: np.ndarray = np.unique(np.quantile(values, np.linspace(0, 1, n_bins + 1), method="inverted_cdf"))
    return edges


class BinTokenizer(Tokenizer):
    """Ids: the bins from low to high, then the missing value where it is a token, then the special tokens.

    Bin i holds edges[i] <= value < edges[i + 1] (the last one its upper edge too) and decodes to the middle, so that
    |value - decoded| <= half the width of the bin, to the rounding of float64. A value outside of the edges goes to the
    bin at that end, or is an `InputError` with `clip=False`; `n_outside` counts such values. NaN is an `InputError`,
    or with `missing="token"` a token of its own; infinities are always one.

    As text the values are parted by spaces, and `encode(decode(ids)) == ids`.
    """

    kind = "bins"
    separator = b" "

    def __init__(
        self,
        *,
        edges: Sequence[float] | np.ndarray,
        clip: bool = True,
        missing: Missing = "error",
        rows: Rows = "error",
        specials: Specials = DEFAULT_SPECIALS,
    ) -> None:
        check_choice("missing", missing, Missing)
        check_choice("rows", rows, Rows)
        self.edges = np.array(edges, dtype=np.float64)
        if self.edges.ndim != 1 or len(self.edges) < 3 or not np.isfinite(self.edges).all():
            raise SettingError("tokenizer.edges", edges, "3 finite numbers or more: the edges of 2 bins or more")
        middles = 0.5 * self.edges[:-1] + 0.5 * self.edges[1:]
        texts = [_shortest(*pair) for pair in zip(middles.tolist(), np.diff(self.edges).tolist(), strict=True)]
        self.centres: np.ndarray = np.array(texts, dtype=np.float64)
        if not np.all(np.diff(self.edges) > 0) or not np.array_equal(self._bins(self.centres), np.arange(self.n_bins)):
            raise SettingError("tokenizer.edges", edges, "rising numbers, with room between two of them")
        self.clip = clip
        self.missing: Missing = missing
        self.rows: Rows = rows
        table = [*texts, *([MISSING] if missing == "token" else [])]
        self._values = np.array(table, dtype=np.float64)  # by id
        super().__init__(tokens={id: text.encode() for id, text in enumerate(table)}, specials=specials)

    @property
    def n_bins(self) -> int:
        return len(self.edges) - 1

    @property
    def missing_id(self) -> int | None:
        """What NaN becomes; None where it is an error."""
        return self.n_bins if self.missing == "token" else None

    def _bins(self, values: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.edges[1:-1], values, side="right")

    def encode_values(self, values: np.ndarray | Sequence[float]) -> np.ndarray:
        """The id of each value of one series, as an array of `dtype`."""
        values = np.asarray(values, dtype=np.float64)
        if values.ndim != 1:
            raise InputError(f"values of shape {values.shape}: a series is one row of numbers, one column of a table")
        self._check_values(values)
        ids = self._bins(values)
        if self.missing == "token":
            ids[np.isnan(values)] = self.n_bins
        return ids.astype(self.dtype)

    def _check_values(self, values: np.ndarray) -> None:
        refused = np.isinf(values)
        if self.missing == "error":
            refused |= np.isnan(values)
        if refused.any():
            place = int(refused.argmax())
            remedy = "; tokenizer.missing = 'token' keeps missing values" if np.isnan(values[place]) else ""
            raise InputError(f"value {place} of the series is {values[place]}, which is no finite number{remedy}")
        if not self.clip and (outside := self._outside(values)).any():
            place = int(outside.argmax())
            raise InputError(
                f"value {place} of the series is {values[place]}, outside of the bins, which go from {self.edges[0]} "
                f"to {self.edges[-1]}"
            )

    def _outside(self, values: np.ndarray) -> np.ndarray:
        outside: np.ndarray = (values < self.edges[0]) | (values > self.edges[-1])
        return outside

    def n_outside(self, values: np.ndarray | Sequence[float]) -> int:
        """How many of `values` lie outside of the bins, so that they would be clipped."""
        return int(self._outside(np.asarray(values, dtype=np.float64)).sum())

    def decode_values(self, ids: Iterable[int] | np.ndarray) -> np.ndarray:
        """The middle of each id's bin as float64, NaN for a missing value; a special token is an `InputError`."""
        places = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids))
        if places.size == 0:
            return np.zeros(0)
        if places.dtype.kind not in "iu":
            raise TypeError(f"ids are whole numbers, not {places.dtype}")
        wrong = (places < 0) | (places >= len(self._values))
        if wrong.any():
            id = int(places[wrong][0])
            what = f"is {self.token_bytes(id).decode()!r}" if id in self.specials.values() else "is no token's"
            raise InputError(f"the id {id} {what}, not a bin's: values have the ids 0 to {len(self._values) - 1}")
        return self._values[places]

    def encode_ordinary(self, text: str) -> list[int]:
        ids: list[int] = self.ordinary_array(text).tolist()
        return ids

    def ordinary_array(self, text: str) -> np.ndarray:
        return self.encode_values(parse_values(text, self.rows))

    def settled(self, text: str) -> int:
        """Up to the white space before the last number, which may go on."""
        found = re.search(r"\s\S*\Z", text)
        return found.start() if found else 0

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        *,
        n_bins: int = 256,
        method: Method = "uniform",
        low: float | None = None,
        high: float | None = None,
        clip: bool = True,
        missing: Missing = "error",
        rows: Rows = "error",
        specials: Specials = DEFAULT_SPECIALS,
    ) -> Self:
        """Bins from `low` to `high`, each of them that of the values in `texts` unless given.

        Where both are left to the texts, "uniform" widens the range to round numbers (`round_edges`). "quantile" looks
        at the values from `low` to `high` only, holds them all in memory, and makes fewer bins where values repeat.
        """
        if n_bins < 2:
            raise SettingError("tokenizer.n_bins", n_bins, "a whole number from 2")
        check_choice("method", method, Method)
        for name, bound in (("low", low), ("high", high)):
            if bound is not None and not math.isfinite(bound):
                raise SettingError(f"tokenizer.{name}", bound, "a finite number")
        series = _checked_series(ordinary_parts(texts, specials), rows, missing)
        make = _uniform if method == "uniform" else _quantile
        edges = make(series, low, high, n_bins)
        return cls(edges=edges, clip=clip, missing=missing, rows=rows, specials=specials)

    def settings(self) -> dict[str, Any]:
        return {
            "edges": self.edges.tolist(),
            "clip": self.clip,
            "missing": self.missing,
            "rows": self.rows,
            "specials": self.specials,
        }

    @classmethod
    def restore(cls, settings: Mapping[str, Any]) -> Self:
        return cls(**{name: settings[name] for name in ("edges", "clip", "missing", "rows", "specials")})


def _checked_series(texts: Iterable[str], rows: Rows, missing: Missing) -> Iterator[np.ndarray]:
    """The values of each text that has some, without the missing ones, which must be allowed."""
    for text in texts:
        values = parse_values(text, rows)
        there = ~np.isnan(values)
        if missing == "error" and not there.all():
            place = int(there.argmin())
            raise InputError(f"value {place} of the series is nan: tokenizer.missing = 'token' keeps missing values")
        if there.any():
            yield values[there]


def _check_range(low: float, high: float) -> None:
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InputError("there is no number in the text to make bins for")
    if not math.isfinite(high - low):
        raise InputError(f"the numbers from {low} to {high} are too far apart for float64: scale them")
    if low >= high:
        raise SettingError("tokenizer.low", low, f"less than the highest value, {high}: give tokenizer.low and .high")


def _uniform(series: Iterable[np.ndarray], low: float | None, high: float | None, n_bins: int) -> np.ndarray:
    least, most = math.inf, -math.inf
    for values in series:
        least, most = min(least, float(values.min())), max(most, float(values.max()))
    bottom, top = least if low is None else low, most if high is None else high
    _check_range(bottom, top)
    if least <= most and (most < bottom or top < least):
        raise SettingError("tokenizer.low", low, f"a range with values of the text in it: {least} to {most}")
    make = round_edges if low is None and high is None else uniform_edges
    return make(bottom, top, n_bins)


def _quantile(series: Iterable[np.ndarray], low: float | None, high: float | None, n_bins: int) -> np.ndarray:
    gathered = list(series)
    values = np.concatenate(gathered) if gathered else np.zeros(0)
    bottom = -math.inf if low is None else low
    top = math.inf if high is None else high
    values = values[(values >= bottom) & (values <= top)]
    if values.size == 0:
        raise InputError(f"there is no number from {bottom} to {top} in the text to make bins for")
    edges = quantile_edges(values, n_bins)
    ends = [edges[0] if low is None else low, edges[-1] if high is None else high]
    edges = np.unique([*edges[1:-1], *ends])
    if len(edges) < 3:
        raise InputError(f"the text has too few different values for bins: {edges.tolist()}")
    return edges
