import torch

from tessera.ops.rotate import rotate_halves


def test_a_quarter_turn() -> None:
    x = torch.tensor([1.0, 2.0, 10.0, 20.0]).view(1, 1, 1, 4)
    turned = rotate_halves(x, torch.zeros(1, 2), torch.ones(1, 2))
    assert turned.flatten().tolist() == [-10.0, -20.0, 1.0, 2.0]


def test_is_a_product_of_complex_numbers() -> None:
    x, angles = torch.randn(2, 5, 3, 8), torch.randn(5, 4)
    expected = torch.complex(x[..., :4], x[..., 4:]) * torch.exp(1j * angles)[:, None]
    torch.testing.assert_close(
        rotate_halves(x, angles.cos(), angles.sin()), torch.cat((expected.real, expected.imag), -1)
    )


def test_gradients_in_float64() -> None:
    x = torch.randn(2, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    angles = torch.randn(3, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: rotate_halves(x, angles.cos(), angles.sin()), (x,))


def test_accepts_a_view_that_is_not_contiguous() -> None:
    x, angles = torch.randn(2, 3, 5, 4).transpose(1, 2), torch.randn(5, 2)
    c, s = angles.cos(), angles.sin()
    assert torch.equal(rotate_halves(x, c, s), rotate_halves(x.contiguous(), c, s))
