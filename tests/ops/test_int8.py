"""Products in 8 bits: exact integers, roundings within half a step, gradients close to those in fp32, NaN where due."""

import os
import signal
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tessera.ops import int8
from tessera.ops.activation import Gelu, Relu, Silu, SquaredRelu
from tessera.ops.feedforward import plain_feed_forward
from tessera.ops.int8 import int8_linears, is_exact, rounded_both, rounded_rows
from tessera.ops.int8_feedforward import int8_feed_forward

pytestmark = pytest.mark.skipif(not is_exact(), reason="this processor's products of 8 bits are not exact")


@pytest.fixture(params=["compiled", "plain"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "plain":
        monkeypatch.setattr(int8, "compiled_kernels", lambda: None)
    return request.param


def random(*sizes: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(sizes, generator=torch.Generator().manual_seed(seed))


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


numbers = st.floats(-(2.0**99), 2.0**99, width=32, allow_subnormal=False) | st.just(0.0)


@settings(max_examples=60, deadline=None)
@given(arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 40)), elements=numbers))
def test_a_rounding_is_off_by_half_a_step_at_most(x: np.ndarray) -> None:
    x8, scale = rounded_rows(torch.from_numpy(x))
    exact = torch.from_numpy(x).double()
    largest = exact.abs().amax(dim=1)
    assert x8.int().abs().max() <= 127
    assert torch.allclose(scale.double(), torch.where(largest < 2.0**-100, 0.0, largest / 127), rtol=1e-6)
    off = (x8.double() * scale.double()[:, None] - exact).abs()
    assert (off <= 0.5001 * scale.double()[:, None] + 2.0**-100).all()


def test_rounded_by_hand(way: str) -> None:
    x8, scale = rounded_rows(torch.tensor([[127.0, -2.5, 0.4, 3.5], [0.0, 0.0, 0.0, 0.0], [-1.0, 0.5, 0.25, 0.0]]))
    assert x8.tolist() == [[127, -2, 0, 4], [0, 0, 0, 0], [-127, 64, 32, 0]]
    assert torch.allclose(scale, torch.tensor([1.0, 0.0, 1 / 127]))


def test_the_compiled_passes_are_the_plain_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    g, by_n, by_o = random(300, 70), random(300, seed=1).abs(), random(70, seed=2).abs()
    ours = rounded_both(g, by_n, by_o)
    monkeypatch.setattr(int8, "compiled_kernels", lambda: None)
    for (mine, scale), (theirs, theirs_scale) in zip(ours, rounded_both(g, by_n, by_o), strict=True):
        assert torch.allclose(scale, theirs_scale, rtol=1e-6)
        # A tie may go the other way where the processor multiplies and adds at once.
        assert (mine.int() - theirs.int()).abs().max() <= 1
        assert (mine != theirs).float().mean() < 1e-3


