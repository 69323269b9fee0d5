"""Every backward pass against central differences and against torch's autograd, in 64 bits, for shapes of any size."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tessera.errors import InputError
from tessera.ops.attention_plain import plain_attention
from tessera.scratch.ops import activation, attention, cap, dropout, embedding, linear, loss, norm, residual, rotate
from tessera.scratch.ops.softmax import softmax_backward, softmax_forward

Arrays = list[np.ndarray]


@dataclass
class Case:
    """An operation of `inputs`: what it is in NumPy, the gradients of its inputs, and what it is in torch."""

    inputs: Arrays
    forward: Callable[..., tuple[Any, Any]]
    backward: Callable[[Any, Any], tuple[Any, ...]]
    reference: Callable[..., Tensor]


class Draw:
    """Random sizes and numbers from one seed."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def size(self, most: int = 5) -> int:
        return int(self.rng.integers(1, most + 1))

    def coin(self) -> bool:
        return bool(self.rng.integers(2))

    def numbers(self, *shape: int) -> np.ndarray:
        """None of them so near to 0 that a step of the central difference crosses it, where ReLU has its corner."""
        x = self.rng.normal(size=shape)
        return x + np.copysign(1e-3, x)


def one(backward: Callable[[Any, Any], Any]) -> Callable[[Any, Any], tuple[Any, ...]]:
    """A backward pass with one gradient, as a tuple."""
    return lambda dy, saved: (backward(dy, saved),)


def linear_case(draw: Draw) -> Case:
    lead, d_in, d_out = [draw.size()] * draw.size(3), draw.size(), draw.size()
    inputs = [draw.numbers(*lead, d_in), draw.numbers(d_out, d_in), draw.numbers(d_out)][: 2 + draw.coin()]
    return Case(inputs, linear.linear_forward, linear.linear_backward, F.linear)


def embedding_case(draw: Draw) -> Case:
    n_rows = draw.size(7)
    ids = draw.rng.integers(0, n_rows, (draw.size(), draw.size(9)))
    return Case(
        [draw.numbers(n_rows, draw.size())],
        lambda weight: embedding.embedding_forward(ids, weight),
        one(embedding.embedding_backward),
        lambda weight: F.embedding(torch.from_numpy(ids), weight),
    )


def layer_norm_case(draw: Draw) -> Case:
    width, eps, has_bias = draw.size(9), 10.0 ** -draw.size(), draw.coin()
    inputs = [draw.numbers(draw.size(), draw.size(), width), draw.numbers(width), draw.numbers(width)][: 2 + has_bias]
    return Case(
        inputs,
        lambda x, weight, bias=None: norm.layer_norm_forward(x, weight, bias, eps),
        norm.layer_norm_backward,
        lambda x, weight, bias=None: F.layer_norm(x, (width,), weight, bias, eps),
    )


def rms_norm_case(draw: Draw) -> Case:
    width, eps = draw.size(9), 10.0 ** -draw.size()
    return Case(
        [draw.numbers(draw.size(), draw.size(), width), draw.numbers(width)],
        lambda x, weight: norm.rms_norm_forward(x, weight, eps),
        norm.rms_norm_backward,
        lambda x, weight: F.rms_norm(x, (width,), weight, eps),
    )


def softmax_case(draw: Draw) -> Case:
    n_heads, n_rows, width = draw.size(), draw.size(), draw.size(7)
    hidden = np.where(draw.rng.random((n_rows, width)) < 0.3, -np.inf, 0.0)
    hidden[:, 0] = 0

    def reference(scores: Tensor, *sinks: Tensor) -> Tensor:
        scores = scores + torch.from_numpy(hidden)
        with_sinks = torch.cat((*(each.expand(n_heads, n_rows, 1) for each in sinks), scores), dim=-1)
        return with_sinks.softmax(dim=-1)[..., len(sinks) :]

    def backward(dp: np.ndarray, saved: Any) -> tuple[Any, ...]:
        dscores, dsinks = softmax_backward(dp, saved)
        return (dscores, dsinks.sum(axis=1, keepdims=True))[: len(inputs)]

    inputs = [10 * draw.numbers(n_heads, n_rows, width), draw.numbers(n_heads, 1, 1)][: 1 + draw.coin()]
    return Case(inputs, lambda scores, *sinks: softmax_forward(scores + hidden, *sinks), backward, reference)


