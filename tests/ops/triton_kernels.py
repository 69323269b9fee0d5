"""The Triton kernels against the plain versions. No file that pytest finds by itself: `test_triton.py` runs it in a
process of its own, as Triton's interpreter must be asked for before Triton is imported. Where there is a GPU, the same
tests are of the kernels on it: `pytest tests/ops/triton_kernels.py`.
"""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tessera.ops.gated import plain_swiglu, swiglu
from tessera.ops.kernels import kernels_for
from tessera.ops.linear_loss import loss_step
from tessera.ops.loss import cross_entropy, linear_cross_entropy
from tessera.ops.norm import plain_rms_norm, rms_norm
from tessera.ops.rotate import rotate_halves, rotate_pairs
from tessera.ops.triton import norm

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def where_the_kernels_are() -> Iterator[None]:
    with torch.device(DEVICE):
        yield


def generator(seed: int) -> torch.Generator:
    return torch.Generator(DEVICE).manual_seed(seed)


def test_the_kernels_are_there() -> None:
    assert kernels_for(torch.zeros(1)) is not None
    assert kernels_for(torch.zeros(1, dtype=torch.float64)) is None


def close(ours: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    """To the rounding of the type; the interpreter cuts to 16 bits where a GPU rounds."""
    assert ours.dtype == dtype
    error = (ours.double() - exact.double()).norm() / exact.double().norm().clamp_min(1e-30)
    assert error < (1e-6 if dtype == torch.float32 else 8e-3), error


def compare(ours: Tensor, plain: Tensor, inputs: list[Tensor], exact: list[Tensor], dtype: torch.dtype) -> None:
    """Values and gradients: `ours` of `inputs` in `dtype`, `plain` of the same numbers in float64."""
    close(ours, plain, dtype)
    seed = torch.randn(plain.shape, generator=generator(1)).to(dtype)
    wanted = torch.autograd.grad(plain, exact, seed.double())
    for found, gradient in zip(torch.autograd.grad(ours, inputs, seed), wanted, strict=True):
        close(found, gradient, dtype)


def made(dtype: torch.dtype, *shapes: tuple[int, ...]) -> tuple[list[Tensor], list[Tensor]]:
    """Random tensors in `dtype`, and the same numbers in float64."""
    random = generator(0)
    low = [torch.randn(shape, generator=random).to(dtype).requires_grad_() for shape in shapes]
    return low, [x.detach().double().requires_grad_() for x in low]


@dtypes
@pytest.mark.parametrize("shape", [(1, 3), (7, 33), (2, 3, 65)])
def test_rms_norm(dtype: torch.dtype, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norm, "PROGRAMS", 3)
    low, exact = made(dtype, shape, shape[-1:])
    compare(rms_norm(*low, 1e-5), plain_rms_norm(*exact, 1e-5), low, exact, dtype)


@dtypes
@pytest.mark.parametrize("shape", [(1,), (7, 33), (3, 1025)])
def test_swiglu(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    low, exact = made(dtype, shape, shape)
    compare(swiglu(*low), plain_swiglu(*exact), low, exact, dtype)


@dtypes
@pytest.mark.parametrize("rotate", [rotate_halves, rotate_pairs])
@pytest.mark.parametrize(("width", "pairs"), [(9, 3), (2, 1), (10, 5)])
@pytest.mark.parametrize("batched", [False, True])
def test_rotate(dtype: torch.dtype, rotate: type, width: int, pairs: int, batched: bool) -> None:
    low, exact = made(dtype, (2, 2, 3, width))
    angles = torch.randn((2, 3, pairs) if batched else (3, pairs), generator=generator(2))
    turned = rotate(low[0].transpose(1, 2), angles.cos(), angles.sin())
    compare(turned, rotate(exact[0].transpose(1, 2), angles.cos(), angles.sin()), low, exact, dtype)


@dtypes
@pytest.mark.parametrize("n_vocab", [5, 4099])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("z_loss", [0.0, 0.01])
@pytest.mark.parametrize("cap", [None, 2.0])
def test_the_step_of_the_loss(
    dtype: torch.dtype, n_vocab: int, smoothing: float, z_loss: float, cap: float | None
) -> None:
    (logits,), (exact,) = made(dtype, (3, n_vocab))
    logits, targets, shares = logits.detach() * 3, torch.tensor([0, n_vocab // 2, n_vocab - 1]), torch.rand(3)
    exact = logits.double()
    kernels = kernels_for(logits)
    assert kernels is not None
    options = (smoothing, z_loss, cap)
    losses = kernels.loss_step(logits.clone(), targets, shares, *options, False)
    found, wanted = logits.clone(), exact.clone()
    again = kernels.loss_step(found, targets, shares, *options, True)
    right = loss_step(wanted, targets, shares.double(), *options, True)
    assert torch.equal(losses, again)
    torch.testing.assert_close(losses.double(), right, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5 if dtype == torch.float32 else 1e-2, atol=1e-6)


def test_a_cap_is_exact_for_small_and_for_huge_logits() -> None:
    logits = torch.tensor([[1e-4, -2e-3, 0.05, 0.0999, 0.1001, 1.0, -50.0, 1e30]]).T.repeat(1, 2)
    logits[:, 1] = 0
    kernels = kernels_for(logits)
    assert kernels is not None
    losses = kernels.loss_step(logits.clone(), torch.zeros(8, dtype=torch.int64), torch.ones(8), 0.0, 0.0, 1.0, False)
    torch.testing.assert_close(
        losses.double(), cross_entropy_of(logits.double().tanh()), rtol=2e-7 if DEVICE == "cpu" else 2e-6, atol=0
    )


def cross_entropy_of(logits: Tensor) -> Tensor:
    return logits.logsumexp(dim=1) - logits[:, 0]


@dtypes
def test_the_whole_loss(dtype: torch.dtype) -> None:
    low, exact = made(dtype, (11, 8), (37, 8))
    targets = torch.arange(11) % 30
    targets[4] = -100
    options = {"weights_N": torch.rand(11), "label_smoothing": 0.1, "z_loss": 0.01, "logit_cap": 3.0, "n_vocab": 30}
    ours = linear_cross_entropy(*low, targets, chunk=4, **options)
    plain = cross_entropy(exact[0] @ exact[1].T, targets, **options)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), plain, rtol=1e-6 if dtype == torch.float32 else 1e-2, atol=0)
    wanted = torch.autograd.grad(plain, exact)
    for found, gradient in zip(torch.autograd.grad(ours, low), wanted, strict=True):
        assert (found.double() - gradient).norm() < (1e-5 if dtype == torch.float32 else 2e-2) * gradient.norm()
