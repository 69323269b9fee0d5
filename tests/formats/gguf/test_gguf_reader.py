"""Whole files are read as the `gguf` package wrote them; those with something wrong are refused, with a reason."""

import struct
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tests.formats.gguf.small_files import entry, header, tensor, two_tensors

from tessera.errors import FormatError, InputError
from tessera.formats.gguf.reader import MOST_METADATA, read_gguf

U32, STRING, ARRAY = 4, 8, 9
LIMIT = 2**63


def array(key: str, code: int, count: int, content: bytes = b"") -> bytes:
    name = key.encode()
    return struct.pack("<Q", len(name)) + name + struct.pack("<IIQ", ARRAY, code, count) + content


def nested(depth: int) -> bytes:
    inner = struct.pack("<IQ", U32, 1) + bytes(4)
    for _ in range(depth):
        inner = struct.pack("<IQ", ARRAY, 1) + inner
    return struct.pack("<Q", 1) + b"k" + struct.pack("<I", ARRAY) + inner


def test_what_the_package_writes_is_read(tmp_path: Path) -> None:
    path = tmp_path / "theirs.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(77)
    writer.add_rope_freq_base(0.1)
    writer.add_token_list(["a", "Ünicode", "c" * 300_000])
    writer.add_token_types([1, 3, 6])
    writer.add_array("flags", [True, False, True])
    writer.add_int64("deep", -(2**40))
    random = np.random.default_rng(0)
    written = {"first": random.standard_normal((3, 4, 64), np.float32), "second": random.standard_normal(7, np.float32)}
    for name, each in written.items():
        writer.add_tensor(name, each)
    writer.add_tensor("third", gguf.quants.quantize(written["first"], gguf.GGMLQuantizationType.Q8_0), raw_dtype=8)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = read_gguf(path)
    assert found.metadata["llama.context_length"] == 77
    assert found.metadata["llama.rope.freq_base"] == np.float32(0.1)
    assert found.metadata["tokenizer.ggml.tokens"] == ["a", "Ünicode", "c" * 300_000]
    assert found.metadata["tokenizer.ggml.token_type"].tolist() == [1, 3, 6]
    assert found.metadata["flags"].tolist() == [True, False, True]
    assert found.metadata["deep"] == -(2**40)
    for name, each in written.items():
        assert found.tensors[name].shape == each.shape
        np.testing.assert_array_equal(found.array(name), each)
    expected = torch.from_numpy(written["first"])
    assert (found.tensor("third", torch.bfloat16) - expected).abs().max() < 0.03


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_a_tensor_comes_in_the_type_that_is_asked_for(dtype: torch.dtype, tmp_path: Path) -> None:
    written = two_tensors(tmp_path / "m.gguf")
    found = read_gguf(tmp_path / "m.gguf").tensor("a.weight", dtype)
    assert found.dtype == dtype
    torch.testing.assert_close(found, written["a.weight"].to(dtype), rtol=0, atol=0)


def test_version_2_is_read(tmp_path: Path) -> None:
    path = tmp_path / "old.gguf"
    path.write_bytes(header(entry("a", 1), tensors=(tensor("t", 2),), version=2, data=struct.pack("<2f", 1.0, 2.0)))
    assert read_gguf(path).array("t").tolist() == [1.0, 2.0]