def residual_case(draw: Draw) -> Case:
    """f is 3 x here, so that its way back is 3 dy."""
    return Case(
        [draw.numbers(draw.size(), draw.size())],
        lambda x: (residual.residual_forward(x, 3 * x), None),
        lambda dy, _: (residual.residual_backward(dy, 3 * dy),),
        lambda x: x + 3 * x,
    )


def dropout_case(draw: Draw) -> Case:
    shape = (draw.size(), draw.size(9))
    mask = dropout.dropout_mask(shape, 0.4, draw.rng, np.dtype(np.float64))
    return Case(
        [draw.numbers(*shape)],
        lambda x: dropout.dropout_forward(x, mask),
        one(dropout.dropout_backward),
        lambda x: x * torch.from_numpy(mask),
    )


def activation_case(pair: activation.Activation, reference: Callable[[Tensor], Tensor]) -> Callable[[Draw], Case]:
    return lambda draw: Case([3 * draw.numbers(draw.size(), draw.size(9))], pair.forward, one(pair.backward), reference)


def gated_case(pair: activation.Activation, reference: Callable[[Tensor], Tensor]) -> Callable[[Draw], Case]:
    def case(draw: Draw) -> Case:
        shape = (draw.size(), draw.size(9))
        return Case(
            [3 * draw.numbers(*shape), draw.numbers(*shape)],
            lambda gate, x: activation.gated_forward(gate, x, pair),
            activation.gated_backward,
            lambda gate, x: reference(gate) * x,
        )

    return case


def cap_case(draw: Draw) -> Case:
    bound = float(draw.size(20))
    return Case(
        [10 * draw.numbers(draw.size(), draw.size())],
        lambda x: cap.cap_forward(x, bound),
        one(cap.cap_backward),
        lambda x: bound * torch.tanh(x / bound),
    )


def rotate_case(draw: Draw) -> Case:
    """A turn of a pair is a product of complex numbers."""
    B, T, H, C = draw.size(3), draw.size(4), draw.size(3), draw.size(3)
    angles = draw.rng.uniform(0, 99, (B, T, C) if draw.coin() else (T, C))
    layout: rotate.Layout = "halves" if draw.coin() else "interleaved"

    def reference(x: Tensor) -> Tensor:
        inside, rest = x[..., : 2 * C], x[..., 2 * C :]
        shape = (B, T, H, 2, C) if layout == "halves" else (B, T, H, C, 2)
        pair_dim = 3 if layout == "halves" else 4
        a, b = inside.reshape(shape).unbind(pair_dim)
        turned = torch.complex(a, b) * torch.exp(1j * torch.from_numpy(angles)).unsqueeze(-2)
        return torch.cat((torch.stack((turned.real, turned.imag), pair_dim).flatten(3), rest), dim=-1)

    return Case(
        [draw.numbers(B, T, H, 2 * C + draw.size(3) - 1)],
        lambda x: rotate.rotate_forward(x, rotate.Angles(np.cos(angles), np.sin(angles), layout)),
        one(rotate.rotate_backward),
        reference,
    )


def cross_entropy_case(draw: Draw) -> Case:
    n_rows, n_vocab = draw.size(9), draw.size(7)
    targets = draw.rng.integers(0, n_vocab, n_rows)
    targets[draw.rng.random(n_rows) < 0.4] = loss.IGNORE
    targets[draw.rng.integers(n_rows)] = n_vocab - 1
    places = loss.counted(targets, n_vocab)

    def backward(dloss: Any, saved: Any) -> tuple[np.ndarray]:
        dlogits = np.zeros((n_rows, n_vocab))
        dlogits[places] = loss.cross_entropy_backward(float(dloss), saved)
        return (dlogits,)

    return Case(
        [5 * draw.numbers(n_rows, n_vocab)],
        lambda logits: loss.cross_entropy_forward(logits[places], targets[places]),
        backward,
        lambda logits: F.cross_entropy(logits, torch.from_numpy(targets)),
    )


