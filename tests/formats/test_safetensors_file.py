"""The bounded reader of safetensors against the library, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from tessera.errors import FormatError
from tessera.formats import safetensors_file
from tessera.formats.json_file import parse_json_object
from tessera.formats.safetensors_file import SafetensorsFile, SafetensorsModel, open_shards
from tessera.formats.safetensors_out import Entry, write_safetensors


def some_tensors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        "wide": torch.randn(64, 129) * 100,
        "half": torch.randn(7, 3).half(),
        "brain": torch.randn(3, 5, 2).bfloat16(),
        "double": torch.randn(11).double(),
        "scalar": torch.tensor(0.5),
        "empty": torch.zeros(0, 4),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_reads_what_the_library_wrote(dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors_file, "_CHUNK", 1000)  # so that a tensor is many pieces, the last one shorter
    tensors, path = some_tensors(), tmp_path / "model.safetensors"
    safetensors.torch.save_file(tensors, path, {"format": "pt"})
    model = SafetensorsModel(path, [SafetensorsFile(path)])
    assert model.shapes == {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        read = model.tensor(name, dtype)
        assert read.dtype == dtype
        assert torch.equal(read, tensor.to(dtype))
    assert model.same("wide", "wide") and not model.same("wide", "half")


def test_the_library_reads_what_is_written(tmp_path: Path) -> None:
    tensors, path = some_tensors(), tmp_path / "model.safetensors"
    entries = [Entry(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
    write_safetensors(path, entries, iter(tensors.values()), {"format": "pt", "a": "ü"})
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt", "a": "ü"}
        assert all(torch.equal(file.get_tensor(name), tensor) for name, tensor in tensors.items())


def test_a_tensor_of_whole_numbers_is_no_weight(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"packed": torch.zeros(4, dtype=torch.uint8)}, path)
    with pytest.raises(FormatError, match=r"'packed' is of the type U8: read are F64, F32, F16, BF16"):
        SafetensorsModel(path, [SafetensorsFile(path)]).check_float("packed")


def file_of(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    def listed(value: Any) -> Any:
        return list(value) if isinstance(value, tuple) else value

    return {"dtype": dtype, "shape": listed(shape), "data_offsets": listed(offsets)}


MALFORMED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "0 bytes are not a safetensors file"),
    "short": (b"\x01\x00", "2 bytes are not"),
    "no header": ((0).to_bytes(8, "little"), "8 bytes are not"),
    "endless header": (file_of({}, length=2**63), "a header of 9223372036854775808 bytes is claimed"),
    "header past the end": (file_of({}, length=3), "a header of 3 bytes is claimed in a file of 10"),
    "not JSON": (file_of(b"{nothing}"), "not JSON that can be read"),
    "not text": (file_of(b'{"\xff":1}'), "not JSON that can be read"),
    "a list": (file_of([]), "in place of a JSON object"),
    "twice": (file_of(b'{"a":1,"a":2}'), "the name 'a' is there twice"),
    "deep": (file_of(b"[" * 100_000), "nested too deeply"),
    "long number": (file_of(b'{"a":' + b"9" * 10_000 + b"}"), "not JSON that can be read"),
    "infinite": (file_of(b'{"a":1e999}'), "too large a number"),
    "NaN": (file_of(b'{"a":NaN}'), "NaN is no number"),
    "metadata": (file_of({"__metadata__": {"a": 1}}), "__metadata__ is not a map"),
    "no entry": (file_of({"a": 3}), "is not its dtype, shape and data_offsets"),
    "more": (file_of({"a": entry() | {"more": 1}}, bytes(8)), "is not its dtype"),
    "dtype": (file_of({"a": entry("F31")}, bytes(8)), "has the dtype 'F31'"),
    "dtype list": (file_of({"a": entry([])}, bytes(8)), "has the dtype"),
    "negative": (file_of({"a": entry(shape=(-2,))}, bytes(8)), "has the shape"),
    "true": (file_of({"a": entry(shape=(2, True))}, bytes(8)), "has the shape"),
    "float": (file_of({"a": entry(shape=(2.0,))}, bytes(8)), "has the shape"),
    "overflow": (file_of({"a": entry(shape=(2**62, 2**62))}, bytes(8)), "has the shape"),
    "many dimensions": (file_of({"a": entry(shape=(1,) * 9 + (2,))}, bytes(8)), "has the shape"),
    "huge": (file_of({"a": entry(shape=(2**40, 2**40))}, bytes(8)), "does not fill its 8 bytes"),
    "backwards": (file_of({"a": entry(offsets=(8, 0))}, bytes(8)), "does not fill"),
    "offsets": (file_of({"a": entry(offsets=(0, 8, 8))}, bytes(8)), "has the data_offsets"),
    "past the end": (file_of({"a": entry()}, bytes(7)), "end at byte"),
    "bytes left": (file_of({"a": entry()}, bytes(9)), "end at byte"),
    "overlap": (file_of({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)), "'b' overlaps"),
    "hole": (file_of({"a": entry(), "b": entry(offsets=(9, 17))}, bytes(17)), "'b' leaves a hole"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_files_are_refused(case: str, tmp_path: Path) -> None:
    content, why = MALFORMED[case]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=r"model\.safetensors: ") as error:
        SafetensorsFile(path)
    assert why in str(error.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="cannot be read"):
        SafetensorsFile(tmp_path / "model.safetensors")
    with pytest.raises(FormatError, match="cannot be read"):
        SafetensorsFile(tmp_path)


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"a": torch.ones(100)}, path)
    file = SafetensorsFile(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FormatError, match="it ended at byte"):
        file.tensor_into("a", torch.empty(100))


def test_shards(tmp_path: Path) -> None:
    for i in range(2):
        safetensors.torch.save_file({f"t{i}": torch.full((2,), float(i))}, tmp_path / f"{i}.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"t0": "0.safetensors", "t1": "1.safetensors"}}))
    model = open_shards(index)
    assert [model.tensor(f"t{i}", torch.float32).tolist() for i in range(2)] == [[0, 0], [1, 1]]


@pytest.mark.parametrize(
    ("weight_map", "why"),
    [
        (None, "no weight_map"),
        ({}, "no weight_map"),
        ({"t": 3}, "no weight_map"),
        ({"t": "../other.safetensors"}, "is not the name of a file beside it"),
        ({"t": "/etc/passwd"}, "is not the name of a file beside it"),
        ({"t": ".."}, "is not the name of a file beside it"),
        ({"t": ""}, "is not the name of a file beside it"),
        ({"t": "a\0.safetensors"}, "is not the name of a file beside it"),
        ({"t": "pytorch_model.bin"}, "no other kind is read"),
        ({"t": "none.safetensors"}, "cannot be read"),
        ({"u": "0.safetensors"}, "is not in 0.safetensors, where the index says it is"),
        ({"t": "0.safetensors"}, "'more' of 0.safetensors is not listed"),
    ],
)
def test_a_wrong_index_is_refused(weight_map: Any, why: str, tmp_path: Path) -> None:
    safetensors.torch.save_file({"t": torch.ones(2), "more": torch.ones(1)}, tmp_path / "0.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(FormatError) as error:
        open_shards(index)
    assert why in str(error.value)


def test_json_is_read_as_ever() -> None:
    text = '{"a": [1, -2.5e3, true, null, "\\u00fc"], "b": {"a": {}}}'
    assert parse_json_object(text.encode(), Path("x")) == json.loads(text)
    assert parse_json_object(b"\xef\xbb\xbf{}", Path("x")) == {}
