import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from tessera.errors import InputError, SettingError, TesseraError
from tessera.tokenizers import load_tokenizer, tokenizer_from_json, tokenizer_from_state, train_tokenizer
from tessera.tokenizers.bins import BinTokenizer, parse_values, quantile_edges, round_edges

TENTHS = BinTokenizer(edges=np.arange(11) / 10)
numbers = st.floats(-1e9, 1e9, allow_subnormal=False)
series = st.lists(numbers, min_size=2, max_size=40)
methods = st.sampled_from(["uniform", "quantile"])


def text_of(values: Any) -> str:
    return " ".join(map(repr, np.asarray(values).tolist()))


def trained(values: Any, **more: Any) -> BinTokenizer:
    return BinTokenizer.train([text_of(values)], **more)


def off_by(tokenizer: BinTokenizer, values: np.ndarray) -> np.ndarray:
    """How far each decoded value is off, beyond half of its bin's width and the rounding of float64."""
    ids = tokenizer.encode_values(values)
    half = np.diff(tokenizer.edges)[ids] / 2
    rounding = 4 * np.spacing(np.abs(tokenizer.edges).max()) + 2e-9 * half
    return np.abs(values - tokenizer.decode_values(ids)) - half - rounding


def test_bins_by_hand() -> None:
    tokenizer = BinTokenizer(edges=[0, 1, 2, 4])
    assert tokenizer.centres.tolist() == [0.5, 1.5, 3.0]
    assert tokenizer.encode("0 0.99 1, 2 3 4".replace(",", "")) == [0, 0, 1, 2, 2, 2]
    assert tokenizer.encode("-5 99") == [0, 2]
    assert tokenizer.decode([0, 1, 2]) == "0.5 1.5 3"
    assert tokenizer.vocabulary() == [(0, b"0.5"), (1, b"1.5"), (2, b"3"), (3, b"<|endoftext|>")]
    assert (tokenizer.n_bins, tokenizer.n_vocab, tokenizer.end_id, tokenizer.unk_id) == (3, 4, 3, None)
    assert tokenizer.n_outside([-1, 0, 4, 5]) == 2


@settings(max_examples=150, deadline=None)
@given(values=series, n_bins=st.integers(2, 300), method=methods)
@example(values=[0.0, 1.0], n_bins=10, method="uniform")
@example(values=[-1e-300, 1e-300], n_bins=3, method="uniform")
@example(values=[1e-320, 0.0], n_bins=2, method="uniform")
def test_decoded_is_within_half_a_bin(values: list[float], n_bins: int, method: str) -> None:
    try:
        tokenizer = trained(values, n_bins=n_bins, method=method)
    except TesseraError:
        assume(False)  # too few different values, or too near to each other for that many bins
    assert tokenizer.n_outside(values) == 0
    assert (off_by(tokenizer, np.array(values)) <= 0).all()
    between = np.random.default_rng(0).uniform(tokenizer.edges[0], tokenizer.edges[-1], 200)
    assert (off_by(tokenizer, between) <= 0).all()
    assert (off_by(tokenizer, tokenizer.edges) <= 0).all()
    if method == "uniform":
        assert tokenizer.n_bins == n_bins
        assert np.diff(tokenizer.edges) == pytest.approx(np.diff(tokenizer.edges)[0], rel=1e-3)


@settings(max_examples=100, deadline=None)
@given(values=series, n_bins=st.integers(2, 300), method=methods, data=st.data())
def test_text_of_ids_encodes_to_the_ids(values: list[float], n_bins: int, method: str, data: st.DataObject) -> None:
    try:
        tokenizer = trained(values, n_bins=n_bins, method=method, missing="token")
    except TesseraError:
        assume(False)
    ids = data.draw(st.lists(st.integers(0, tokenizer.n_bins), max_size=30))
    text = tokenizer.decode(ids)
    assert tokenizer.encode(text) == ids
    assert np.array_equal(parse_values(text), tokenizer.decode_values(ids), equal_nan=True)
    assert tokenizer.encode_values(tokenizer.decode_values(ids)).tolist() == ids
    stream = tokenizer.stream()
    assert "".join([*map(stream.push, ids), stream.finish()]) == text
    end = tokenizer.end_id
    assert tokenizer.encode(tokenizer.decode([*ids, end, *ids]), specials="all") == [*ids, end, *ids]
    again = tokenizer_from_json(tokenizer.to_json())
    assert again.state() == tokenizer.state()
    assert again.encode(text) == ids


