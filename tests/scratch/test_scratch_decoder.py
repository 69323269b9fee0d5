"""The whole model against the torch engine's: names, logits, loss, every gradient, cache; and what it refuses."""

import importlib.util
import pkgutil
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tessera.scratch
from tessera.errors import InputError, SettingError
from tessera.model.decoder import Decoder as TorchDecoder
from tessera.model.flow import Flow
from tessera.model.position import RotaryPosition as TorchRotaryPosition
from tessera.model.position import SinusoidalPosition as TorchSinusoidalPosition
from tessera.scratch.decoder import Decoder
from tessera.scratch.ops.loss import IGNORE
from tessera.scratch.parameter import Parameter
from tessera.scratch.position import RotaryPosition, SinusoidalPosition

SIZES: dict[str, Any] = {"n_vocab": 13, "context": 12, "d_model": 16, "n_layers": 4, "n_heads": 4}
COMBINATIONS: dict[str, dict[str, Any]] = {
    "llama": {"attention": {"name": "gqa", "n_kv_heads": 2}},
    "gpt2": {"norm": "layer", "position": "learned", "feed_forward": "gelu", "bias": True, "tied": True},
    "post": {"placement": "post", "norm": "layer", "position": "sinusoidal", "feed_forward": "relu"},
    "bare": {"norm": "none", "position": "none", "feed_forward": "relu2", "init": {"name": "normal", "std": 0.2}},
    "gemma": {
        "placement": "sandwich",
        "attention": [{"name": "gqa", "n_kv_heads": 1, "window": 3, "score_cap": 2.0, "scale": 0.3}, "gqa"],
        "feed_forward": {"name": "geglu", "approximate": "none"},
        "position": {"name": "rope", "share": 0.5, "layout": "interleaved"},
        "tied": True,
        "embedding_scale": 4.0,
        "logit_cap": 3.0,
        "vocab_multiple": 8,
        "d_head": 8,
    },
    "parallel": {
        "placement": "parallel",
        "attention": {"name": "gqa", "qk_norm": True, "sinks": True, "value_residual": True, "output_bias": True},
        "position": ["alibi", "t5"],
        "feed_forward": ["relu", "swiglu"],
        "d_ff": 24,
    },
    "streaming": {"attention": {"name": "gqa", "window": 3, "window_keeps": 2}, "vocab_multiple": 8},
}


def pair(dtype: type = np.float64, **settings: Any) -> tuple[TorchDecoder, Decoder]:
    """The same model in both engines, no parameter of which is 0 or 1 alone."""
    torch.manual_seed(0)
    theirs = TorchDecoder(**settings).to(torch.float64 if dtype is np.float64 else torch.float32)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    ours = Decoder(**settings, dtype=dtype, seed=1)
    ours.load({name: value.numpy() for name, value in theirs.state_dict().items()})
    return theirs, ours


def same_tables(theirs: TorchDecoder, ours: Decoder) -> None:
    """Give ours the tables of theirs: each rounds sine and cosine to 32 bits, seldom to two neighbours."""
    for torchs, position in zip(theirs.positions, ours.positions, strict=True):
        for name, kind, torch_kind in (
            ("cos", RotaryPosition, TorchRotaryPosition),
            ("sin", RotaryPosition, TorchRotaryPosition),
            ("table", SinusoidalPosition, TorchSinusoidalPosition),
        ):
            if isinstance(torchs, torch_kind) and isinstance(position, kind):
                table = torchs.get_buffer(name).numpy()
                own = f"{name}_{'SD' if name == 'table' else 'SC'}"
                np.testing.assert_allclose(getattr(position, own), table, atol=1.5e-7)
                setattr(position, own, table)


