import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.data.shuffle import Purpose, permutation, random_words
from tessera.errors import SettingError


@given(n=st.integers(0, 200), seed=st.integers(0, 2**64 - 1), counter=st.integers(0, 2**63))
def test_a_permutation_holds_each_number_once(n, seed, counter):
    order = permutation(n, seed=seed, purpose=Purpose.EPOCH, counter=counter)
    assert sorted(order) == list(range(n))


def test_all_orders_of_three_are_equally_likely():
    orders = [tuple(permutation(3, seed=seed, purpose=Purpose.EPOCH)) for seed in range(6000)]
    counts = np.unique(orders, axis=0, return_counts=True)[1]
    assert len(counts) == 6
    assert ((counts - 1000) ** 2 / 1000).sum() < 20.5  # chi-square, 5 degrees of freedom: p = 0.001


def test_numbers_depend_on_seed_purpose_and_counter():
    draws = {
        tuple(random_words(4, seed=seed, purpose=purpose, counter=counter))
        for seed in range(3)
        for purpose in Purpose
        for counter in range(3)
    }
    assert len(draws) == 3 * len(Purpose) * 3


def philox(counter: list[int], key: list[int]) -> list[int]:
    """One block of Philox4x64-10, from the paper (Salmon et al. 2011, section 3.3)."""
    for _ in range(10):
        left, right = 0xD2E7470EE14C6C93 * counter[0], 0xCA5A826395121157 * counter[2]
        counter = [right >> 64 ^ counter[1] ^ key[0], right, left >> 64 ^ counter[3] ^ key[1], left]
        counter = [word % 2**64 for word in counter]
        key = [(key[0] + 0x9E3779B97F4A7C15) % 2**64, (key[1] + 0xBB67AE8584CAA73B) % 2**64]
    return counter


def test_the_words_are_philox_blocks_of_the_counter():
    words = random_words(6, seed=2**63 + 7, purpose=Purpose.EPOCH, counter=5)
    key = [2**63 + 7, int(Purpose.EPOCH)]
    assert words.tolist() == (philox([1, 5, 0, 0], key) + philox([2, 5, 0, 0], key))[:6]


def test_a_negative_seed_is_refused():
    with pytest.raises(SettingError, match="seed = -1"):
        random_words(1, seed=-1, purpose=Purpose.SPLIT)
