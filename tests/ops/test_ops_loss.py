from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tessera.errors import InputError
from tessera.ops.loss import cross_entropy, linear_cross_entropy


def head(n_rows: int, width: int, n_vocab: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(n_rows)
    h = torch.randn(n_rows, width, generator=random, dtype=dtype).requires_grad_()
    weight = torch.randn(n_vocab, width, generator=random, dtype=dtype).requires_grad_()
    return h, weight, torch.randint(n_vocab, (n_rows,), generator=random)


def test_by_hand() -> None:
    # Probabilities 1/4 and 3/4: the surprise of the second is log(4/3).
    logits = torch.tensor([[1.0, 3.0]]).log()
    assert cross_entropy(logits, torch.tensor([1])).item() == pytest.approx(0.28768207)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("n_ignored", [0, 3])
def test_cross_entropy_equals_torch(reduction: str, n_ignored: int) -> None:
    logits = (10 * torch.randn(9, 17)).requires_grad_()
    targets = torch.randint(17, (9,))
    targets[:n_ignored] = -100
    ours, theirs = (
        cross_entropy(logits, targets, reduction=reduction),
        F.cross_entropy(logits, targets, reduction=reduction),
    )
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, logits), torch.autograd.grad(theirs, logits))


@settings(deadline=None, max_examples=60)
@given(
    n_rows=st.integers(1, 20),
    n_vocab=st.integers(1, 30),
    chunk=st.integers(1, 25),
    ignored=st.sets(st.integers(0, 19)),
    reduction=st.sampled_from(["mean", "sum"]),
)
def test_fused_equals_torch(n_rows: int, n_vocab: int, chunk: int, ignored: set[int], reduction: str) -> None:
    h, weight, targets = head(n_rows, 8, n_vocab)
    targets[[row for row in ignored if row < n_rows]] = 7_777
    if (targets == 7_777).all():
        targets[0] = 0
    ours = linear_cross_entropy(h, weight, targets, ignore_index=7_777, reduction=reduction, chunk=chunk)
    theirs = F.cross_entropy(h @ weight.T, targets, ignore_index=7_777, reduction=reduction)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    for a, b in zip(torch.autograd.grad(ours, (h, weight)), torch.autograd.grad(theirs, (h, weight)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_gradients_in_float64(chunk: int) -> None:
    h, weight, targets = head(7, 4, 5, torch.float64)
    targets[2] = -100
    assert torch.autograd.gradcheck(lambda a, b: linear_cross_entropy(a, b, targets, chunk=chunk), (h, weight))


def test_only_the_gradients_that_are_wanted() -> None:
    h, weight, targets = head(6, 4, 5)
    both = torch.autograd.grad(linear_cross_entropy(h, weight, targets), (h, weight))
    assert torch.equal(torch.autograd.grad(linear_cross_entropy(h, weight.detach(), targets), h)[0], both[0])
    assert torch.equal(torch.autograd.grad(linear_cross_entropy(h.detach(), weight, targets), weight)[0], both[1])
    with torch.no_grad():
        assert not linear_cross_entropy(h, weight, targets).requires_grad


def test_a_scaled_loss_has_scaled_gradients() -> None:
    h, weight, targets = head(6, 4, 5)
    once = torch.autograd.grad(linear_cross_entropy(h, weight, targets), h)[0]
    third = torch.autograd.grad(linear_cross_entropy(h, weight, targets) / 3, h)[0]
    torch.testing.assert_close(third, once / 3)


def test_huge_logits_stay_finite() -> None:
    h, weight, targets = head(6, 4, 5)
    assert linear_cross_entropy(h * 1e10, weight * 1e10, targets).isfinite()


def test_bfloat16_sums_in_fp32() -> None:
    h, weight, targets = head(400, 16, 50)
    exact = linear_cross_entropy(h, weight, targets)
    low = linear_cross_entropy(h.bfloat16(), weight.bfloat16(), targets, chunk=8)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, exact, rtol=5e-3, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = linear_cross_entropy(h, weight, targets, chunk=8)
    gradients = torch.autograd.grad(mixed, (h, weight))
    assert [gradient.dtype for gradient in gradients] == [torch.float32, torch.float32]
    for ours, right in zip(gradients, torch.autograd.grad(exact, (h, weight)), strict=True):
        assert (ours - right).norm() < 0.01 * right.norm()


def test_never_holds_all_logits() -> None:
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            largest = max([largest, *(x.numel() for x in (result,) if isinstance(x, Tensor))])
            return result

    h, weight, targets = head(64, 4, 100)
    with Watch():
        linear_cross_entropy(h, weight, targets, chunk=8).backward()
    assert largest == 8 * 100


def fused(rows_ND: Tensor, targets_N: Tensor) -> Tensor:
    return linear_cross_entropy(rows_ND, torch.ones(4, 4), targets_N)


@pytest.mark.parametrize("loss", [cross_entropy, fused])
def test_a_batch_without_targets_is_an_error(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    with pytest.raises(InputError, match="all 3 targets of the batch are ignored"):
        loss(torch.ones(3, 4), torch.full((3,), -100))
    with pytest.raises(InputError, match="target 4 is outside of the vocabulary of 4"):
        loss(torch.ones(3, 4), torch.tensor([0, 4, -100]))
    with pytest.raises(InputError, match="target -1 is outside"):
        loss(torch.ones(3, 4), torch.tensor([0, -1, -100]))
    with pytest.raises(InputError, match="rows for targets"):
        loss(torch.ones(3, 4), torch.tensor([0, 1]))