def batch(rng: np.random.Generator, n_vocab: int = 13) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, targets of which some are ignored, and documents."""
    ids, targets = rng.integers(0, n_vocab, (2, 3, 11))
    targets[rng.random(targets.shape) < 0.3] = IGNORE
    documents = np.cumsum(rng.random(ids.shape) < 0.2, axis=1)
    return ids, targets, documents


def torch_loss(model: TorchDecoder, ids: np.ndarray, targets: np.ndarray, documents: np.ndarray | None) -> Tensor:
    ids_BT = torch.from_numpy(ids)
    flow = Flow.of(ids_BT, documents_BT=None if documents is None else torch.from_numpy(documents))
    return model.loss(model.hidden(ids_BT, flow=flow), torch.from_numpy(targets))


@pytest.mark.parametrize("name", COMBINATIONS)
@pytest.mark.parametrize("in_documents", [False, True])
def test_a_whole_step_is_that_of_torch(name: str, in_documents: bool) -> None:
    theirs, ours = pair(**SIZES, **COMBINATIONS[name])
    same_tables(theirs, ours)
    assert list(ours.parameters) == list(theirs.state_dict())
    assert ours.n_params == theirs.n_params
    ids, targets, documents = batch(np.random.default_rng(0))
    np.testing.assert_allclose(ours.logits(ids), theirs(torch.from_numpy(ids)).detach().numpy(), rtol=0, atol=1e-10)
    expected = torch_loss(theirs, ids, targets, documents if in_documents else None)
    expected.backward()
    loss = ours.loss(ids, targets, documents if in_documents else None)
    ours.backward()
    assert abs(loss - expected.item()) <= 1e-8
    for each, parameter in theirs.named_parameters():
        assert parameter.grad is not None
        # What is added to all keys alike moves no softmax.
        assert parameter.grad.abs().max() > 1e-6 or each.endswith("key.bias"), f"{each} learns nothing here"
        np.testing.assert_allclose(ours.parameters[each].grad, parameter.grad.numpy(), rtol=0, atol=1e-8, err_msg=each)


@pytest.mark.parametrize("name", COMBINATIONS)
def test_32_bits_stay_32_bits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    types = set()
    add_grad = Parameter.add_grad

    def noted(parameter: Parameter, grad: np.ndarray) -> None:
        types.add(grad.dtype)
        add_grad(parameter, grad)

    monkeypatch.setattr(Parameter, "add_grad", noted)
    model = Decoder(**SIZES | COMBINATIONS[name] | {"dropout": 0.1})
    ids, targets, documents = batch(np.random.default_rng(0))
    model.loss(ids, targets, documents, rng=np.random.default_rng(0))
    model.backward()
    assert types == {np.dtype(np.float32)}


@pytest.mark.parametrize("name", ["llama", "gpt2", "post"])
def test_the_logits_in_32_bits_with_tables_of_its_own(name: str) -> None:
    theirs, ours = pair(np.float32, **SIZES | COMBINATIONS[name] | {"context": 300, "d_model": 64})
    ids = np.random.default_rng(0).integers(0, 13, (2, 300))
    logits = ours.logits(ids)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, theirs(torch.from_numpy(ids)).detach().numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "parallel"])
def test_gradients_with_dropout_are_the_central_difference(name: str) -> None:
    """Along one random direction through all parameters at once; two passes, the second by half, add up."""
    # Not with ReLU: a step across its corner has no derivative.
    smooth = {"feed_forward": "geglu", "dropout": 0.3, "init": {"name": "normal", "std": 0.2}, "dtype": np.float64}
    ours = Decoder(**SIZES | COMBINATIONS[name] | smooth)
    ids, targets, documents = batch(np.random.default_rng(0))
    rng = np.random.default_rng(1)
    directions = {k: rng.normal(size=p.shape) for k, p in ours.parameters.items()}
    before = ours.state()

    def loss_at(step: float) -> float:
        ours.load({k: value + step * directions[k] for k, value in before.items()})
        return ours.loss(ids, targets, documents, rng=np.random.default_rng(7))

    measured = (loss_at(1e-6) - loss_at(-1e-6)) / 2e-6
    assert loss_at(0.0) != ours.loss(ids, targets, documents)
    for scale in (1.0, 0.5):
        loss_at(0.0)
        ours.backward(scale)
    along = sum((p.grad * directions[k]).sum() for k, p in ours.parameters.items())
    assert along == pytest.approx(1.5 * measured, rel=1e-6)
    ours.zero_grad()
    assert not any(p.grad.any() for p in ours.parameters.values())


@pytest.mark.parametrize("name", COMBINATIONS)
def test_cached_logits_are_the_uncached(name: str) -> None:
    _, ours = pair(**SIZES, **COMBINATIONS[name])
    ids = np.random.default_rng(0).integers(0, 13, (2, 12))
    cache = ours.new_cache(2)
    pieces = [ours.logits(part, cache) for part in np.split(ids, [5, 6, 8, 9, 10, 11], axis=1)]
    assert cache.length == cache.capacity == 12
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), ours.logits(ids), rtol=0, atol=1e-12)
    cache.reset()
    np.testing.assert_allclose(ours.logits(ids[:, :3], cache), pieces[0][:, :3], rtol=0, atol=1e-12)


def test_inputs_that_cannot_be_used() -> None:
    model = Decoder(**SIZES)
    ids = np.zeros((2, 4), dtype=np.int64)
    cache = model.new_cache(2, 3)
    for call, message in (
        (lambda: model.logits(ids[0]), "expected \\(batch, time\\)"),
        (lambda: model.logits(ids[:, :0]), "neither of them empty"),
        (lambda: model.logits(ids + 13), "token id 13 is outside of the vocabulary of 13"),
        (lambda: model.logits(np.zeros((1, 13), dtype=np.int64)), "longer than the model's context of 12"),
        (lambda: model.logits(ids, cache), "the cache is full: it holds 3 tokens and 4 are needed"),
        (lambda: model.new_cache(1, 13), "a cache of 13 tokens"),
        (lambda: model.loss(ids, ids[:1]), "targets of shape \\(1, 4\\)"),
        (lambda: model.loss(ids, np.full_like(ids, IGNORE)), "all 8 targets of the batch are ignored"),
        (lambda: model.backward(), "no loss to go back from"),
        (lambda: model.load({}), "the checkpoint has no blocks.0.attention.key.weight"),
        (lambda: model.load(model.state() | {"more": ids}), "the model has no more"),
        (lambda: model.load(model.state() | {"head.weight": ids}), "head.weight of shape \\(2, 4\\)"),
    ):
        with pytest.raises(InputError, match=message):
            call()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"attention": "mla"}, r"model.attention has no 'mla' \(choices: gqa\)"),
        ({"attention": ["gqa", {"name": "gqa", "n_kv_head": 2}]}, r"model.attention\[1\] \(gqa\) has no 'n_kv_head'"),
        ({"attention": {"name": "gqa", "n_kv_heads": 3}}, "n_kv_heads = 3: expected a divisor of 4"),
        ({"feed_forward": "moe"}, "model.feed_forward has no 'moe'"),
        ({"position": []}, "model.position = \\[\\]: expected at least one piece"),
        ({"position": {"name": "rope", "share": 0.3}}, "share = 0.3: expected"),
        ({"embedding": "ngram"}, "model.embedding has no 'ngram'"),
        ({"placement": "pre-norm"}, "model.placement = 'pre-norm': expected one of pre, post, sandwich, parallel"),
        ({"n_future": 1}, "model.n_future = 1: expected 0"),
        ({"dtype": np.float16}, "model.dtype"),
        ({"d_model": 15}, "model.d_model = 15: expected a multiple of n_heads = 4"),
        ({"n_layers": 0}, "model.n_layers = 0: expected at least 1"),
        ({"dropout": 1.0}, "model.dropout = 1.0"),
        ({"norm": {"name": "rms", "eps": 0.0}}, "eps = 0.0: expected a positive number"),
    ],
)
def test_settings_that_cannot_be_built(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Decoder(**SIZES | wrong)


@pytest.mark.parametrize("init", ["normal", "xavier", "kaiming"])
def test_weights_start_as_wide_as_those_of_torch(init: str) -> None:
    settings = SIZES | {"d_model": 64, "n_vocab": 100, "context": 100, "position": "learned", "init": init}
    torch.manual_seed(0)
    theirs, ours = TorchDecoder(**settings), Decoder(**settings)
    for name, parameter in theirs.named_parameters():
        array = ours.parameters[name].data
        assert array.std() == pytest.approx(parameter.std(correction=0).item(), rel=0.1), name
        assert abs(array).max() == pytest.approx(parameter.abs().max().item(), rel=0.5), name
    again, other = Decoder(**settings), Decoder(**settings, seed=1)
    assert np.array_equal(again.parameters["head.weight"].data, ours.parameters["head.weight"].data)
    assert not np.array_equal(other.parameters["head.weight"].data, ours.parameters["head.weight"].data)


def test_it_loads_no_torch() -> None:
    modules = [info.name for info in pkgutil.walk_packages(tessera.scratch.__path__, "tessera.scratch.")]
    assert "tessera.scratch.ops.attention" in modules
    program = f"import sys, {', '.join(modules)}\nprint(*{{'torch', 'numba'}} & sys.modules.keys())"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""
    assert importlib.util.find_spec("torch") is not None