def attention_case(draw: Draw) -> Case:
    B, T, G, R, K = draw.size(2), draw.size(5), draw.size(2), draw.size(2), draw.size(3)
    S, H = T + draw.size(3) - 1, G * R
    options: dict[str, Any] = {"scale": draw.rng.uniform(0.2, 1)}
    options["score_cap"] = 2.0 if draw.coin() else None
    seen: dict[str, Any] = {"window": draw.size(4) if draw.coin() else None}
    seen["window_keeps"] = draw.size(3) - 1 if seen["window"] else 0
    documents = draw.rng.integers(0, 3, (B, S)) if draw.coin() else None
    hidden = attention.unseen(T, S, documents_BS=documents, **seen)
    inputs = [draw.numbers(B, T, H, K), draw.numbers(B, S, G, K), draw.numbers(B, S, G, K), draw.numbers(H, T, S)]
    inputs += [draw.numbers(H)] * draw.coin()

    def forward(q: Any, k: Any, v: Any, bias: Any, sinks: Any = None) -> Any:
        added = bias if hidden is None else bias + hidden
        return attention.attention_forward(q, k, v, added=added, sinks_H=sinks, **options)

    def backward(dy: Any, saved: Any) -> tuple[Any, ...]:
        d = attention.attention_backward(dy, saved)
        return (d.dq_BTHK, d.dk_BSGK, d.dv_BSGK, d.dadded_BHTS.sum(axis=0), d.dsinks_H)[: len(inputs)]

    def reference(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, sinks: Tensor | None = None) -> Tensor:
        documents_BS = None if documents is None else torch.from_numpy(documents)
        qkv = (x.transpose(1, 2) for x in (q, k, v))
        y = plain_attention(*qkv, bias_HTS=bias, sinks_H=sinks, documents_BS=documents_BS, **seen, **options)
        return y.transpose(1, 2)

    return Case(inputs, forward, backward, reference)


def dropped_attention_case(draw: Draw) -> Case:
    B, T, H, K = draw.size(2), draw.size(5), draw.size(3), draw.size(3)
    mask = dropout.dropout_mask((B, H, T, T), 0.3, draw.rng, np.dtype(np.float64))
    hidden = attention.unseen(T, T)

    def reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = torch.einsum("bthk,bshk->bhts", q, k) * 0.5
        shares = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf).softmax(dim=-1)
        return torch.einsum("bhts,bshk->bthk", shares * torch.from_numpy(mask), v)

    return Case(
        [draw.numbers(B, T, H, K) for _ in range(3)],
        lambda q, k, v: attention.attention_forward(q, k, v, scale=0.5, added=hidden, mask=mask),
        lambda dy, saved: attention.attention_backward(dy, saved)[:3],
        reference,
    )


CASES: dict[str, Callable[[Draw], Case]] = {
    "linear": linear_case,
    "embedding": embedding_case,
    "layer_norm": layer_norm_case,
    "rms_norm": rms_norm_case,
    "softmax": softmax_case,
    "residual": residual_case,
    "dropout": dropout_case,
    "relu": activation_case(activation.RELU, F.relu),
    "squared_relu": activation_case(activation.SQUARED_RELU, lambda x: F.relu(x) ** 2),
    "silu": activation_case(activation.SILU, F.silu),
    "gelu": activation_case(activation.GELUS["none"], F.gelu),
    "tanh_gelu": activation_case(activation.GELUS["tanh"], lambda x: F.gelu(x, approximate="tanh")),
    "swiglu": gated_case(activation.SILU, F.silu),
    "geglu": gated_case(activation.GELUS["tanh"], lambda x: F.gelu(x, approximate="tanh")),
    "cap": cap_case,
    "rotate": rotate_case,
    "cross_entropy": cross_entropy_case,
    "attention": attention_case,
    "dropped_attention": dropped_attention_case,
}