def test_the_product_is_that_of_the_integers(way: str) -> None:
    x, weight = random(700, 33), random(17, 33, seed=1)
    (x8, scale_x), (w8, scale_w) = rounded_rows(x), rounded_rows(weight)
    expected = (x8.long() @ w8.long().T).double() * scale_x.double()[:, None] * scale_w.double()
    (y,) = int8_linears(x.requires_grad_(), [(weight, None)])
    assert torch.allclose(y.double(), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("rows", [1, 2, 17])
def test_sizes_of_one_are_multiplied_rightly(rows: int) -> None:
    """PyTorch's kernel is wrong for some of them."""
    for d_in, d_out in ((1, 1), (1, 5), (5, 1), (16, 1), (1, 16)):
        x8, w8, g8 = (
            torch.randint(-127, 128, sizes, generator=torch.Generator().manual_seed(d_in), dtype=torch.int8)
            for sizes in ((rows, d_in), (d_out, d_in), (rows, d_out))
        )
        for a, b in ((x8, int8.turned(w8)), (g8, w8), (int8.turned(g8), x8)):
            assert torch.equal(torch._int_mm(a, b).long(), a.long() @ b.long())


@pytest.mark.parametrize("sizes", [(5, 3, 7), (300, 64, 96), (4100, 24, 40)], ids=str)
def test_gradients_are_close_to_those_in_fp32(sizes: tuple[int, int, int], way: str) -> None:
    n, d_in, d_out = sizes
    x = random(2, n, d_in).requires_grad_()
    maps = [(random(d_out, d_in, seed=s).requires_grad_(), random(d_out, seed=s).requires_grad_()) for s in (1, 2)]
    close = int8_linears(x, maps)
    exact = [torch.nn.functional.linear(x, *each) for each in maps]
    grads = [random(2, n, d_out, seed=s) for s in (3, 4)]
    inputs = [x, *maps[0], *maps[1]]
    for ours, theirs in zip(close, exact, strict=True):
        assert apart(ours, theirs) < 0.02
    for ours, theirs in zip(
        torch.autograd.grad(close, inputs, grads), torch.autograd.grad(exact, inputs, grads), strict=True
    ):
        assert ours.shape == theirs.shape and apart(ours, theirs) < 0.02


def test_rows_of_very_different_sizes_keep_their_digits(way: str) -> None:
    x = random(64, 32) * torch.logspace(-6, 6, 64)[:, None]
    weight = random(16, 32, seed=1)
    (y,) = int8_linears(x.requires_grad_(), [(weight, None)])
    exact = x @ weight.T
    assert ((y - exact).norm(dim=1) / exact.norm(dim=1)).max() < 0.03


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_makes_nan_and_spares_the_other_rows(wrong: float, way: str) -> None:
    x, weight = random(8, 16), random(4, 16, seed=1).requires_grad_()
    x[3, 5] = wrong
    (y,) = int8_linears(x.requires_grad_(), [(weight, None)])
    assert y[3].isnan().all() and y[[0, 1, 2, 4, 5, 6, 7]].isfinite().all()
    grad = torch.ones(8, 4)
    assert torch.autograd.grad(y, weight, grad)[0].isnan().all()
    (z,) = int8_linears(random(8, 16).requires_grad_(), [(weight, None)])
    grad[2, 1] = wrong
    (grad_weight,) = torch.autograd.grad(z, weight, grad)
    assert grad_weight[1].isnan().all() and grad_weight[[0, 2, 3]].isfinite().all()


def test_zeros_stay_zeros(way: str) -> None:
    x, weight = torch.zeros(6, 8, requires_grad=True), torch.zeros(4, 8, requires_grad=True)
    (y,) = int8_linears(x, [(weight, None)])
    assert not y.any()
    assert not any(each.any() for each in torch.autograd.grad(y, [x, weight], torch.zeros(6, 4)))


def test_any_number_of_threads_gives_the_same(way: str) -> None:
    x, weight, grad = random(3000, 96).requires_grad_(), random(128, 96, seed=1).requires_grad_(), random(3000, 128)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            (y,) = int8_linears(x, [(weight, None)])
            found.append((y, *torch.autograd.grad(y, [x, weight], grad)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_has_threads_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch itself keeps to one thread, as its own do not outlive a fork either."""
    if int8.compiled_kernels() is None:
        pytest.skip("numba is not installed")
    assert torch.get_num_threads() == 1
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    x, weight = random(2048, 128), random(64, 128, seed=1)
    (expected,) = int8_linears(x, [(weight, None)])
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            (y,) = int8_linears(x, [(weight, None)])
            status = 0 if torch.equal(y, expected) else 2
        finally:
            os._exit(status)
    deadline = time.monotonic() + 30
    while (ended := os.waitpid(pid, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.01)
    if ended == (0, 0):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        pytest.fail("it waits for threads that are not there")
    assert os.waitstatus_to_exitcode(ended[1]) == 0


@pytest.mark.parametrize("activation", [Relu(), SquaredRelu(), Silu(), Gelu("tanh"), Gelu("none")], ids=repr)
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
def test_a_feed_forward_layer_is_close_to_that_in_fp32(activation: object, gated: bool, bias: bool) -> None:
    shapes = [(48, 24), (48, 24), (24, 48)] if gated else [(48, 24), (24, 48)]
    weights = [(random(*shape, seed=i) * 0.2).requires_grad_() for i, shape in enumerate(shapes)]
    biases = [random(shape[0], seed=i).requires_grad_() if bias else None for i, shape in enumerate(shapes)]
    *into, output = zip(weights, biases, strict=True)
    x, grad = random(3, 200, 24, seed=7).requires_grad_(), random(3, 200, 24, seed=8)
    inputs = [x, *weights, *(each for each in biases if each is not None)]
    close, exact = int8_feed_forward(x, into, output, activation), plain_feed_forward(x, into, output, activation)  # type: ignore[arg-type]
    assert apart(close, exact) < 0.03
    for ours, theirs in zip(
        torch.autograd.grad(close, inputs, grad), torch.autograd.grad(exact, inputs, grad), strict=True
    ):
        # The slope of a ReLU at a number near 0 is a matter of its sign.
        assert ours.shape == theirs.shape and apart(ours, theirs) < 0.1


def test_pieces_of_a_feed_forward_layer_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """More rows than one piece of either pass."""
    weights = [(random(4096, 8) * 0.3).requires_grad_(), (random(8, 4096, seed=1) * 0.3).requires_grad_()]
    x, grad = random(700, 8, seed=2).requires_grad_(), random(700, 8, seed=3)
    maps = [(each, None) for each in weights]
    close = int8_feed_forward(x, maps[:1], maps[1], Gelu())
    exact = plain_feed_forward(x, maps[:1], maps[1], Gelu())
    for ours, theirs in zip(
        torch.autograd.grad(close, [x, *weights], grad), torch.autograd.grad(exact, [x, *weights], grad), strict=True
    ):
        assert apart(ours, theirs) < 0.05
