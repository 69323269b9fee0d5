import numpy as np
import pytest
import safetensors.torch
import torch

from tessera.errors import DamagedError, InputError
from tessera.store.tensors import (
    NUMPY_DTYPES,
    check_tensors,
    read_safetensors,
    safetensors_chunks,
    tensor_bytes,
    tensor_from_bytes,
)
from tessera.store.torch_types import DTYPE_NAMES, DTYPES


def of_every_type() -> dict[str, torch.Tensor]:
    raw = torch.arange(48, dtype=torch.uint8)
    tensors = {name: raw.view(dtype).clone() for name, dtype in DTYPES.items() if dtype != torch.bool}
    tensors |= {"BOOL": raw % 3 == 0, "scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3), "ünï": torch.ones(1)}
    return tensors | {"strided": torch.arange(12.0).reshape(3, 4).T, "nan": torch.tensor([float("nan"), -0.0])}


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and bytes(tensor_bytes(a)) == bytes(tensor_bytes(b))


def test_the_file_is_what_safetensors_itself_reads(tmp_path):
    tensors = of_every_type()
    data = b"".join(safetensors_chunks(tensors))
    reference = safetensors.torch.load(data)
    assert reference.keys() == tensors.keys()
    assert all(same_bits(reference[name], tensors[name]) for name in tensors)
    (tmp_path / "x.safetensors").write_bytes(data)
    ours = read_safetensors(tmp_path / "x.safetensors")
    assert all(same_bits(ours[name], tensors[name]) for name in tensors)


def test_the_file_is_byte_for_byte_the_one_that_safetensors_writes():
    tensors = {"b": torch.randn(3, 2), "a": torch.randn(4).bfloat16(), "c": torch.arange(5)}
    assert b"".join(safetensors_chunks(tensors)) == safetensors.torch.save(tensors)


def test_numpy_arrays_are_the_same_bytes_and_come_back(tmp_path):
    tensors = {name: each for name, each in of_every_type().items() if DTYPE_NAMES[each.dtype] in NUMPY_DTYPES}
    arrays = {name: each.numpy() for name, each in tensors.items()} | {"big end": np.arange(3, dtype=">i4")}
    data = b"".join(safetensors_chunks(arrays))
    assert data == b"".join(safetensors_chunks(tensors | {"big end": torch.arange(3, dtype=torch.int32)}))
    (tmp_path / "x.safetensors").write_bytes(data)
    back = read_safetensors(tmp_path / "x.safetensors", engine="numpy")
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        assert back[name].shape == array.shape
        np.testing.assert_array_equal(back[name], array)
    back["scalar"][...] = 1.0  # changes stay in memory
    assert (tmp_path / "x.safetensors").read_bytes() == data


def test_bfloat16_comes_to_numpy_as_float32(tmp_path):
    tensor = torch.tensor([1.0, -0.0, 3.140625, float("inf"), float("nan"), 1e-40]).bfloat16()
    (tmp_path / "x.safetensors").write_bytes(b"".join(safetensors_chunks({"x": tensor})))
    for back in (
        read_safetensors(tmp_path / "x.safetensors", engine="numpy")["x"],
        tensor_from_bytes(bytearray(tensor_bytes(tensor)), "BF16", [6], engine="numpy"),
    ):
        assert back.dtype == np.float32
        np.testing.assert_array_equal(back, tensor.float().numpy())
    (tmp_path / "x.safetensors").write_bytes(b"".join(safetensors_chunks({"x": tensor.to(torch.float8_e5m2)})))
    with pytest.raises(InputError, match="NumPy has no numbers of the type F8_E5M2"):
        read_safetensors(tmp_path / "x.safetensors", engine="numpy")


def test_a_contiguous_tensor_is_not_copied():
    tensor = torch.zeros(4)
    view = tensor_bytes(tensor)
    tensor[0] = 1.0
    assert bytes(view[:4]) == b"\x00\x00\x80\x3f"


def test_bytes_and_back():
    for tensor in of_every_type().values():
        back = tensor_from_bytes(bytearray(tensor_bytes(tensor)), DTYPE_NAMES[tensor.dtype], list(tensor.shape))
        assert same_bits(back, tensor)


@pytest.mark.parametrize(
    "name", ["model", "model.", ".weight", "../etc.passwd", "a/b.c", "model.__metadata__", "mödel.x"]
)
def test_a_name_without_a_group_that_can_be_a_file(name):
    with pytest.raises(InputError, match="expected a name like"):
        check_tensors({name: torch.zeros(1)})


@pytest.mark.parametrize("tensor", [torch.zeros(2, dtype=torch.complex128), torch.zeros(2, 2).to_sparse()])
def test_what_cannot_be_stored_is_named(tensor):
    with pytest.raises(InputError, match=r"'model\.x'"):
        check_tensors({"model.fine": torch.zeros(1), "model.x": tensor})


def test_a_file_that_is_none(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00 nothing")
    with pytest.raises(DamagedError, match=r"x\.safetensors"):
        read_safetensors(tmp_path / "x.safetensors")