@settings(max_examples=100, deadline=None)
@given(low=numbers, spread=st.floats(1e-6, 1e9), n_bins=st.integers(2, 5000))
def test_round_edges_hold_the_range_and_little_more(low: float, spread: float, n_bins: int) -> None:
    high = low + spread
    assume(spread / n_bins > 1e-9 * abs(low))
    edges = round_edges(low, high, n_bins)
    width = (high - low) / n_bins
    assert edges[0] <= low
    assert high <= edges[-1]
    assert edges[0] > low - 0.011 * width
    assert np.diff(edges).max() < 1.025 * width
    assert len(edges) == n_bins + 1


def test_the_middles_of_trained_bins_are_short() -> None:
    tokenizer = trained([12.37, 87.91], n_bins=256)
    assert max(len(token) for id, token in tokenizer.vocabulary() if id < 256) <= 6
    assert trained([0, 1], n_bins=10, low=0, high=1).decode([0, 1, 2, 9]) == "0.05 0.15 0.25 0.95"


def test_quantile_bins_hold_equally_many() -> None:
    values = np.random.default_rng(1).lognormal(size=10_000)
    tokenizer = trained(values, n_bins=50, method="quantile")
    counts = np.bincount(tokenizer.encode_values(values), minlength=50)
    assert counts.min() >= 199
    assert counts.max() <= 202
    assert quantile_edges(np.array([1.0, 2.0, 3.0, 4.0, 5.0]), 2).tolist() == [1, 3, 5]
    repeated = trained([0] * 50 + list(range(1, 51)), n_bins=10, method="quantile")
    assert repeated.n_bins == 5


def test_a_given_range_is_kept_exactly() -> None:
    for method in ("uniform", "quantile"):
        tokenizer = trained([0.2, 0.3, 0.4, 0.7], n_bins=3, method=method, low=0, high=1)
        assert (tokenizer.edges[0], tokenizer.edges[-1]) == (0, 1)
        assert tokenizer.n_bins == 3
    assert trained([1, 2, 300], low=0, high=4, n_bins=4).edges.tolist() == [0, 1, 2, 3, 4]
    assert trained([1, 2, 3, 300], high=4, n_bins=2, method="quantile").edges.tolist() == [1, 2, 4]
    assert trained([1, 2], low=0, n_bins=2).edges.tolist() == [0, 1, 2]
    assert BinTokenizer.train([], low=0, high=1, n_bins=2).edges.tolist() == [0, 0.5, 1]


def test_what_is_outside_is_clipped_or_an_error() -> None:
    assert TENTHS.encode("-7 7") == [0, 9]
    strict = BinTokenizer(edges=TENTHS.edges, clip=False)
    assert strict.encode("0 1") == [0, 9]
    with pytest.raises(
        InputError, match=r"value 1 of the series is 1\.5, outside of the bins, which go from 0\.0 to 1"
    ):
        strict.encode("0.5 1.5")


def test_missing_values() -> None:
    with pytest.raises(InputError, match=r"value 1 of the series is nan.*tokenizer\.missing = 'token'"):
        TENTHS.encode("0.5 nan")
    with pytest.raises(InputError, match=r"value 1 of the series is nan.*tokenizer\.missing = 'token'"):
        BinTokenizer.train(["0.5 nan 3"])
    keeps = trained([0.0, math.nan, 1.0], n_bins=4, missing="token")
    assert keeps.missing_id == 4
    assert keeps.encode("0 NaN 1") == [0, 4, 3]
    assert keeps.decode([0, 4]).endswith(" nan")
    assert math.isnan(keeps.decode_values([4])[0])
    assert keeps.end_id == 5
    for tokenizer in (TENTHS, keeps):
        with pytest.raises(InputError, match=r"value 0 of the series is -inf, which is no finite number"):
            tokenizer.encode_values([-math.inf])


