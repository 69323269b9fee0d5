"""The bits of 64 bytes against NumPy, on this machine's processor and on one that has no wide vectors."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.native.jit import compiled
from tessera.native.memory import address_of
from tessera.native.simd import ones, store_places, which_bytes, zeros_above

words = st.integers(0, 2**64 - 1)


@compiled
def found(address, fold, first, count):  # type: ignore[no-untyped-def]
    return which_bytes(address, fold, first, count)


@compiled
def counts(bits):  # type: ignore[no-untyped-def]
    return ones(bits), zeros_above(bits)


@compiled
def places(address, base, bits):  # type: ignore[no-untyped-def]
    return store_places(address, base, bits)


@given(st.binary(min_size=64, max_size=64), st.integers(0, 255), st.integers(0, 255), st.integers(0, 255))
@settings(deadline=None)  # the first call compiles
def test_which_bytes_are_in_a_range(text: bytes, fold: int, first: int, count: int) -> None:
    lanes = np.frombuffer(text, np.uint8)
    wanted = ((lanes | np.uint8(fold)) - np.uint8(first)) < count
    bits = np.packbits(wanted, bitorder="little").view(np.uint64)[0]
    assert found(address_of(lanes), fold, first, count) == bits


@given(words)
@settings(deadline=None)  # the first call compiles
def test_counts_of_bits(word: int) -> None:
    assert counts(np.uint64(word)) == (word.bit_count(), 64 - word.bit_length())


@given(words, st.integers(0, 2**62))
@settings(deadline=None)  # the first call compiles
def test_the_places_of_ones(word: int, base: int) -> None:
    out, rest, left = np.full(9, -1), word, [place for place in range(64) if word >> place & 1]
    rest = places(address_of(out), base, np.uint64(word))
    assert out[: min(len(left), 8)].tolist() == [base + place for place in left[:8]]
    assert out[8] == -1
    assert int(rest) == sum(1 << place for place in left[8:])


@pytest.mark.slow
def test_the_same_bits_and_pieces_on_a_plain_processor(tmp_path: Path) -> None:
    tests = Path(__file__).parents[1]
    plain = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "", "TESSERA_CACHE": str(tmp_path)}
    files = [tests / "native" / "test_simd.py", tests / "tokenizers" / "compiled" / "test_scanners.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", "-o", "addopts="]
    options = ["--import-mode=importlib", "-m", "not slow", *map(str, files)]
    done = subprocess.run(
        [*command, *options], env={**os.environ, **plain}, cwd=tests.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:]
