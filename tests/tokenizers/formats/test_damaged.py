"""Damaged files: each gives one clear error or, where the damage is none, a tokenizer that works."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tessera.errors import TesseraError
from tessera.tokenizers import RegexBpe, export_tokenizer, import_tokenizer

BPE = RegexBpe.train(
    ["the cat sat on the mat"], vocab_size=264, pattern="gpt2", specials={"<|endoftext|>": None, "<|far|>": 900}
)
FORMATS = ["tessera", "huggingface", "tiktoken", "gpt2"]
DAMAGES = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
VALUES: list[Any] = [
    None,
    True,
    -1,
    1.5,
    10**30,
    1e400,
    "",
    "x",
    "\ud800",
    [],
    [[]],
    {},
    {"type": "Sequence"},
    [None, 3],
]


def survives(path: Path) -> None:
    """Whatever is in the file, nothing but a TesseraError comes out of reading and of using it."""
    for format in (None, *FORMATS):
        try:
            tokenizer = import_tokenizer(path, format=format)
            assert isinstance(tokenizer.decode(tokenizer.encode("the cat 12 é<|endoftext|>", specials="all")), str)
        except TesseraError as error:
            assert str(error) and "\n" not in str(error)


@pytest.mark.parametrize("format", FORMATS)
@DAMAGES
@given(data=st.data())
def test_truncated_and_flipped(tmp_path: Path, format: str, data: st.DataObject) -> None:
    files = export_tokenizer(BPE, tmp_path / "x", format=format)
    damaged = data.draw(st.sampled_from(files))
    content = bytearray(damaged.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
            content[place] ^= data.draw(st.integers(1, 255))
    damaged.write_bytes(content)
    survives(files[0])


def places(data: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in it with each of its keys."""
    for key in list(data) if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ():
        yield data, key
        yield from places(data[key])


@pytest.mark.parametrize("format", ["tessera", "huggingface", "gpt2"])
@DAMAGES
@given(seed=st.integers(0, 2**32), value=st.sampled_from(VALUES), delete=st.booleans())
def test_keys_deleted_and_values_replaced(tmp_path: Path, format: str, seed: int, value: Any, delete: bool) -> None:
    files = export_tokenizer(BPE, tmp_path / "x", format=format)
    damaged = random.Random(seed).choice([file for file in files if file.suffix != ".txt"])
    data = json.loads(damaged.read_text())
    # Long tables would take all the damage: of each container two keys at most.
    found = list(places(data))
    containers = {id(container): [place for place in found if place[0] is container] for container, _ in found}
    choices = [place for same in containers.values() for place in (same[0], same[-1])]
    container, key = random.Random(seed).choice(choices)
    if delete:
        del container[key]
    else:
        container[key] = value
    damaged.write_text(json.dumps(data))
    survives(files[0])


@pytest.mark.parametrize(
    "content",
    [
        b'{"model":' * 50_000,
        b'{"added_tokens": [], "pre_tokenizer": '
        + b'{"type": "Sequence", "pretokenizers": [' * 300
        + b"]}" * 300
        + b"}",
        b'{"a": ' + b"9" * 5000 + b"}",
        b"A" * 100_000 + b"= 1\n",
        b"\n" * 100_000,
        b"\x0a\x7f\x0a\x01a\x15" * 10_000,
    ],
)
def test_large_nonsense(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    survives(tmp_path / "x")