@pytest.mark.parametrize(
    "text", ["1 2 3", "1,2,3", "1, 2 ,3", "1\n2\n3\n", "1,\r\n2,\r\n3", ",1,2,3,", "\n 1\t2  3 \n", "1\n\n2\n3"]
)
def test_ways_to_write_a_series(text: str) -> None:
    assert parse_values(text).tolist() == [1, 2, 3]


@pytest.mark.parametrize("text", ["", " \n", ",", "\n,\n"])
def test_no_number_is_no_id(text: str) -> None:
    assert TENTHS.encode(text) == []
    assert TENTHS.encode_array(text).dtype == np.uint16


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1 2 abc 4", r"line 1, character 5: 'abc' is no finite number$"),
        ("1\n2\n3 x", r"line 3, character 3: 'x' is no finite number$"),
        ("value\n1\n2", r"line 1, character 1: 'value' is no finite number \(a header\? give one column"),
        ("date,value\n1,2", r"line 1, character 1: 'date' is no finite number \(a header"),
        ("1 inf", r"line 1, character 3: 'inf' is no finite number"),
        ("1\n1e999", r"line 2, character 1: '1e999' is no finite number"),
        ("1_000", r"line 1, character 1: '1_000' is no finite number"),
        ("1 0x10", r"'0x10' is no finite number"),
        ("1;2", r"'1;2' is no finite number"),
        ("1,,2", r"line 1, character 3: no number between two commas; a missing value is 'nan'"),
        ("0\n1,\n,2", r"line 2, character 3: no number between two commas"),
        ("1,2\n3,4", r"2 lines with 2 numbers each: one series has one number a line, or one line"),
        ("1 2 3\n4 5", r"2 lines with 2 or 3 numbers each: .*one column.*rows = 'join'"),
        ("0,5 0,7 0,9", r"line 1: both commas and spaces part the numbers of '0,5 0,7 0,9' .*a point for decimals"),
        ("0,5\n0,7", r"2 lines with 2 numbers each: .*a decimal comma must be a point"),
        ("0.5 <|endoftext|>", r"character 5: '<\|endoftext\|>' is no finite number"),
    ],
)
def test_what_is_no_series_is_told_with_its_place(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        TENTHS.encode(text, specials="none")


def test_lines_are_joined_on_request() -> None:
    tokenizer = BinTokenizer(edges=TENTHS.edges, rows="join")
    assert tokenizer.encode("0 0.1\n0.25 0.3 0.4\n") == TENTHS.encode("0 0.1 0.25 0.3 0.4")
    assert tokenizer_from_state(tokenizer.state()).encode("0 1\n0 1") == [0, 9, 0, 9]


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(st.floats(-1, 2, width=32), max_size=12),
    between=st.sampled_from([" ", "\n", ",", ", ", " , ", "\r\n"]),
    cuts=st.lists(st.integers(0, 200), max_size=4),
)
def test_a_text_in_parts_is_the_whole_text(values: list[float], between: str, cuts: list[int]) -> None:
    text = between.join(map(repr, values))
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    parts = [text[a:b] for a, b in pairwise(places)]
    assert np.concatenate(list(TENTHS.encode_parts(parts))).tolist() == TENTHS.encode(text)


def test_values_go_in_and_out_as_arrays() -> None:
    values = np.array([0.04, 0.55, 0.99], dtype=np.float32)
    ids = TENTHS.encode_values(values)
    assert ids.dtype == np.uint16
    assert ids.tolist() == [0, 5, 9]
    assert TENTHS.decode_values(ids).tolist() == TENTHS.decode_values(ids.tolist()).tolist() == [0.05, 0.55, 0.95]
    assert TENTHS.decode_values([]).tolist() == []
    assert TENTHS.encode_values([]).tolist() == []
    with pytest.raises(InputError, match=r"shape \(2, 2\): a series is one row of numbers"):
        TENTHS.encode_values(np.zeros((2, 2)))
    with pytest.raises(InputError, match=r"the id 10 is '<\|endoftext\|>', not a bin's: values have the ids 0 to 9"):
        TENTHS.decode_values([0, 10])
    with pytest.raises(InputError, match=r"the id -1 is no token's"):
        TENTHS.decode_values([-1])
    with pytest.raises(TypeError):
        TENTHS.decode_values([0.5])  # type: ignore[list-item]


