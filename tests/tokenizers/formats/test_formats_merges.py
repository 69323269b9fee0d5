"""Merges recovered from ranks, against the two rules on random vocabularies."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.errors import InputError
from tessera.tokenizers.encode import merge_listed, merge_lowest
from tessera.tokenizers.formats.merges import (
    are_recovered,
    listed_merges,
    read_merges,
    recover_merges,
    simplest_rule,
)
from tessera.tokenizers.regex_bpe import RegexBpe


@st.composite
def vocabularies(draw: st.DrawFn) -> dict[bytes, int]:
    """Any tokens over two letters with any ids: what no training would give as well."""
    longer = draw(st.lists(st.binary(min_size=2, max_size=7).map(lambda b: bytes(97 + x % 2 for x in b)), unique=True))
    tokens = [b"a", b"b", *longer]
    return dict(zip(tokens, draw(st.permutations(range(len(tokens)))), strict=True))


def joined(ranks: dict[bytes, int], merges: list[tuple[int, int]]) -> dict[tuple[int, int], tuple[int, int]]:
    tokens = {id: token for token, id in ranks.items()}
    return {pair: (order, ranks[tokens[pair[0]] + tokens[pair[1]]]) for order, pair in enumerate(merges)}


@settings(max_examples=300, deadline=None)
@given(vocabularies())
def test_recovered_merges_give_the_ids_of_the_ranks(ranks: dict[bytes, int]) -> None:
    merges, alone = recover_merges(ranks)
    rule = joined(ranks, merges)
    for length in range(1, 10):
        for letters in itertools.islice(itertools.product(b"ab", repeat=length), 0, 512, 3):
            piece = bytes(letters)
            assert merge_listed([ranks[bytes([byte])] for byte in piece], rule) == merge_lowest(piece, ranks)
    for token, id in ranks.items():
        assert (merge_lowest(token, ranks) == [id]) == (id not in alone)
    assert simplest_rule(ranks, merges, True) == (None, True)
    assert simplest_rule(ranks, merges, False) == (None, not alone)


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_likely_pairs_change_nothing(data: st.DataObject) -> None:
    """Ranks as a training gives them, parts before the whole, so that pairs are tried; wrong ones are among them."""
    tokens = [b"a", b"b", b"c"]
    likely = []
    for _ in range(data.draw(st.integers(0, 14))):
        pair = data.draw(st.tuples(*[st.integers(0, len(tokens) - 1)] * 2))
        if tokens[pair[0]] + tokens[pair[1]] not in tokens:
            likely.append(pair)
            tokens.append(tokens[pair[0]] + tokens[pair[1]])
    ranks = {token: rank for rank, token in enumerate(tokens)}
    recovered = recover_merges(ranks)
    assert recover_merges(ranks, likely) == recovered
    assert not are_recovered(ranks, likely) or (likely, []) == recovered
    merges, alone = recovered
    if alone or any(max(pair) >= rank for pair, rank in zip(merges, range(3, len(ranks)), strict=False)):
        assert not are_recovered(ranks, merges)


@settings(max_examples=300, deadline=None)
@given(vocabularies())
def test_what_is_said_of_all_at_once_is_so(ranks: dict[bytes, int]) -> None:
    merges, alone = recover_merges(ranks)
    assert not are_recovered(ranks, merges) or not alone
    for wrong in (merges[::-1], merges[1:], [(second, first) for first, second in merges]):
        assert wrong == merges or not are_recovered(ranks, wrong)


def test_the_merges_of_a_training_are_seen_at_once() -> None:
    """And with ids that leave places out, as special tokens do."""
    text = "the quick brown fox jumps over the lazy dog while other foxes jumped quickly over lazier dogs " * 3
    trained = RegexBpe.train([text], vocab_size=300, specials=[])
    ranks = {token: 2 * id + 5 * (id > 260) for token, id in trained.ranks.items()}
    merges, alone = recover_merges(ranks)
    assert not alone and len(merges) == 44
    assert are_recovered(ranks, merges)


def test_a_part_that_comes_about_otherwise_is_not_taken_apart() -> None:
    """Of "aaaba" the likely merge is wrong, so nothing that holds it may be tried."""
    tokens = [b"a", b"b", b"c", b"aa", b"ba", b"ab", b"ac", b"aaab", b"aaaba", b"aaabab", b"aaa", b"aaaabab"]
    ranks = {token: rank for rank, token in enumerate(tokens)}
    likely = [(0, 0), (1, 0), (0, 1), (0, 2), (3, 5), (7, 0), (8, 1), (0, 3), (0, 9)]
    assert recover_merges(ranks, likely) == recover_merges(ranks)
    assert recover_merges(ranks)[1] == [11]


@settings(max_examples=200, deadline=None)
@given(vocabularies())
def test_likely_pairs_change_nothing_whatever_the_ranks(ranks: dict[bytes, int]) -> None:
    likely = [(ranks[one], ranks[two]) for one, two in itertools.product(ranks, repeat=2) if one + two in ranks]
    assert recover_merges(ranks, likely) == recover_merges(ranks)


def test_other_merges_stay_as_they_are() -> None:
    ranks = {b"a": 0, b"b": 1, b"c": 2, b"ab": 3, b"bc": 4, b"abc": 5}
    assert recover_merges(ranks) == ([(0, 1), (1, 2), (3, 2)], [])
    for merges in ([(1, 2), (0, 1), (3, 2)], [(0, 1), (1, 2), (0, 4)], [(0, 1)]):
        assert simplest_rule(ranks, merges, False) == (merges, False)
    assert simplest_rule(ranks, None, False) == (None, True)
    assert listed_merges(ranks, [(1, 2), (0, 1), (1, 2)]) == [(1, 2), (0, 1)]


def test_of_a_merge_listed_twice_the_later_counts() -> None:
    vocabulary = {"a": 0, "b": 1, "c": 2, "ab": 3, "bc": 4}
    assert read_merges([("a", "b"), ("b", "c"), ("a", "b")], vocabulary, "x") == [(1, 2), (0, 1)]
    with pytest.raises(InputError, match=r"x: merge 1 \(a c\) needs 'ac', which is no token"):
        read_merges([("a", "c")], vocabulary, "x")
