import pytest
import safetensors.torch
import torch

from tessera.errors import DamagedError, InputError
from tessera.store.tensors import (
    DTYPE_NAMES,
    DTYPES,
    check_tensors,
    read_safetensors,
    safetensors_chunks,
    tensor_bytes,
    tensor_from_bytes,
)


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