@pytest.mark.parametrize(
    "edges", [[], [1.0], [0.0, 1.0], [0.0, 0.0, 1.0], [0.0, 2.0, 1.0], [0.0, math.nan, 1.0], [0.0, 1.0, math.inf]]
)
def test_edges_that_make_no_bins(edges: list[float]) -> None:
    with pytest.raises(SettingError, match=r"tokenizer\.edges"):
        BinTokenizer(edges=edges)


def test_bins_narrower_than_float64_are_refused() -> None:
    with pytest.raises(SettingError, match=r"tokenizer\.edges"):
        trained([1e9, 1e9 + 1e-5], n_bins=1000, low=1e9, high=1e9 + 1e-5)


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"n_bins": 1}, SettingError, r"tokenizer\.n_bins = 1: expected a whole number from 2"),
        ({"method": "log"}, SettingError, r"tokenizer\.method = 'log': expected 'uniform' or 'quantile'"),
        ({"missing": "skip"}, SettingError, r"tokenizer\.missing = 'skip'"),
        ({"rows": "skip"}, SettingError, r"tokenizer\.rows = 'skip'"),
        ({"low": 5}, SettingError, r"tokenizer\.low = 5.*: expected less than the highest value, 3"),
        ({"low": 2, "high": 1}, SettingError, r"tokenizer\.low = 2"),
        ({"low": 4, "high": 9}, SettingError, r"tokenizer\.low = 4\.0: .*values of the text in it: 1\.0 to 3\.0"),
        ({"low": -9, "high": 0}, SettingError, r"values of the text in it: 1\.0 to 3\.0"),
        ({"high": math.inf}, SettingError, r"tokenizer\.high = inf: expected a finite number"),
        ({"method": "quantile", "low": 5}, InputError, r"no number from 5.* to inf in the text"),
        ({"method": "quantile", "low": 2.5}, InputError, r"too few different values for bins"),
        ({"nbins": 5}, SettingError, r"has no 'nbins'; did you mean 'n_bins'"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        train_tokenizer({"name": "bins", **settings}, ["1 2 3"])


@pytest.mark.parametrize("method", ["uniform", "quantile"])
@pytest.mark.parametrize("texts", [[], [""], ["<|endoftext|>"], ["5 5 5"], ["5"]])
def test_a_text_without_a_range_is_an_error(texts: list[str], method: Any) -> None:
    with pytest.raises(TesseraError):
        BinTokenizer.train(texts, method=method)


def test_training_reads_every_text_once_and_leaves_specials_out() -> None:
    joined = BinTokenizer.train(["1 2<|endoftext|>3\n4"])
    assert joined.state() == BinTokenizer.train(iter(["1 2", "3\n4"])).state()


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    values = np.random.default_rng(2).normal(size=500)
    tokenizer = trained(values, n_bins=100, method="quantile", specials={"<|a|>": 70_000, "<|b|>": None})
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    assert isinstance(loaded, BinTokenizer)
    assert loaded.fingerprint == tokenizer.fingerprint
    assert np.array_equal(loaded.edges, tokenizer.edges)
    assert np.array_equal(loaded.centres, tokenizer.centres)
    assert np.array_equal(loaded.encode_values(values), tokenizer.encode_values(values))
    assert loaded.dtype == np.uint32
    assert loaded.encode("<|a|>0.5<|b|>", specials="all")[::2] == [70_000, loaded.specials["<|b|>"]]
    with pytest.raises(InputError, match="not the state of a tokenizer"):
        tokenizer_from_state({"kind": "bins", "version": 1})
    state = json.loads(json.dumps(tokenizer.state()))
    assert tokenizer_from_state(state).fingerprint == tokenizer.fingerprint