def central_differences(case: Case, dy: np.ndarray, step: float = 1e-5) -> Arrays:
    """d(sum of dy y) / d each number of each input, from four values of the forward pass each.

    With x + 2 step and x - 2 step as well the error is that of the fourth power of a step: a norm bends sharply near 0.
    """
    gradients = []
    for which, x in enumerate(case.inputs):
        gradient = np.zeros_like(x)
        for place in np.ndindex(x.shape):
            for ways, share in ((1, 8), (-1, -8), (2, -1), (-2, 1)):
                moved = list(case.inputs)
                moved[which] = x.copy()
                moved[which][place] += ways * step
                gradient[place] += share * (dy * case.forward(*moved)[0]).sum() / (12 * step)
        gradients.append(gradient)
    return gradients


@pytest.mark.parametrize("name", CASES)
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=12, deadline=None)
def test_forward_and_backward(name: str, seed: int) -> None:
    draw = Draw(seed)
    case = CASES[name](draw)
    with pytest.MonkeyPatch.context() as patch:
        # Small enough that operations take several turns to go through their rows.
        patch.setattr("tessera.scratch.ops.slices.SLICE", draw.size(20))
        check(case, draw.rng)


def check(case: Case, rng: np.random.Generator) -> None:
    before = [x.copy() for x in case.inputs]
    y, saved = case.forward(*case.inputs)
    dy = rng.normal(size=np.shape(y))
    dy_before = dy.copy()
    gradients = case.backward(dy, saved)

    tensors = [torch.from_numpy(x).clone().requires_grad_() for x in case.inputs]
    expected_y = case.reference(*tensors)
    np.testing.assert_allclose(y, expected_y.detach().numpy(), rtol=1e-10, atol=1e-10)
    expected = torch.autograd.grad(expected_y, tensors, torch.from_numpy(np.asarray(dy)))
    for ours, torchs, measured in zip(gradients, expected, central_differences(case, dy), strict=False):
        np.testing.assert_allclose(ours, torchs.numpy(), rtol=1e-10, atol=1e-10)
        # Where a gradient is 0 but for rounding, as that of the shift of a norm, the relative error says nothing.
        assert np.linalg.norm(ours - measured) <= 1e-6 * np.linalg.norm(measured) + 1e-8
    assert len([each for each in gradients if each is not None]) == len(case.inputs)
    for x, x_before in zip((*case.inputs, dy), (*before, dy_before), strict=True):
        assert np.array_equal(x, x_before), "an operation wrote into what it was given"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_exact_gelu_and_the_others_bear_numbers_of_any_size(dtype: type) -> None:
    x = np.concatenate((np.linspace(-30, 30, 20_001), [-1e30, 1e30, np.nan])).astype(dtype)
    tolerance = 1e-15 if dtype is np.float64 else 1e-6
    with np.errstate(over="ignore", invalid="ignore"):
        y, _ = activation.gelu_forward(x)
    np.testing.assert_allclose(y, F.gelu(torch.from_numpy(x)).numpy(), rtol=tolerance, atol=30 * tolerance)
    assert y.dtype == dtype
    with np.errstate(all="raise"):
        y, _ = activation.silu_forward(x[:-1])
    np.testing.assert_allclose(y, F.silu(torch.from_numpy(x[:-1])).numpy(), rtol=tolerance, atol=30 * tolerance)
    loss_value, saved = loss.cross_entropy_forward(np.array([[1e4, 0, -1e4]], dtype), np.array([2]))
    assert loss_value == 2e4
    assert np.isfinite(loss.cross_entropy_backward(1.0, saved)).all()


@pytest.mark.parametrize(
    ("targets", "message"),
    [([-100, -100], "all 2 targets of the batch are ignored"), ([1, 5], "target 5 is outside"), ([-1, 1], "target -1")],
)
def test_targets_that_cannot_be_learned_from(targets: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        loss.counted(np.array(targets), 5)


def test_dropout_keeps_its_share_and_the_mean() -> None:
    mask = dropout.dropout_mask((1000, 100), 0.3, np.random.default_rng(0), np.dtype(np.float32))
    assert mask.dtype == np.float32
    assert set(np.unique(mask)) == {0.0, mask.max()}
    assert mask.max() == pytest.approx(1 / 0.7, rel=1e-4)
    assert mask.mean() == pytest.approx(1, abs=0.01)