WRONG = {
    "nothing": (b"", "magic"),
    "another kind": (b"PK\x03\x04" + bytes(40), "no GGUF file"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "version 1": (header(version=1), "version 1"),
    "version 0": (header(version=0), "version 0"),
    "no counts": (b"GGUF" + struct.pack("<I", 3), "8 bytes where 0 are left"),
    "too many tensors": (header(n_tensors=LIMIT), "bytes where 0 are left|bytes where 8 are left"),
    "too many entries": (header(n_entries=LIMIT), "would need"),
    "49 bytes of a great array": (
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + array("k", U32, LIMIT)).ljust(49, b"\0"),
        "numbers of 'k' would need",
    ),
    "a great array of texts": (header(array("k", STRING, LIMIT)), "strings of 'k' would need"),
    "a great array of arrays": (header(array("k", ARRAY, LIMIT)), "arrays of 'k' would need"),
    "a great text": (header(entry("k", "")[:-8] + struct.pack("<Q", LIMIT)), "would need"),
    "a great key": (header(struct.pack("<Q", 2**32) + bytes(32)), "more than 65536"),
    "text that is none": (header(entry("k", "abc")[:-3] + b"\xff\xfe\xfd"), "not UTF-8"),
    "texts that are none": (header(array("k", STRING, 1, struct.pack("<Q", 1) + b"\xff")), "not UTF-8"),
    "a type that is none": (header(entry("k", 1)[:-8] + struct.pack("<II", 99, 0)), "of type 99"),
    "elements of no type": (header(array("k", 77, 1, bytes(8))), "of type 77"),
    "a truth of 2": (header(entry("k", True)[:-1] + b"\x02"), "truth values"),
    "arrays in arrays": (header(nested(9)), "deeper than"),
    "a key twice": (header(entry("k", 1), entry("k", 2)), "twice"),
    "a tensor twice": (header(tensors=(tensor("t", 2), tensor("t", 2, offset=32)), data=bytes(64)), "twice"),
    "overlapping tensors": (header(tensors=(tensor("t", 16), tensor("u", 16, offset=32)), data=bytes(99)), "overlap"),
    "a tensor beyond the file": (header(tensors=(tensor("t", 64),), data=bytes(64)), "ends beyond"),
    "a tensor far beyond": (header(tensors=(tensor("t", 4, offset=LIMIT),), data=bytes(64)), "ends beyond"),
    "a great tensor": (header(tensors=(tensor("t", LIMIT, LIMIT, LIMIT),), data=bytes(64)), "ends beyond"),
    "an odd place": (header(tensors=(tensor("t", 2, offset=8),), data=bytes(64)), "no multiple of 32"),
    "no dimension": (header(tensors=(tensor("t"),), data=bytes(64)), "0 dimensions"),
    "many dimensions": (header(tensors=(tensor("t", 1, 1, 1, 1, 1),), data=bytes(64)), "5 dimensions"),
    "an empty tensor": (header(tensors=(tensor("t", 4, 0),), data=bytes(64)), "empty"),
    "rows of half blocks": (header(tensors=(tensor("t", 48, code=8),), data=bytes(99)), "no multiple of q8_0's 32"),
    "a tensor of no type": (header(tensors=(tensor("t", 32, code=4),), data=bytes(99)), "of type 4"),
    "alignment of 3": (header(entry("general.alignment", 3)), "power of two"),
    "alignment of 0": (header(entry("general.alignment", 0)), "power of two"),
    "alignment in words": (header(entry("general.alignment", "32")), "power of two"),
    "great alignment": (header(entry("general.alignment", 2**30)), "power of two"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_refused_at_once(case: str, tmp_path: Path) -> None:
    content, why = WRONG[case]
    path = tmp_path / "wrong.gguf"
    path.write_bytes(content)
    begun = time.perf_counter()
    with pytest.raises(FormatError, match=why) as caught:
        read_gguf(path)
    assert time.perf_counter() - begun < 0.5
    assert str(path) in str(caught.value)


def test_every_beginning_of_a_file_is_refused(tmp_path: Path) -> None:
    two_tensors(tmp_path / "m.gguf")
    content = (tmp_path / "m.gguf").read_bytes()
    path = tmp_path / "part.gguf"
    for length in range(0, len(content) - 32, 7):
        path.write_bytes(content[:length])
        with pytest.raises(FormatError):
            read_gguf(path)


def test_a_file_that_shrinks_after_it_was_opened_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    two_tensors(path)
    found = read_gguf(path)
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(FormatError, match="ends within the tensor"):
        found.array("a.weight")


def test_metadata_beyond_any_vocabulary_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "great.gguf"
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + array("k", U32, MOST_METADATA))
        file.truncate(2**33)  # a hole: it takes no room on the disk
    with pytest.raises(FormatError, match="256 MiB of metadata"):
        read_gguf(path)


def test_no_file_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_gguf(tmp_path / "none.gguf")
